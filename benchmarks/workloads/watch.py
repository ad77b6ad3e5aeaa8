"""Watches that are not silent: what an event costs, and how long it is under way.

WATCHES watches are open, and events of 1 KB come to them in turn, evenly: none is for all of them, and no two
are there at once by themselves. That is the dearest way to get them.
"""

from __future__ import annotations

import http.client
import ssl
import tempfile
from pathlib import Path

from benchmarks.link.far import TUNNELS
from benchmarks.meter import measure
from benchmarks.result import Measurement, Sample, milliseconds
from benchmarks.system import Endpoint, OpenSystem, System, Upstream
from benchmarks.systems.direct import open_direct
from benchmarks.systems.nginx import open_nginx
from benchmarks.upstream.streams import open_streams
from benchmarks.watching import Watching
from benchmarks.workload import Options, RunFailed, Workload

WATCHES = 1000
QUICK_WATCHES = 50
EVENTS_PER_S = 2000
SECONDS = 3.0
QUICK_SECONDS = 0.5
OPENERS: dict[str, OpenSystem] = {"direct": open_direct, "nginx": open_nginx, **TUNNELS}


def run(system: System, upstream: Upstream, watches: int, options: Options) -> Sample:
    """Open the system that has this name once more, before an upstream that sends events."""
    seconds = QUICK_SECONDS if options.quick else SECONDS
    with tempfile.TemporaryDirectory(prefix="hawse-bench-watch-") as name:
        folder = Path(name)
        (folder / "upstream").mkdir()
        (folder / system.name).mkdir()
        with (
            open_streams(folder / "upstream") as source,
            OPENERS[system.name](folder / system.name, source) as opened,
            Watching(opened) as watching,
        ):
            watching.open(QUICK_WATCHES if options.quick else watches)
            emit(source.endpoint, EVENTS_PER_S)
            # The first second is the start of it.
            watching.listen(seconds / 3)
            with measure(opened, source) as costs:
                took_ns = watching.listen(seconds)
                emit(source.endpoint, 0)
    if len(took_ns) < EVENTS_PER_S * seconds / 2:
        raise RunFailed(f"{len(took_ns)} events came in {seconds} s, of {EVENTS_PER_S} a second")
    return Sample(
        Measurement(
            "watch",
            system.name,
            watches,
            cpu_us_per_request=costs.own_s * 1e6 / len(took_ns) if opened.processes else None,
            p50_ms=milliseconds(took_ns, 0.50),
            p99_ms=milliseconds(took_ns, 0.99),
        ),
        cpu_s=costs.cpu_s,
        notes={"requests": len(took_ns), "events_per_s": len(took_ns) / seconds},
    )


def emit(source: Endpoint, per_s: int) -> None:
    """Have the source send so many events a second, to all who watch by now."""
    context = ssl.create_default_context(cafile=str(source.ca))
    connection = http.client.HTTPSConnection(source.host, source.port, timeout=10, context=context)
    try:
        connection.request("GET", f"/emit?per_s={per_s}")
        connection.getresponse().read()
    finally:
        connection.close()


WATCH = Workload(
    "watch",
    "1,000 watches that get 2,000 events of 1 KB a second in turn; a request is an event here",
    (WATCHES,),
    run,
    systems=frozenset(OPENERS),
)
WORKLOADS = (WATCH,)
