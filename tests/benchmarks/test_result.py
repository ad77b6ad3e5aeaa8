"""What several runs say together."""

from __future__ import annotations

import attrs
import pytest

from benchmarks.result import Series, group, milliseconds, quantile, ratio
from tests.benchmarks.samples import KEYS, sample


def test_a_measurement_has_these_keys_and_no_others() -> None:
    assert list(attrs.asdict(sample().measurement)) == KEYS


def test_cpu_is_the_minimum_memory_the_maximum_and_latency_the_median() -> None:
    series = Series(
        tuple(sample(cpu_us=n, p50_ms=n, p99_ms=10 * n, rss_kb=n) for n in (3.0, 1.0, 5.0, 4.0, 2.0))
    )
    line = series.measurement()
    assert (line.cpu_us_per_request, line.rss_kb_per_stream) == (1.0, 5.0)
    assert (line.p50_ms, line.p99_ms) == (3.0, 30.0)
    assert (line.cpu_s_per_gb, line.mb_per_s) == (None, None)
    assert series.median("cpu_us_per_request") == 3.0


def test_a_series_without_a_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="Length"):
        Series(())


def test_samples_are_grouped_by_workload_system_and_variant() -> None:
    samples = [sample("hawse", 1), sample("nginx", 1), sample("hawse", 16), sample("hawse", 1)]
    found = [(each.system, each.variant, len(each.samples)) for each in group(samples)]
    assert found == [("hawse", 1, 2), ("nginx", 1, 1), ("hawse", 16, 1)]


def test_a_ratio_is_of_neighbours_in_time() -> None:
    # The machine became ten times slower after the first run: each pair still says 2.
    ours = Series(tuple(sample(cpu_us=n) for n in (20.0, 200.0, 200.0)))
    nginx = Series(tuple(sample("nginx", cpu_us=n) for n in (10.0, 100.0, 100.0)))
    assert ratio(ours, nginx, "cpu_us_per_request") == 2.0
    assert ratio(ours, nginx, "p50_ms") is None


@pytest.mark.parametrize(
    ("q", "value"), [(0.0, 1), (0.01, 1), (0.5, 50), (0.99, 99), (0.995, 100), (1.0, 100)]
)
def test_a_quantile_is_the_nearest_rank(q: float, value: int) -> None:
    assert quantile(range(1, 101), q) == value


def test_nothing_has_no_quantile() -> None:
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def test_nanoseconds_are_told_in_milliseconds() -> None:
    assert milliseconds([1_000_000, 2_500_000], 0.99) == 2.5


def test_the_cpu_of_a_process_is_that_of_its_cheapest_run() -> None:
    series = Series(
        (sample(cpu_s={"hub": 2.0}, requests=1000), sample(cpu_s={"hub": 2.5}, requests=5000), sample())
    )
    assert series.cpu_of("hub", lambda run: 1e6 / run.notes["requests"]) == 0.0
    two = Series(series.samples[:2])
    assert two.cpu_of("hub", lambda run: 1e6 / run.notes["requests"]) == 500.0
