"""What a new connection costs: a TCP connection, a full TLS handshake, a GET of 2 KB, and the end.

Each start of kubectl makes such a connection, for one or two requests. No TLS session is resumed, as kubectl
keeps none from one start to the next. 1 and 16 of them are under way at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.load import Job
from benchmarks.result import Sample
from benchmarks.system import System, Upstream
from benchmarks.upstream.apiserver import POD_PATH
from benchmarks.workload import Options, Workload, once
from benchmarks.workloads.small import open_job


@contextmanager
def open_runs(
    system: System, upstream: Upstream, at_once: int, options: Options
) -> Iterator[Callable[[], Sample]]:
    job = Job("connections", system.fresh_endpoint(), POD_PATH, at_once, options.seconds)
    with open_job("starts-connections", job, system, upstream) as measured:
        yield measured


CONNECTIONS = Workload(
    "starts-connections",
    "GETs of 2 KB, each over a TLS connection of its own, as each start of kubectl makes one",
    (1, 16),
    once(open_runs),
    open=open_runs,
)
