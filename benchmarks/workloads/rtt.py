"""A long way: what one stream gets of a link of 100 Mbit/s at 20 and 150 ms, and how long a small GET takes.

The link (benchmarks.link) is between the two ends of each tunnel, and each run opens the system again around
a link of its own. A download takes ROUND_TRIPS at least, so that its beginning, when windows are still small,
weighs little. A GET over a kept connection takes one round trip; what it takes beyond is the system's.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.link.far import MBIT_PER_S, NAMES, open_far
from benchmarks.load import Job, Load, Report
from benchmarks.meter import measure
from benchmarks.result import Measurement, Sample, milliseconds
from benchmarks.system import System, Upstream
from benchmarks.upstream.apiserver import POD_PATH
from benchmarks.workload import Options, Workload

LINK_BYTES_PER_S = MBIT_PER_S * 1e6 / 8
ROUND_TRIPS = 50
LEAST_S = 4.0
QUICK_S = 1.0
GETS = 40
# The way is so long that nothing else makes them differ.
RUNS = 3


def run(system: System, upstream: Upstream, rtt_ms: int, options: Options) -> Sample:
    """Open the system that has this name once more, behind a link of `rtt_ms`, and use it."""
    with tempfile.TemporaryDirectory(prefix="hawse-bench-rtt-") as folder:
        with open_far(system.name, Path(folder), upstream, rtt_ms) as far:
            endpoint = far.fresh_endpoint()
            small = load_of(Job("requests", endpoint, POD_PATH, 1, GETS * rtt_ms / 1000))
            body = upstream.body(download_bytes(rtt_ms, quick=options.quick))
            with Load(Job("download", endpoint, body)) as load, measure(far, upstream) as costs:
                load.go()
                report = load.report()
    gigabytes = report.transferred / 1e9
    mb_per_s = report.transferred / 1e6 / report.wall_s
    return Sample(
        Measurement(
            "rtt",
            system.name,
            rtt_ms,
            cpu_s_per_gb=costs.own_s / gigabytes if far.processes else None,
            p50_ms=milliseconds(small.latencies_ns, 0.50),
            p99_ms=milliseconds(small.latencies_ns, 0.99),
            mb_per_s=mb_per_s,
        ),
        cpu_s={**costs.cpu_s, "load": report.cpu_s},
        notes={"gigabytes": gigabytes, "share_of_link": mb_per_s * 8 / MBIT_PER_S},
    )


def download_bytes(rtt_ms: int, *, quick: bool) -> int:
    """What the link carries in the time that a download should take at least."""
    return int(LINK_BYTES_PER_S * (QUICK_S if quick else max(LEAST_S, ROUND_TRIPS * rtt_ms / 1000)))


def load_of(job: Job) -> Report:
    """Run a job from its beginning to its end."""
    with Load(job) as load:
        load.go()
        return load.report()


RTT = Workload(
    "rtt",
    "one download and a small GET over a link of 100 Mbit/s with a round trip of 20 or 150 ms",
    (20, 150),
    run,
    systems=NAMES,
    runs=RUNS,
)
WORKLOADS = (RTT,)
