"""The memory of idle streams.

`idle` has open watches that send nothing, through the system as it runs: TLS to the client, TLS to the
upstream. `idle-bare` has streams of a Hawse tunnel and nothing around them: a task at either end, over a
plain socket, to compare with tunnels that carry bytes and end no TLS. `idle-tunnels` is in scale.py.

The memory is what the processes have more than with the first BASE streams, by stream; the figure is that of
the dearer of the system's two processes, and the notes have each.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.accounting import CpuMeter, total_rss_kb
from benchmarks.result import Measurement, Sample
from benchmarks.system import System, Upstream
from benchmarks.talk import Talk
from benchmarks.upstream.streams import open_streams
from benchmarks.watching import Watching, slices
from benchmarks.workload import Options, Workload
from benchmarks.workloads.watch import SYSTEMS, opened_again

STREAMS = 6000
QUICK_STREAMS = 100
# The first ones pay for what all share, such as tables and code that runs for the first time.
BASE = 200
SETTLE_S = 1.0
# Below what a session lets wait to be accepted.
SLICE = 1000
# To see what keeping them costs.
IDLE_S = 3.0
RUNS = 3


def run(system: System, upstream: Upstream, streams: int, options: Options) -> Sample:
    """Open the system that has this name once more, and that many watches through it."""
    count = QUICK_STREAMS if options.quick else streams
    with tempfile.TemporaryDirectory(prefix="hawse-bench-idle-") as name:
        folder = Path(name)
        (folder / "upstream").mkdir()
        (folder / system.name).mkdir()
        with (
            open_streams(folder / "upstream") as source,
            opened_again(system, folder / system.name, source) as opened,
            Watching(opened) as watching,
        ):
            watching.open(BASE)
            before = settled_rss_kb(opened.processes)
            watching.open(count)
            after = settled_rss_kb(opened.processes)
            meter = CpuMeter(opened.processes)
            time.sleep(IDLE_S)
            spent = meter.read()
    return sample("idle", system.name, count, before, after, spent)


def run_bare(system: System, upstream: Upstream, streams: int, options: Options) -> Sample:
    """Open that many streams between two processes that have nothing but the tunnel."""
    count = QUICK_STREAMS if options.quick else streams
    with Talk("benchmarks.bare", "listen") as listener:
        port = listener.hear().split()[1]
        with Talk("benchmarks.bare", "dial", port) as dialer:
            processes = {"hub": listener.pid, "relay": dialer.pid}
            listener.ask(f"open {BASE}")
            before = settled_rss_kb(processes)
            for slice_of in slices(count, SLICE):
                listener.ask(f"open {slice_of}")
            after = settled_rss_kb(processes)
            meter = CpuMeter(processes)
            time.sleep(IDLE_S)
            spent = meter.read()
    return sample("idle-bare", "hawse", count, before, after, spent)


def settled_rss_kb(processes: Mapping[str, int]) -> dict[str, int]:
    """The memory by process, once nothing more happens."""
    time.sleep(SETTLE_S)
    return total_rss_kb(processes)


def sample(
    workload: str,
    system: str,
    count: int,
    before: Mapping[str, int],
    after: Mapping[str, int],
    spent: Mapping[str, float],
) -> Sample:
    """What `count` streams more have added to each process, by stream."""
    each = {f"{name}_kb": (after[name] - before[name]) / count for name in after}
    return Sample(
        Measurement(workload, system, count, rss_kb_per_stream=max(each.values())),
        cpu_s=spent,
        notes=each,
    )


TUNNELS_AND_NGINX = SYSTEMS - {"direct", "plain"}
IDLE = Workload(
    "idle",
    "6,000 open watches that send nothing: the memory of each, in the dearer process",
    (STREAMS,),
    run,
    systems=TUNNELS_AND_NGINX,
    runs=RUNS,
)
BARE = Workload(
    "idle-bare",
    "6,000 streams in a tunnel without TLS and HTTP around them",
    (STREAMS,),
    run_bare,
    systems=frozenset({"hawse"}),
    runs=RUNS,
)
WORKLOADS = (IDLE, BARE)
