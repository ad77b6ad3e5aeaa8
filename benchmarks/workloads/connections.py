"""What a new connection costs: a TCP connection, a full TLS handshake, a GET of 2 KB, and the end.

Each start of kubectl makes such a connection, for one or two requests. No TLS session is resumed, as kubectl
keeps none from one start to the next. 1 and 16 of them are under way at a time.
"""

from __future__ import annotations

from benchmarks.load import Job
from benchmarks.result import Sample
from benchmarks.system import System, Upstream
from benchmarks.upstream.apiserver import POD_PATH
from benchmarks.workload import Options, Workload
from benchmarks.workloads.small import run_job


def run(system: System, upstream: Upstream, at_once: int, options: Options) -> Sample:
    job = Job("connections", system.fresh_endpoint(), POD_PATH, at_once, options.seconds)
    return run_job("connections", job, system, upstream)


CONNECTIONS = Workload(
    "connections",
    "GETs of 2 KB, each over a TLS connection of its own, as each start of kubectl makes one",
    (1, 16),
    run,
)
WORKLOADS = (CONNECTIONS,)
