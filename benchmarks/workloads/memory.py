"""The memory that is left when many watches have gone.

WATCHES watches are opened, get some events, and end: half of them by a close, half by a reset. The memory of
each process is read before them, at the peak, and at each of AFTER_S after their end. Before is after the
start and a warm-up: WARM_UP watches that did the same. The figure is the memory that the larger of the two
processes still holds after the last wait, by watch.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from benchmarks.accounting import CpuMeter, total_rss_kb
from benchmarks.result import Measurement, Sample
from benchmarks.system import System, Upstream
from benchmarks.upstream.streams import open_streams
from benchmarks.watching import Watching
from benchmarks.workload import Options, Workload
from benchmarks.workloads.idle import TUNNELS_AND_NGINX, settled_rss_kb
from benchmarks.workloads.watch import emit, opened_again

WATCHES = 6000
WARM_UP = 200
EVENTS_PER_S = 2000
EVENTS_S = 2.0
# Hub and relay return memory in idle time, at intervals of 10 s: the first time is before that.
AFTER_S = (5.0, 60.0)
QUICK_WATCHES = 100
QUICK_AFTER_S = (0.5, 1.0)
RUNS = 1


@attrs.frozen
class Phases:
    """The memory by process, in KiB, before the watches, with them, and at each time after their end."""

    before: Mapping[str, int]
    peak: Mapping[str, int]
    after: Mapping[float, Mapping[str, int]]
    """By seconds."""


def run(system: System, upstream: Upstream, watches: int, options: Options) -> Sample:
    """Open another system of this kind, and then so many watches that end again."""
    count, waits = (QUICK_WATCHES, QUICK_AFTER_S) if options.quick else (watches, AFTER_S)
    with tempfile.TemporaryDirectory(prefix="hawse-bench-memory-") as name:
        folder = Path(name)
        (folder / "upstream").mkdir()
        (folder / system.name).mkdir()
        with (
            open_streams(folder / "upstream") as source,
            opened_again(system, folder / system.name, source) as opened,
            Watching(opened) as watching,
        ):
            watch_some(watching, source, min(count, WARM_UP))
            watching.end()
            before = settled_rss_kb(opened.processes)
            watch_some(watching, source, count)
            peak = total_rss_kb(opened.processes)
            watching.end()
            meter = CpuMeter(opened.processes)
            after = rss_after(waits, opened.processes)
            spent = meter.read()
    return sample(system.name, count, Phases(before, peak, after), spent)


def watch_some(watching: Watching, source: Upstream, count: int) -> None:
    """Open so many watches, and let them get events."""
    watching.open(count)
    emit(source.endpoint, EVENTS_PER_S)
    watching.listen(EVENTS_S)
    emit(source.endpoint, 0)


def rss_after(waits: Sequence[float], processes: Mapping[str, int]) -> dict[float, dict[str, int]]:
    """The memory by process at each of these times from now, in seconds."""
    start, found = time.monotonic(), {}
    for wait in waits:
        time.sleep(max(0.0, start + wait - time.monotonic()))
        found[wait] = total_rss_kb(processes)
    return found


def sample(system: str, count: int, phases: Phases, spent: Mapping[str, float]) -> Sample:
    """What is left of `count` watches in each process."""
    last = phases.after[max(phases.after)]
    left = {name: (last[name] - phases.before[name]) / count for name in last}
    notes: dict[str, float] = {}
    for name, before in phases.before.items():
        notes[f"{name}_before_mb"] = before / 1024
        notes[f"{name}_peak_mb"] = phases.peak[name] / 1024
        for wait, rss_kb in phases.after.items():
            notes[f"{name}_after_{wait:g}_s_mb"] = rss_kb[name] / 1024
        notes[f"{name}_after_over_before"] = last[name] / before
    return Sample(
        Measurement("memory", system, count, rss_kb_per_stream=max(left.values())), cpu_s=spent, notes=notes
    )


MEMORY = Workload(
    "memory",
    "6,000 watches that get some events and end: the memory that is left of each a minute later",
    (WATCHES,),
    run,
    systems=TUNNELS_AND_NGINX,
    runs=RUNS,
)
WORKLOADS = (MEMORY,)
