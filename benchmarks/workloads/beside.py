"""What a download does to others: small requests by one connection while 0, 1 and 4 streams download.

`beside` lets the downloads take what they can get, `beside-paced` has the upstream hold them at 80 MB/s
together. Without a stream it is the latency that the other variants are compared with. The requests come
from another client process than the downloads, and on few cores everyone waits for one as well: that is in
all of the figures, those of `direct` too.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.load import Job, Load
from benchmarks.result import Measurement, Sample, milliseconds
from benchmarks.system import System, Upstream
from benchmarks.upstream.apiserver import POD_PATH
from benchmarks.workload import Options, Workload

BODY_BYTES = 64 << 20
# The upstream paces streams, not their sum.
PACED_MB_PER_S = 80
# A p99 needs some hundreds of requests even where each takes milliseconds.
SECONDS_MIN = 2.0


def run(
    workload: Workload, system: System, upstream: Upstream, streams: int, rate: str, options: Options
) -> Sample:
    endpoint = system.fresh_endpoint()
    seconds = options.seconds if options.quick else max(SECONDS_MIN, options.seconds)
    requests = Job("requests", endpoint, POD_PATH, 1, seconds)
    # The warm-up is one body, which a paced stream takes a second for.
    size = (PACED_MB_PER_S * 10**6 // streams) if rate else BODY_BYTES
    with ExitStack() as stack:
        beside = None
        if streams:
            download = Job("download", endpoint, f"{upstream.body(size)}{rate}", streams, bodies=0)
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


def saturating(system: System, upstream: Upstream, streams: int, options: Options) -> Sample:
    return run(BESIDE, system, upstream, streams, "", options)


def paced(system: System, upstream: Upstream, streams: int, options: Options) -> Sample:
    rate = f"?rate={PACED_MB_PER_S * 10**6 // streams}"
    return run(PACED, system, upstream, streams, rate, options)


BESIDE = Workload(
    "beside", "small requests beside downloads that take all they can get", (0, 1, 4), saturating
)
PACED = Workload("beside-paced", f"small requests beside {PACED_MB_PER_S} MB/s of downloads", (4,), paced)
WORKLOADS = (BESIDE, PACED)
