"""Flame graphs of a system's Python processes while a workload runs, by py-spy.

A profiled run has no figures, because each sample stops the process.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.processes import program
from benchmarks.runner import Bench, say
from benchmarks.system import System
from benchmarks.workload import Options, RunFailed, Workload

# No round number, so that samples do not fall in step with timers.
SAMPLES_PER_S = 237
START_S = 1.0
STOP_DEADLINE_S = 60.0
# Long enough for some hundred samples of each process.
RUN_S = 5.0


def spy_program() -> str:
    """The path of py-spy; raises Missing."""
    return program("py-spy", "--profile", "pip install py-spy")


def profile_all(
    spy: str, bench: Bench, workloads: list[Workload], options: Options, folder: Path, *, native: bool
) -> list[Path]:
    """Run each variant of each workload against Hawse once more; returns the files, one a process."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for workload in workloads:
        for system in bench.systems:
            if not system.name.startswith("hawse"):
                continue
            for variant in workload.variants:
                stem = folder / f"{workload.name}-{variant}-{system.name}"
                with recorded(spy, system, stem, native=native) as files:
                    _run(workload, system, bench, variant, options)
                written += files
    return written


def _run(workload: Workload, system: System, bench: Bench, variant: int, options: Options) -> None:
    until = time.monotonic() + RUN_S
    try:
        while time.monotonic() < until:
            workload.run(system, bench.upstream, variant, options)
    except RunFailed as error:
        say(f"failed: {workload.name} {variant} {system.name}, while profiled: {error}")


@contextmanager
def recorded(spy: str, system: System, stem: Path, *, native: bool) -> Iterator[list[Path]]:
    """Record each of the system's processes for the block, into `STEM-PROCESS.svg`."""
    files, spies = [], []
    for name, pid in system.processes.items():
        file = stem.with_name(f"{stem.name}-{name}.svg")
        argv = [spy, "record", "--pid", str(pid), "--rate", str(SAMPLES_PER_S), "--output", str(file)]
        argv += ["--native"] if native else []
        spies.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL))
        files.append(file)
    try:
        time.sleep(START_S)
        yield files
    finally:
        for each in spies:
            each.send_signal(signal.SIGINT)
        try:
            for each in spies:
                each.wait(STOP_DEADLINE_S)
        finally:
            # One that missed the signal would run for ever. A process that has ended ignores this.
            for each in spies:
                each.kill()
    for file in files:
        say(f"profile: {file}")
