"""What a request costs: GETs of 2 KB of JSON over 1, 16 and 64 keep-alive connections, closed loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.load import Job, Load
from benchmarks.meter import measure
from benchmarks.result import Measurement, Sample, milliseconds
from benchmarks.system import System, Upstream
from benchmarks.upstream.apiserver import POD_PATH
from benchmarks.workload import Options, Workload, once


@contextmanager
def open_runs(
    system: System, upstream: Upstream, connections: int, options: Options
) -> Iterator[Callable[[], Sample]]:
    job = Job("requests", system.fresh_endpoint(), POD_PATH, connections, options.seconds)
    with open_job("small", job, system, upstream) as measured:
        yield measured


@contextmanager
def open_job(workload: str, job: Job, system: System, upstream: Upstream) -> Iterator[Callable[[], Sample]]:
    """Yield a run of small requests, which counts what one costs and how long it takes."""

    def measured() -> Sample:
        with measure(system, upstream) as costs:
            load.go()
            report = load.report()
        return Sample(
            Measurement(
                workload,
                system.name,
                job.connections,
                cpu_us_per_request=costs.own_s * 1e6 / report.requests if system.processes else None,
                p50_ms=milliseconds(report.latencies_ns, 0.50),
                p99_ms=milliseconds(report.latencies_ns, 0.99),
            ),
            cpu_s={**costs.cpu_s, "load": report.cpu_s},
            notes={"requests": report.requests, "requests_per_s": report.requests / report.wall_s},
        )

    with Load(job) as load:
        yield measured


SMALL = Workload(
    "small",
    "GETs of 2 KB over keep-alive connections, closed loop",
    (1, 16, 64),
    once(open_runs),
    open=open_runs,
)
WORKLOADS = (SMALL,)
