"""Stalled readers beside other requests: 50 connections with small requests, and readers that do not read.

`rss_kb_per_stream` is what the stalled streams hold in the system's memory. A system in which one stalled
reader stops the others has no figures: its run fails, and says how many answers never came.
"""

from __future__ import annotations

import time

from benchmarks.accounting import total_rss_kb
from benchmarks.load import Job, Load
from benchmarks.result import Measurement, Sample, milliseconds
from benchmarks.system import System, Upstream
from benchmarks.upstream.apiserver import POD_PATH
from benchmarks.workload import Options, Workload

BODY_BYTES = 256 << 20
CONNECTIONS = 50
# Until every buffer on the way is full.
FILL_S = 1.0


def run(system: System, upstream: Upstream, stalled: int, options: Options) -> Sample:
    endpoint = system.fresh_endpoint()
    requests = Job("requests", endpoint, POD_PATH, CONNECTIONS, options.seconds)
    # Before and after with the same connections up and warm, so that only the stalled ones are between.
    with Load(requests):
        before_kb = sum(total_rss_kb(system.processes).values())
    with Load(Job("stall", endpoint, upstream.body(BODY_BYTES), stalled)):
        time.sleep(FILL_S)
        with Load(requests) as load:
            held_kb = sum(total_rss_kb(system.processes).values()) - before_kb
            load.go()
            report = load.report()
    return Sample(
        Measurement(
            STALLED.name,
            system.name,
            stalled,
            p50_ms=milliseconds(report.latencies_ns, 0.50),
            p99_ms=milliseconds(report.latencies_ns, 0.99),
            rss_kb_per_stream=max(0.0, held_kb / stalled) if system.processes else None,
        ),
        notes={"requests": report.requests},
    )


STALLED = Workload(
    "stalled", f"small requests by {CONNECTIONS} connections beside stalled readers", (1, 16), run
)
WORKLOADS = (STALLED,)
