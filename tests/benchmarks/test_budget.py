"""What was measured, held against the budget."""

from __future__ import annotations

import attrs
import pytest

from benchmarks.budget import (
    BUDGET,
    Line,
    added,
    budget_table,
    difference,
    hub_to_nginx,
    kubectl_longer,
    slowed,
    verdict,
)
from benchmarks.result import Series
from tests.benchmarks.samples import found, sample

LINE = Line("anything", 90, 65, 50, lambda found: None)


@pytest.mark.parametrize(
    ("value", "column"),
    [(50.0, "stretch"), (50.1, "goal"), (65.0, "goal"), (66.0, "gate"), (90.0, "gate"), (90.1, "over")],
)
def test_a_value_meets_the_best_column_that_it_is_not_above(value: float, column: str) -> None:
    assert verdict(LINE, value) == column


def test_only_what_was_run_is_listed() -> None:
    rows = budget_table(found(sample("hawse", 64, cpu_us=64.0)))
    assert rows == [[BUDGET[0].title, "64", "goal", "90", "65", "50"]]


def test_the_columns_of_the_budget_tighten() -> None:
    assert all(line.stretch <= line.goal <= line.gate for line in BUDGET)


def test_the_hub_is_compared_with_nginx_by_the_request() -> None:
    all_of_it = found(
        sample("hawse", 64, cpu_s={"hub": 0.04, "relay": 0.03}, requests=1000),
        sample("nginx", 64, cpu_s={"nginx": 0.1}, requests=5000),
    )
    assert hub_to_nginx(all_of_it) == pytest.approx(2.0)
    assert hub_to_nginx(found(sample("hawse", 64))) is None


def test_latency_is_what_comes_on_top_of_direct() -> None:
    all_of_it = found(sample("hawse", 1, p50_ms=0.5), sample("direct", 1, p50_ms=0.2))
    assert added("p50_ms")(all_of_it) == pytest.approx(0.3)
    assert added("p50_ms")(found(sample("hawse", 1, p50_ms=0.5))) is None


def test_a_difference_is_taken_run_by_run() -> None:
    ours = Series(tuple(sample(p50_ms=n) for n in (1.0, 11.0, 2.0)))
    direct = Series(tuple(sample("direct", p50_ms=n) for n in (0.5, 10.0, 1.5)))
    assert difference(ours, direct, "p50_ms") == 0.5


def test_a_download_is_held_against_none() -> None:
    all_of_it = found(sample("hawse", 0, "beside", p99_ms=2.0), sample("hawse", 1, "beside", p99_ms=5.0))
    assert slowed("beside")(all_of_it) == 2.5
    assert slowed("beside-link")(all_of_it) is None


def test_kubectl_is_held_against_itself_without_a_hub() -> None:
    runs = [attrs.evolve(sample("hawse", 1, "kubectl"), notes={"added_ms": ms}) for ms in (1.5, 9.0, 2.0)]
    assert kubectl_longer("kubectl")(found(*runs)) == 2.0
    assert kubectl_longer("kubectl")(found(sample("hawse", 1, "small"))) is None
