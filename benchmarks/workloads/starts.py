"""How long a relay takes from the start of its process until the hub has its tunnel.

The relay joins the cluster of a hub that is up, beside its first relay, and is ended again. It starts as in
an image: the modules' bytecode is there, and so are its files in the page cache. p50_ms is the time until it
logs that the tunnel is up. The CPU time is all that the relay has used by then. `python_ms` is the start and
end of the bare interpreter in the same minute, and `loop_ms` that of one which imports trio and ssl.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from benchmarks.accounting import cpu_s
from benchmarks.result import Measurement, Sample, milliseconds
from benchmarks.system import System, Upstream
from benchmarks.systems.hawse import Enrolled, enrolled
from benchmarks.workload import Options, RunFailed, Workload

STARTS: Final = 10
QUICK_STARTS: Final = 2
# A start takes 0.3 s. A relay that takes this long hangs, and is ended.
DEADLINE_S: Final = 30.0
UP: Final = b" is up, session "
# A name of its own: the hub would close the tunnel of another relay with the same one.
INSTANCE: Final = "starts"


def run(system: System, upstream: Upstream, variant: int, options: Options) -> Sample:
    """Start and end a relay some times, after a start that fills the caches."""
    starts = QUICK_STARTS if options.quick else STARTS
    with tempfile.TemporaryDirectory(prefix="hawse-bench-starts-") as name:
        folder = Path(name)
        with enrolled(folder, upstream, system.name, {}) as found:
            start_once(found)
            taken = [
                (*start_once(found), interpreter_ns("pass"), interpreter_ns("import trio, ssl"))
                for _ in range(starts)
            ]
    up_ns, spent_s, bare_ns, loop_ns = (sorted(column) for column in zip(*taken, strict=True))
    return Sample(
        Measurement(
            "starts",
            system.name,
            variant,
            cpu_us_per_request=min(spent_s) * 1e6,
            p50_ms=milliseconds(up_ns, 0.50),
            p99_ms=milliseconds(up_ns, 0.99),
        ),
        cpu_s={"relay": sum(spent_s)},
        notes={
            "starts": starts,
            "python_ms": statistics.median(bare_ns) / 1e6,
            "loop_ms": statistics.median(loop_ns) / 1e6,
        },
    )


def start_once(found: Enrolled) -> tuple[int, float]:
    """Start a relay and end it; returns the ns until its tunnel was up, and its CPU seconds until then.

    Raises RunFailed when it ends without a tunnel.
    """
    relay = found.installation.folder / "relay"
    argv = [found.installation.program, "relay", "--config", str(relay / "relay.toml")]
    environment = compiled(os.environ) | {
        "HAWSE_RELAY_KUBECONFIG": str(relay / "kubeconfig"),
        "HAWSE_RELAY_INSTANCE": INSTANCE,
    }
    began_ns = time.perf_counter_ns()
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )
    said = []
    overdue = threading.Timer(DEADLINE_S, process.kill)
    overdue.start()
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if UP in line:
                return time.perf_counter_ns() - began_ns, cpu_s(process.pid)
            said.append(line.decode(errors="replace"))
        raise RunFailed(f"the relay ended without a tunnel: {said[-1] if said else 'it said nothing'}")
    finally:
        overdue.cancel()
        process.kill()
        process.communicate()


def compiled(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a Python that writes the bytecode that is missing."""
    return {name: value for name, value in environment.items() if name != "PYTHONDONTWRITEBYTECODE"}


def interpreter_ns(code: str) -> int:
    """How long an interpreter takes from its start to its end."""
    began_ns = time.perf_counter_ns()
    subprocess.run([sys.executable, "-c", code], check=True, env=compiled(os.environ))
    return time.perf_counter_ns() - began_ns


START = Workload(
    "starts",
    "a relay from the start of its process until the hub has its tunnel",
    (1,),
    run,
    systems=frozenset({"hawse"}),
    runs=1,
)
