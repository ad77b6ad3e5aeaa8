"""Keys typed into an exec session: how long a key takes to come back, and what it costs.

The real protocol, v5.channel.k8s.io over a WebSocket, from the client to a container's stdin and back from
its stdout; the upstream echoes its input. The keys come one at a time, so each wakes every process on the
way: the dearest way to send a byte.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from benchmarks.meter import measure
from benchmarks.result import Measurement, Sample, milliseconds
from benchmarks.system import System, Upstream
from benchmarks.talk import Talk
from benchmarks.upstream.apiserver import POD_PATH
from benchmarks.upstream.streams import open_streams
from benchmarks.workload import Options, Workload, once
from benchmarks.workloads.watch import SYSTEMS as WATCHED
from benchmarks.workloads.watch import opened_again

PATH = f"{POD_PATH}/exec?command=sh&container=main&stdin=true&stdout=true&tty=true"
KEYS = 400
QUICK_KEYS = 20
# Faster than a person types. A longer sleep would measure cold caches.
PAUSE_S = 0.005
# `plain` upgrades no connection.
SYSTEMS = WATCHED - {"plain"}


@contextmanager
def open_runs(
    system: System, upstream: Upstream, sessions: int, options: Options
) -> Iterator[Callable[[], Sample]]:
    """Open the system that has this name once more, before an echo, and a session through it."""
    count = QUICK_KEYS if options.quick else int(KEYS * min(1.0, options.seconds))

    def measured() -> Sample:
        with measure(opened, echo) as costs:
            took_ns = sorted(json.loads(typist.ask("go")))
        return Sample(
            Measurement(
                "exec",
                system.name,
                sessions,
                cpu_us_per_request=costs.own_s * 1e6 / count if opened.processes else None,
                p50_ms=milliseconds(took_ns, 0.50),
                p99_ms=milliseconds(took_ns, 0.99),
            ),
            cpu_s=costs.cpu_s,
            notes={"requests": count},
        )

    with tempfile.TemporaryDirectory(prefix="hawse-bench-exec-") as name:
        folder = Path(name)
        (folder / "upstream").mkdir()
        (folder / system.name).mkdir()
        with (
            open_streams(folder / "upstream") as echo,
            opened_again(system, folder / system.name, echo) as opened,
            Talk("benchmarks.keystrokes") as typist,
        ):
            endpoint = attrs.asdict(opened.fresh_endpoint())
            job = {"endpoint": endpoint, "path": PATH, "count": count, "pause_s": PAUSE_S}
            typist.ask(json.dumps(job, default=str))
            yield measured


EXEC = Workload(
    "exec",
    "keys typed into an exec session over v5.channel.k8s.io, and their echo; a request is a key here",
    (1,),
    once(open_runs),
    systems=SYSTEMS,
    open=open_runs,
)
WORKLOADS = (EXEC,)
