"""What a byte costs: bodies of a quarter of a GiB in all, by 1 and by 32 streams, down and up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

from benchmarks.load import Job, Load
from benchmarks.meter import measure
from benchmarks.result import Measurement, Sample
from benchmarks.system import System, Upstream
from benchmarks.workload import Options, RunFailed, Workload, once

MIB = 1 << 20
TOTAL_BYTES = 256 * MIB
QUICK_BYTES = 32 * MIB
# Bodies a stream, so that the first and last moments of each (heads, windows that open) weigh little.
BODIES = 4


@contextmanager
def open_runs(
    kind: Literal["download", "upload"], system: System, upstream: Upstream, streams: int, options: Options
) -> Iterator[Callable[[], Sample]]:
    total = QUICK_BYTES if options.quick else int(TOTAL_BYTES * min(1.0, options.seconds))
    size = total // streams // BODIES
    path = upstream.body(size) if kind == "download" else "/sink/body"
    job = Job(kind, system.fresh_endpoint(), path, streams, bodies=BODIES, size=size)

    def measured() -> Sample:
        with measure(system, upstream) as costs:
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

    with Load(job) as load:
        yield measured


Runs = AbstractContextManager[Callable[[], Sample]]


def open_downloads(system: System, upstream: Upstream, streams: int, options: Options) -> Runs:
    return open_runs("download", system, upstream, streams, options)


def open_uploads(system: System, upstream: Upstream, streams: int, options: Options) -> Runs:
    return open_runs("upload", system, upstream, streams, options)


DOWN = Workload(
    "bulk",
    "a quarter of a GiB down (and, as `bulk-up`, up) in parallel streams",
    (1, 32),
    once(open_downloads),
    open=open_downloads,
)
UP = Workload(
    "bulk-up",
    "a quarter of a GiB up in parallel streams",
    (1, 32),
    once(open_uploads),
    open=open_uploads,
)
WORKLOADS = (DOWN, UP)
