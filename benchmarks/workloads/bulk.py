"""What a byte costs: bodies of a quarter of a GiB in all, by 1 and by 32 streams, down and up."""

from __future__ import annotations

from typing import Literal

from benchmarks.load import Job, Load
from benchmarks.meter import measure
from benchmarks.result import Measurement, Sample
from benchmarks.system import System, Upstream
from benchmarks.workload import Options, RunFailed, Workload

MIB = 1 << 20
TOTAL_BYTES = 256 * MIB
QUICK_BYTES = 32 * MIB
# Bodies a stream, so that the first and last moments of each (heads, windows that open) weigh little.
BODIES = 4


def run(
    kind: Literal["download", "upload"], system: System, upstream: Upstream, streams: int, options: Options
) -> Sample:
    size = (QUICK_BYTES if options.quick else TOTAL_BYTES) // streams // BODIES
    path = upstream.body(size) if kind == "download" else "/sink/body"
    job = Job(kind, system.fresh_endpoint(), path, streams, bodies=BODIES, size=size)
    with Load(job) as load, measure(system, upstream) as costs:
        load.go()
        report = load.report()
    if report.transferred != streams * BODIES * size:
        raise RunFailed(f"{report.transferred} bytes came, not {streams * BODIES * size}")
    return Sample(
        Measurement(
            DOWN.name if kind == "download" else UP.name,
            system.name,
            streams,
            cpu_s_per_gb=costs.own_s * 1e9 / report.transferred if system.processes else None,
            mb_per_s=report.transferred / 1e6 / report.wall_s,
        ),
        cpu_s={**costs.cpu_s, "load": report.cpu_s},
        notes={"gigabytes": report.transferred / 1e9},
    )


def download(system: System, upstream: Upstream, streams: int, options: Options) -> Sample:
    return run("download", system, upstream, streams, options)


def upload(system: System, upstream: Upstream, streams: int, options: Options) -> Sample:
    return run("upload", system, upstream, streams, options)


DOWN = Workload(
    "bulk", "a quarter of a GiB down (and, as `bulk-up`, up) in parallel streams", (1, 32), download
)
UP = Workload("bulk-up", "a quarter of a GiB up in parallel streams", (1, 32), upload)
WORKLOADS = (DOWN, UP)
