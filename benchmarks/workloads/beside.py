"""What a download does to others: small requests by one connection while 0, 1 and 4 streams download.

Three things can limit the downloads. `beside` lets them take all of the machine: with few cores every process
then waits for a core, and all figures include that, those of `direct` too. `beside-paced`
has the upstream hold them at 80 MB/s together. `beside-link` has a link of 100 Mbit/s and 20 ms between hub
and relay, which they fill: what a request then waits for is what the system has queued before it. The variant
without a stream is what the others are compared with. Requests and downloads are of separate processes.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.link.far import NAMES, open_far
from benchmarks.load import Job, Load
from benchmarks.result import Measurement, Sample, milliseconds
from benchmarks.system import System, Upstream
from benchmarks.upstream.apiserver import POD_PATH
from benchmarks.upstream.paced import paced_path
from benchmarks.workload import Options, Workload

BODY_BYTES = 64 << 20
PACED_MB_PER_S = 80
LINK_RTT_MS = 20
# On the link a request takes a round trip, so that it takes longer to have hundreds of them.
LINK_SECONDS_MIN = 6.0
# A third of a second of the link; it is downloaded over and over.
LINK_BODY_BYTES = 4 << 20
# A p99 needs some hundreds of requests even where each takes milliseconds.
SECONDS_MIN = 2.0


def run(workload: Workload, system: System, path: str, streams: int, seconds: float) -> Sample:
    """Requests for so long beside so many endless downloads of `path`."""
    endpoint = system.fresh_endpoint()
    requests = Job("requests", endpoint, POD_PATH, 1, seconds)
    with ExitStack() as stack:
        beside = None
        if streams:
            download = Job("download", endpoint, path, streams, bodies=0)
            beside = stack.enter_context(Load(download))
            beside.go()
        load = stack.enter_context(Load(requests))
        load.go()
        report = load.report()
        taken = beside.stop() if beside is not None else None
    return Sample(
        Measurement(
            workload.name,
            system.name,
            streams,
            p50_ms=milliseconds(report.latencies_ns, 0.50),
            p99_ms=milliseconds(report.latencies_ns, 0.99),
            mb_per_s=taken.transferred / 1e6 / taken.wall_s if taken is not None else None,
        ),
        notes={"requests": report.requests},
    )


def seconds_of(options: Options, least: float) -> float:
    return options.seconds if options.quick else max(least, options.seconds)


def saturating(system: System, upstream: Upstream, streams: int, options: Options) -> Sample:
    return run(BESIDE, system, upstream.body(BODY_BYTES), streams, seconds_of(options, SECONDS_MIN))


def paced(system: System, upstream: Upstream, streams: int, options: Options) -> Sample:
    # The upstream paces streams, not their sum. The warm-up is one body: a second of it.
    rate = PACED_MB_PER_S * 10**6 // streams
    return run(PACED, system, paced_path(rate, rate), streams, seconds_of(options, SECONDS_MIN))


def linked(system: System, upstream: Upstream, streams: int, options: Options) -> Sample:
    """Open the system that has this name once more, with the link in its way."""
    with tempfile.TemporaryDirectory(prefix="hawse-bench-beside-") as folder:
        with open_far(system.name, Path(folder), upstream, LINK_RTT_MS) as far:
            path = upstream.body(LINK_BODY_BYTES)
            return run(LINKED, far, path, streams, seconds_of(options, LINK_SECONDS_MIN))


BESIDE = Workload(
    "beside", "small requests beside downloads that take all they can get", (0, 1, 4), saturating
)
PACED = Workload("beside-paced", f"small requests beside {PACED_MB_PER_S} MB/s of downloads", (4,), paced)
LINKED = Workload(
    "beside-link",
    f"small requests beside downloads that fill a link of 100 Mbit/s and {LINK_RTT_MS} ms",
    (0, 1, 4),
    linked,
    systems=NAMES,
)
WORKLOADS = (BESIDE, PACED, LINKED)
