"""The table of two hubs beside one; the figures themselves vary."""

from __future__ import annotations

import pytest

from benchmarks.hubs import BEGIN, CASES, SYSTEMS, Case, Costs, Found, missed, table
from benchmarks.scaling import DOCUMENT, END


def runs(case: Case, *hubs_us: tuple[float, float]) -> Found:
    """Runs of a hundred calls, of which half have hopped."""
    of = [Costs(100, {"hub": a, "hub-2": b, "database": 9.0, "clients": 8.0}) for a, b in hubs_us]
    return Found(case, of, hops=50.0 * len(of))


ONE = runs(CASES[0], (40.0, 0.0), (80.0, 0.0), (100.0, 0.0))


def test_all_hubs_count_and_nothing_else() -> None:
    assert runs(CASES[2], (40.0, 50.0)).hubs_us() == 90.0


def test_a_ratio_is_of_the_runs_of_one_round() -> None:
    assert runs(CASES[2], (25.0, 25.0), (44.0, 44.0), (60.0, 60.0)).ratios(ONE) == [1.1, 1.2, 1.25]


@pytest.mark.parametrize(("us", "above"), [(27.0, False), (27.1, True)])
def test_a_median_above_its_bound_is_missed(us: float, above: bool) -> None:
    found = runs(CASES[2], (us, us), (100.0, 100.0), (10.0, 10.0))
    assert missed([ONE, found]) == ([CASES[2].title] if above else [])


def test_the_table_has_a_row_a_case() -> None:
    *_, row = table([ONE, runs(CASES[2], (22.0, 22.0), (48.0, 48.0), (60.0, 60.0))]).splitlines()
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        CASES[2].title, "96", "1.2 (1.1 to 1.2)", "1.35", "50%", "9", "0", "0", "0", "8"
    ]  # fmt: skip


def test_every_case_has_agents_for_each_hub_of_its_system() -> None:
    assert all(len(case.agents) == SYSTEMS[case.system][0] for case in CASES)


def test_the_document_has_a_place_for_the_table() -> None:
    text = DOCUMENT.read_text()
    assert text.index(BEGIN) < text.index(END, text.index(BEGIN))
