"""What a request costs: GETs of 2 KB of JSON over 1, 16 and 64 keep-alive connections, closed loop."""

from __future__ import annotations

from benchmarks.load import Job, Load
from benchmarks.meter import measure
from benchmarks.result import Measurement, Sample, milliseconds
from benchmarks.system import System, Upstream
from benchmarks.upstream.apiserver import POD_PATH
from benchmarks.workload import Options, Workload


def run(system: System, upstream: Upstream, connections: int, options: Options) -> Sample:
    job = Job("requests", system.fresh_endpoint(), POD_PATH, connections, options.seconds)
    return run_job("small", job, system, upstream)


def run_job(workload: str, job: Job, system: System, upstream: Upstream) -> Sample:
    """Run a job of small requests, and count what one costs and how long it takes."""
    with Load(job) as load, measure(system, upstream) as costs:
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


SMALL = Workload("small", "GETs of 2 KB over keep-alive connections, closed loop", (1, 16, 64), run)
WORKLOADS = (SMALL,)
