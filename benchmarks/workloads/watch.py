"""Watches with events: the cost of an event, and the time of its delivery.

WATCHES watches are open, and events of 1 KB come to them in one of two ways. Round robin at an even pace: no
two come at once. While events are few that is the dearest case, because both processes wake for each. While
they are many, the processes are awake. Or each event goes to all watches at once, as when an object changes
that all of them watch.
"""

from __future__ import annotations

import http.client
import ssl
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from benchmarks.link.far import TUNNELS
from benchmarks.meter import measure
from benchmarks.result import Measurement, Sample, milliseconds
from benchmarks.system import Endpoint, System, Upstream
from benchmarks.upstream.streams import open_streams
from benchmarks.watching import Watching
from benchmarks.workload import Options, RunFailed, Workload, once

WATCHES = 1000
QUICK_WATCHES = 50
EVENTS_PER_S = 2000
MANY_EVENTS_PER_S = 10_000
CHANGES_PER_S = 4
SECONDS = 3.0
QUICK_SECONDS = 0.5
# Systems that can be opened again, before an upstream that sends events.
SYSTEMS = frozenset({"direct", "nginx", *TUNNELS})
# `plain` has no time for more events than those of `watch`.
FAST = SYSTEMS - {"plain"}


Runs = AbstractContextManager[Callable[[], Sample]]


def in_turn(system: System, upstream: Upstream, watches: int, options: Options) -> Runs:
    """Every event to one of them."""
    return _open_runs(WATCH.name, system, watches, options, EVENTS_PER_S, to_all=False)


def in_turn_and_many(system: System, upstream: Upstream, watches: int, options: Options) -> Runs:
    """Every event to one of them, five times as many."""
    return _open_runs(MANY.name, system, watches, options, MANY_EVENTS_PER_S, to_all=False)


def at_once(system: System, upstream: Upstream, watches: int, options: Options) -> Runs:
    """Every event to all of them."""
    return _open_runs(TO_ALL.name, system, watches, options, CHANGES_PER_S, to_all=True)


@contextmanager
def _open_runs(
    workload: str, system: System, watches: int, options: Options, per_s: int, *, to_all: bool
) -> Iterator[Callable[[], Sample]]:
    """Open the system that has this name once more, before an upstream that sends events."""
    seconds, opening = (
        (QUICK_SECONDS, QUICK_WATCHES) if options.quick else (SECONDS * options.seconds, watches)
    )
    wanted = per_s * seconds * (opening if to_all else 1)

    def measured() -> Sample:
        emit(source.endpoint, per_s, to_all=to_all)
        # The start of the events is not measured.
        watching.listen(seconds / 3)
        with measure(opened, source) as costs:
            took_ns = watching.listen(seconds)
            emit(source.endpoint, 0)
        if len(took_ns) < wanted / 2:
            raise RunFailed(f"{len(took_ns)} events came in {seconds} s, of {wanted:.0f}")
        return Sample(
            Measurement(
                workload,
                system.name,
                watches,
                cpu_us_per_request=costs.own_s * 1e6 / len(took_ns) if opened.processes else None,
                p50_ms=milliseconds(took_ns, 0.50),
                p99_ms=milliseconds(took_ns, 0.99),
            ),
            cpu_s=costs.cpu_s,
            notes={"requests": len(took_ns), "events_per_s": len(took_ns) / seconds},
        )

    with tempfile.TemporaryDirectory(prefix="hawse-bench-watch-") as name:
        folder = Path(name)
        (folder / "upstream").mkdir()
        (folder / system.name).mkdir()
        with (
            open_streams(folder / "upstream") as source,
            opened_again(system, folder / system.name, source) as opened,
            Watching(opened) as watching,
        ):
            watching.open(opening)
            yield measured


def opened_again(system: System, folder: Path, upstream: Upstream) -> AbstractContextManager[System]:
    """The same system once more, before another upstream."""
    assert system.open_again is not None, "the runner has opened it"
    return system.open_again(folder, upstream)


def emit(source: Endpoint, per_s: int, *, to_all: bool = False) -> None:
    """Make the source send so many events a second to the open watches: round robin, or each `to_all`."""
    context = ssl.create_default_context(cafile=str(source.ca))
    connection = http.client.HTTPSConnection(source.host, source.port, timeout=10, context=context)
    try:
        connection.request("GET", f"/emit?per_s={per_s}{'&all' if to_all else ''}")
        connection.getresponse().read()
    finally:
        connection.close()


WATCH = Workload(
    "watch",
    "1,000 watches that get 2,000 events of 1 KB a second in turn; a request is an event here",
    (WATCHES,),
    once(in_turn),
    systems=SYSTEMS,
    open=in_turn,
)
MANY = Workload(
    "watch-many",
    "1,000 watches that get 10,000 events of 1 KB a second in turn; a request is an event here",
    (WATCHES,),
    once(in_turn_and_many),
    systems=FAST,
    open=in_turn_and_many,
)
TO_ALL = Workload(
    "watch-all",
    "1,000 watches that all get each of 4 events of 1 KB a second; a request is an event at one of them",
    (WATCHES,),
    once(at_once),
    systems=FAST,
    open=at_once,
)
WORKLOADS = (WATCH, MANY, TO_ALL)
