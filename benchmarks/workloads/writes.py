"""What a small write costs: PUTs of 1 KB over 1 and 64 keep-alive connections, closed loop.

The upstream has read the whole body before it answers. Hawse has the intent of each write durable in its
audit trail before it forwards the request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.load import Job
from benchmarks.result import Sample
from benchmarks.system import System, Upstream
from benchmarks.upstream.apiserver import WRITE_PATH
from benchmarks.workload import Options, Workload, once
from benchmarks.workloads.small import open_job

BODY_BYTES = 1024


@contextmanager
def open_runs(
    system: System, upstream: Upstream, connections: int, options: Options
) -> Iterator[Callable[[], Sample]]:
    job = Job("requests", system.fresh_endpoint(), WRITE_PATH, connections, options.seconds, size=BODY_BYTES)
    with open_job("writes", job, system, upstream) as measured:
        yield measured


WRITES = Workload(
    "writes",
    "PUTs of 1 KB over keep-alive connections, closed loop",
    (1, 64),
    once(open_runs),
    open=open_runs,
)
WORKLOADS = (WRITES,)
