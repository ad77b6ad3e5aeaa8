"""`python -m benchmarks.calls`: does a request take more function calls than it did?

CPU time changes with the load of the machine. The number of functions that hub and relay call for a request,
in Python and in C, does not, except for how many requests share a wakeup. So it can gate every change:
`make bench-calls`, a part of `.ci/run`, fails when a figure is more than ALLOWED times its baseline in
benchmarks/calls.json. After a change that is meant to cost something, or that saves much:
`python -m benchmarks.calls --write`, and commit the file with the reason. The baseline is of Python 3.11;
later versions call less. `--functions N` lists the functions that are called most.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from benchmarks.load import Job, Load
from benchmarks.system import Missing, System, Upstream
from benchmarks.systems.hawse import running
from benchmarks.upstream.apiserver import POD_PATH, open_apiserver
from benchmarks.verdicts import conclude
from benchmarks.workload import RunFailed

BASELINE = Path(__file__).with_name("calls.json")
HOOK = Path(__file__).with_name("counting")
CHECKOUT = Path(__file__).parent.parent
# How many requests share a wakeup differs by some 5 % between a quiet machine and a busy one.
ALLOWED = 1.12
# A download has more and smaller messages when its two ends share a core. The least of the rounds counts,
# because disturbances only add. On a slow machine it is a tenth more even so: the figures of a MB are of one.
ROUNDS = 3
SECONDS = 1.0
BULK_BYTES = 64 * 1024 * 1024
CONNECTIONS = (1, 64)
DEADLINE_S = 30.0
POLL_S = 0.02


@attrs.define
class Counts:
    """The calls of each process; complete once the block has been left."""

    by_process: dict[str, dict[str, int]] = attrs.Factory(dict)


@contextmanager
def counted(system: System, file: Path) -> Iterator[Counts]:
    """Count the calls of the block in each process of a system that runs with the hook; raises RunFailed."""
    counts = Counts()
    for pid in system.processes.values():
        os.kill(pid, signal.SIGUSR1)
    yield counts
    for name, pid in system.processes.items():
        os.kill(pid, signal.SIGUSR1)
        written = file.with_name(f"{file.name}.{pid}")
        deadline = time.monotonic() + DEADLINE_S
        while not written.exists():
            if time.monotonic() > deadline:
                raise RunFailed(f"{name} has not written what it counted")
            time.sleep(POLL_S)
        counts.by_process[name] = json.loads(written.read_text())
        written.unlink()


def measure(functions: int = 0) -> dict[str, float]:
    """Calls a request, a connection, and a MB, by process; raises Missing and RunFailed."""
    with tempfile.TemporaryDirectory(prefix="hawse-calls-") as name:
        folder = Path(name)
        (folder / "upstream").mkdir()
        (folder / "hawse").mkdir()
        # The checkout of this file, not the installed one.
        environment = {
            "PYTHONPATH": f"{HOOK}{os.pathsep}{CHECKOUT}",
            "HAWSE_COUNTED": str(folder / "counted"),
        }
        with (
            open_apiserver(folder / "upstream") as upstream,
            running(folder / "hawse", upstream, "hawse", environment) as system,
        ):
            return _measure(system, upstream, folder / "counted", functions)


def _measure(system: System, upstream: Upstream, file: Path, functions: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    endpoint = system.fresh_endpoint()
    jobs = {f"a request, {n} at once": Job("requests", endpoint, POD_PATH, n, SECONDS) for n in CONNECTIONS}
    jobs["a connection"] = Job("connections", endpoint, POD_PATH, 1, SECONDS)
    jobs["a MB down"] = Job("download", endpoint, upstream.body(BULK_BYTES))
    for title, stated in jobs.items():
        # On a busy machine, all of them together take longer than a token lives.
        job = attrs.evolve(stated, endpoint=system.fresh_endpoint())
        for rounds_left in reversed(range(ROUNDS)):
            with Load(job) as load, counted(system, file) as counts:
                load.go()
                done = load.report()
            units = done.transferred / 1e6 if job.kind == "download" else done.requests
            for process, calls in counts.by_process.items():
                name = f"{process}, {title}"
                figures[name] = min(figures.get(name, math.inf), round(sum(calls.values()) / units, 1))
                if not rounds_left:
                    for function, count in sorted(calls.items(), key=lambda item: -item[1])[:functions]:
                        print(f"{name}: {count / units:8.2f}  {function}")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calls", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--write", action="store_true", help="take this run for the new baseline")
    parser.add_argument(
        "--functions", type=int, default=0, metavar="N", help="list those that are called most"
    )
    arguments = parser.parse_args()
    try:
        now = measure(arguments.functions)
    except (Missing, RunFailed) as error:
        sys.exit(str(error))
    conclude(now, BASELINE, unit="calls", allowed=ALLOWED, write=arguments.write)


if __name__ == "__main__":
    main()
