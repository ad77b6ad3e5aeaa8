"""Keys typed into an exec session: how long a key takes to come back, and what it costs.

The real protocol, v5.channel.k8s.io over a WebSocket, from the client to a container's stdin and back from
its stdout; the upstream echoes its input. The keys come one at a time, so each wakes every process on the
way: the dearest way to send a byte.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import attrs

from benchmarks.meter import measure
from benchmarks.result import Measurement, Sample, milliseconds
from benchmarks.system import System, Upstream
from benchmarks.talk import Talk
from benchmarks.upstream.streams import open_streams
from benchmarks.workload import Options, Workload
from benchmarks.workloads.watch import SYSTEMS as WATCHED
from benchmarks.workloads.watch import opened_again

PATH = "/api/v1/namespaces/work/pods/workbench/exec?command=sh&container=main&stdin=true&stdout=true&tty=true"
KEYS = 400
QUICK_KEYS = 20
# Faster than a person types. A longer sleep would measure cold caches.
PAUSE_S = 0.005
# Neither nginx, as it is set up for the other workloads, nor `plain` upgrades a connection.
SYSTEMS = WATCHED - {"nginx", "plain"}


def run(system: System, upstream: Upstream, sessions: int, options: Options) -> Sample:
    """Open the system that has this name once more, before an echo, and type."""
    count = QUICK_KEYS if options.quick else KEYS
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


EXEC = Workload(
    "exec",
    "keys typed into an exec session over v5.channel.k8s.io, and their echo; a request is a key here",
    (1,),
    run,
    systems=SYSTEMS,
)
WORKLOADS = (EXEC,)
