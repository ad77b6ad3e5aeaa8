"""Workloads against nginx alone and behind nginx: that they count what they say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.system import System
from benchmarks.systems.direct import open_direct
from benchmarks.systems.nginx import open_nginx
from benchmarks.systems.plain import open_plain
from benchmarks.upstream.apiserver import ApiServer
from benchmarks.workload import Options, Workload
from benchmarks.workloads import beside, bulk, connections, rate, small, stalled, writes

QUICK = Options(runs=1, seconds=0.1, quick=True)


@pytest.fixture(scope="module")
def nginx(apiserver: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with open_nginx(tmp_path_factory.mktemp("nginx"), apiserver) as system:
        yield system


@pytest.fixture
def direct(apiserver: ApiServer, tmp_path: Path) -> Iterator[System]:
    with open_direct(tmp_path, apiserver) as system:
        yield system


def test_a_small_request_costs_the_proxy_some_microseconds(nginx: System, apiserver: ApiServer) -> None:
    sample = small.SMALL.run(nginx, apiserver, 16, QUICK)
    line = sample.measurement
    assert (line.workload, line.system, line.variant) == ("small", "nginx", 16)
    assert line.cpu_us_per_request is not None
    assert line.cpu_us_per_request == pytest.approx(sample.cpu_s["nginx"] * 1e6 / sample.notes["requests"])
    assert 1 < line.cpu_us_per_request < 1000
    assert line.p50_ms is not None
    assert line.p99_ms is not None
    assert 0 < line.p50_ms <= line.p99_ms
    assert set(sample.cpu_s) == {"nginx", "upstream", "load"}


@pytest.mark.parametrize("workload", [*writes.WORKLOADS, connections.CONNECTIONS], ids=lambda each: each.name)
def test_writes_and_new_connections_are_counted_as_small_requests_are(
    nginx: System, apiserver: ApiServer, workload: Workload
) -> None:
    sample = workload.run(nginx, apiserver, workload.variants[-1], QUICK)
    line = sample.measurement
    assert (line.workload, line.system, line.variant) == (workload.name, "nginx", workload.variants[-1])
    assert line.cpu_us_per_request == pytest.approx(sample.cpu_s["nginx"] * 1e6 / sample.notes["requests"])
    assert line.p50_ms is not None
    assert set(sample.cpu_s) == {"nginx", "upstream", "load"}


@pytest.mark.parametrize("per_second", rate.RATE.variants)
def test_clients_at_a_rate_are_served_and_counted(
    nginx: System, apiserver: ApiServer, per_second: int
) -> None:
    sample = rate.RATE.run(nginx, apiserver, per_second, QUICK)
    line = sample.measurement
    assert (line.workload, line.variant, sample.notes["served"]) == (
        "starts-rate",
        per_second,
        rate.QUICK_COUNT,
    )
    assert line.cpu_us_per_request == pytest.approx(sample.cpu_s["nginx"] * 1e6 / rate.QUICK_COUNT)
    assert line.p50_ms is not None


def test_a_small_write_arrives(nginx: System, apiserver: ApiServer) -> None:
    writes.WRITES.run(nginx, apiserver, 1, QUICK)
    assert (apiserver.memory / "sink" / "0").stat().st_size == writes.BODY_BYTES


def test_what_has_no_processes_has_no_cpu_time(direct: System, apiserver: ApiServer) -> None:
    line = small.SMALL.run(direct, apiserver, 1, QUICK).measurement
    assert line.cpu_us_per_request is None
    assert line.p50_ms is not None


def test_the_plain_tunnel_carries_small_requests_and_bytes_both_ways(
    apiserver: ApiServer, tmp_path: Path
) -> None:
    requests, bytes_ = (small.SMALL, writes.WRITES), bulk.WORKLOADS
    with open_plain(tmp_path, apiserver) as plain:
        samples = [workload.run(plain, apiserver, 4, QUICK) for workload in (*requests, *bytes_)]
    assert all(sample.cpu_s["hub"] > 0 < sample.cpu_s["relay"] for sample in samples)
    assert all(sample.measurement.cpu_us_per_request is not None for sample in samples[:2])
    assert all(sample.measurement.cpu_s_per_gb is not None for sample in samples[2:])


def test_runs_are_repeated_over_open_connections_and_counted_apart(
    nginx: System, apiserver: ApiServer
) -> None:
    for workload in (small.SMALL, writes.WRITES, *bulk.WORKLOADS):
        assert workload.open is not None
        with workload.open(nginx, apiserver, 4, QUICK) as measured:
            first, second = measured(), measured()
        for sample in (first, second):
            assert sample.measurement.workload == workload.name
            assert 0 < sample.cpu_s["nginx"] < 5
        if workload in bulk.WORKLOADS:
            assert first.notes == second.notes == {"gigabytes": bulk.QUICK_BYTES / 1e9}


@pytest.mark.parametrize("streams", [1, 32])
def test_bytes_are_counted_down_and_up(nginx: System, apiserver: ApiServer, streams: int) -> None:
    for workload in bulk.WORKLOADS:
        sample = workload.run(nginx, apiserver, streams, QUICK)
        assert sample.measurement.workload == workload.name
        assert sample.notes["gigabytes"] == bulk.QUICK_BYTES / 1e9
        assert sample.measurement.cpu_s_per_gb is not None
        assert 0.01 < sample.measurement.cpu_s_per_gb < 100
        assert sample.measurement.mb_per_s is not None


def test_requests_are_measured_beside_downloads(nginx: System, apiserver: ApiServer) -> None:
    alone = beside.BESIDE.run(nginx, apiserver, 0, QUICK)
    assert alone.measurement.mb_per_s is None
    for workload in (beside.BESIDE, beside.PACED):
        sample = workload.run(nginx, apiserver, 4, QUICK)
        assert sample.measurement.p99_ms is not None
        assert sample.measurement.mb_per_s is not None
        assert sample.measurement.mb_per_s > 0


def test_stalled_readers_do_not_stop_nginx(
    nginx: System, apiserver: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stalled, "FILL_S", 0.05)
    monkeypatch.setattr(stalled, "BODY_BYTES", 32 << 20)
    sample = stalled.STALLED.run(nginx, apiserver, 2, QUICK)
    assert sample.measurement.p99_ms is not None
    assert sample.measurement.rss_kb_per_stream is not None
