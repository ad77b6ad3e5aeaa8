"""The verdicts and the table of a hub's cost on each engine; the figures themselves vary."""

from __future__ import annotations

import pytest

from benchmarks.engines import Figure, hub_us, section
from benchmarks.result import Measurement, Sample

CALLS = Figure("`small 64`", (40.0, 44.0), "CPU µs a call", 1.1, 1.15)


@pytest.mark.parametrize(
    ("figure", "met"),
    [
        (CALLS, True),
        (Figure("", (40.0, 44.0), "", 1.16, 1.15), False),
        (Figure("", (9.0, 10.0), "", None, 10.0), True),
        # Of administration, each engine has the bound.
        (Figure("", (10.1, 9.0), "", None, 10.0), False),
        (Figure("", (9.0, 10.1), "", None, 10.0), False),
    ],
)
def test_a_figure_is_met_by_its_ratio_or_by_both_engines(figure: Figure, met: bool) -> None:
    assert figure.met is met


def test_only_the_hubs_own_time_counts() -> None:
    spent = {"hub": 0.4, "relay": 0.3, "database": 0.2, "load": 1.0}
    sample = Sample(Measurement("small", "hawse-postgres", 64), spent, {"requests": 10_000})
    assert hub_us(sample) == 40.0
    assert hub_us(sample, "database") == 20.0


def test_the_section_has_a_row_a_figure() -> None:
    *_, row = section([CALLS]).splitlines()
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "`small 64`", "40.0", "44.0", "CPU µs a call", "1.1", "1.15"
    ]  # fmt: skip
