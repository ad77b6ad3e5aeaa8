from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.system import Endpoint, System, Upstream
from benchmarks.upstream.other import OtherUpstream
from benchmarks.workload import Options
from benchmarks.workloads.exec import QUICK_STARTS, START, sample

UPSTREAM = OtherUpstream(Endpoint("127.0.0.1", 1, Path("ca.pem")))


@contextmanager
def open_nothing(folder: Path, upstream: Upstream) -> Iterator[System]:
    """A system that is the upstream itself. This process is counted in its stead."""
    yield System("nginx", upstream.endpoint, {"nginx": os.getpid()})


def test_starts_are_held_against_starts_straight_to_the_upstream() -> None:
    system = System("nginx", UPSTREAM.endpoint, open_again=open_nothing)
    taken = START.run(system, UPSTREAM, 1, Options(runs=1, quick=True))
    assert (taken.measurement.system, taken.notes["requests"]) == ("nginx", QUICK_STARTS)
    assert "added_ms" in taken.notes
    assert taken.measurement.cpu_us_per_request is not None


def test_what_a_system_adds_is_the_median_of_the_differences() -> None:
    system = System("hawse", UPSTREAM.endpoint, {"hub": 1})
    pairs: list[tuple[int | None, int]] = [(25_000_000, 30_000_000), (9_000_000, 10_000_000)]
    taken = sample("exec-start", system, 1, [*pairs, (17_000_000, 20_000_000)], 0.006, {"hub": 0.006})
    assert taken.measurement.p50_ms == pytest.approx(20.0)
    assert taken.measurement.cpu_us_per_request == pytest.approx(2000.0)
    assert taken.notes["added_ms"] == pytest.approx(3.0)


def test_direct_adds_nothing_to_itself() -> None:
    taken = sample("exec-start", System("direct", UPSTREAM.endpoint), 1, [(None, 1)], 0.0, {})
    assert "added_ms" not in taken.notes
    assert taken.measurement.cpu_us_per_request is None
