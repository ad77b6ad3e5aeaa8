"""What a small write costs: PUTs of 1 KB over 1 and 64 keep-alive connections, closed loop.

The upstream has read the whole body before it answers. Hawse has the intent of each write durable in its
audit trail before it forwards the request. In `mixed`, one request of ten is a write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.load import Job
from benchmarks.result import Sample
from benchmarks.system import System, Upstream
from benchmarks.upstream.apiserver import WRITE_PATH
from benchmarks.workload import OpenRuns, Options, Workload, once
from benchmarks.workloads.small import open_job

BODY_BYTES = 1024
# As a controller that reads 50 times and writes five times a second.
MIXED_WRITE_EVERY = 10


def _opening(name: str, write_every: int) -> OpenRuns:
    @contextmanager
    def open_runs(
        system: System, upstream: Upstream, connections: int, options: Options
    ) -> Iterator[Callable[[], Sample]]:
        endpoint = system.fresh_endpoint()
        job = Job(
            "requests",
            endpoint,
            WRITE_PATH,
            connections,
            options.seconds,
            size=BODY_BYTES,
            write_every=write_every,
        )
        with open_job(name, job, system, upstream) as measured:
            yield measured

    return open_runs


def _workload(name: str, title: str, variants: tuple[int, ...], write_every: int) -> Workload:
    opening = _opening(name, write_every)
    return Workload(name, title, variants, once(opening), open=opening)


WRITES = _workload("writes", "PUTs of 1 KB over keep-alive connections, closed loop", (1, 64), 1)
MIXED = _workload(
    "mixed",
    "nine GETs and a PUT of 1 KB in turn over keep-alive connections, closed loop",
    (64,),
    MIXED_WRITE_EVERY,
)
WORKLOADS = (WRITES, MIXED)
