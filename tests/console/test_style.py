"""The assets: contrast, from the variables of the style sheet, and the size of the script."""

from __future__ import annotations

import re
from itertools import product

import pytest

from proxy.console.base.templating import read_assets
from tests.contrast import contrast

CSS = read_assets()["console.css"].body.decode()
COLOURS = dict(re.findall(r"--([\w-]+): light-dark\((#\w{6}, #\w{6})\);", CSS))
# Texts on their grounds.
PAIRS = [
    *product(("text", "quiet", "accent", "bad"), ("ground", "surface", "raised", "hover")),
    *((tone, f"{tone}-soft") for tone in ("ok", "warn", "bad", "info", "accent")),
    ("on-accent", "accent"),
    ("on-danger", "danger"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "ground"), PAIRS)
def test_texts_have_the_contrast_of_wcag_aa(text: str, ground: str) -> None:
    texts, grounds = COLOURS[text].split(", "), COLOURS[ground].split(", ")
    for theme, one, other in zip(("light", "dark"), texts, grounds, strict=True):
        assert contrast(one, other) >= 4.5, (theme, contrast(one, other))


def test_the_edge_of_a_field_can_be_seen() -> None:
    for one, other in zip(COLOURS["field"].split(", "), COLOURS["raised"].split(", "), strict=True):
        assert contrast(one, other) >= 3


def test_the_style_sheet_loads_nothing() -> None:
    assert "url(" not in CSS
    assert "@import" not in CSS


def test_the_script_is_one_module_that_loads_nothing() -> None:
    [text] = [asset.body.decode() for name, asset in read_assets().items() if name.endswith(".js")]
    # A framework is worth its build step from more lines on.
    assert len(text.splitlines()) <= 400
    assert re.search(r"^\s*import\b|\bimport\(|https?://", text, re.MULTILINE) is None
