"""How figures are found and written."""

from __future__ import annotations

import pytest

from benchmarks.figures import brief
from tests.benchmarks.samples import found, sample


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (0.0, "0"),
        (0.03456, "0.0346"),
        (2.0, "2"),
        (16.77, "16.8"),
        (99.96, "100"),
        (1234.5, "1,234"),
        (-0.5, "-0.5"),
    ],
)
def test_numbers_are_brief_and_without_exponents(value: float | None, text: str) -> None:
    assert brief(value) == text


def test_series_are_found_by_name_and_beside_one_another() -> None:
    all_of_it = found(sample("hawse", 1), sample("nginx", 1), sample("hawse", 1, "other", p50_ms=1))
    ours = all_of_it.get("small", "hawse", 1)
    assert ours is not None
    assert all_of_it.beside(ours, "nginx") is all_of_it.get("small", "nginx", 1)
    assert all_of_it.beside(ours, "ssh") is None
    assert all_of_it.workloads() == ["small", "other"]
    assert len(all_of_it.of("small")) == 2


def test_a_workload_has_the_figures_that_any_of_its_systems_has() -> None:
    all_of_it = found(sample("direct", p50_ms=1), sample("hawse", cpu_us=60, p50_ms=2))
    assert [figure.name for figure in all_of_it.figures("small")] == ["cpu_us_per_request", "p50_ms"]
