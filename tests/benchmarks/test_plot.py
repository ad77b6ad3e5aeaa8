"""Bars that are well-formed, and as long as they should be."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from benchmarks.plot import LABEL_WIDTH, VALUE_WIDTH, WIDTH, Scale, bars
from tests.benchmarks.samples import found, sample

SVG = "{http://www.w3.org/2000/svg}"


def test_there_is_a_bar_for_each_system_and_variant_that_has_the_figure() -> None:
    all_of_it = found(
        sample("direct", 1, p50_ms=0.1),
        sample("nginx", 1, cpu_us=20.0),
        sample("hawse", 1, cpu_us=60.0),
        sample("hawse", 64, cpu_us=40.0),
    )
    root = ElementTree.fromstring(bars(all_of_it, "small"))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert texts[0] == "small: CPU µs a request"
    assert texts[1:] == ["1  nginx", "20", "1  hawse", "60", "64  hawse", "40"]
    background, *drawn = [float(each.attrib["width"]) for each in root.iter(f"{SVG}rect")]
    assert background == WIDTH
    full = WIDTH - LABEL_WIDTH - VALUE_WIDTH
    assert drawn == pytest.approx([full / 3, full, full * 2 / 3], abs=0.1)


def test_names_are_escaped() -> None:
    assert "<b>" not in bars(found(sample("<b>", cpu_us=1.0)), "small")


def test_a_wide_range_is_drawn_logarithmically() -> None:
    scale = Scale([1.0, 1000.0])
    assert scale.logarithmic
    assert 0 < scale.share(1.0) < 0.2
    assert scale.share(1000.0) == 1.0
    assert scale.share(0.0) == 0.0


def test_a_narrow_range_starts_at_zero() -> None:
    scale = Scale([10.0, 20.0, 0.0])
    assert not scale.logarithmic
    assert [scale.share(value) for value in (0.0, 10.0, 20.0)] == [0.0, 0.5, 1.0]
