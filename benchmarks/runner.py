"""Runs workloads over systems, interleaved: what is compared has run within the same seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs

from benchmarks.result import Sample
from benchmarks.system import Missing, OpenSystem, System, Upstream
from benchmarks.upstream.apiserver import open_apiserver
from benchmarks.workload import Options, RunFailed, Workload

# Of each log, when a run has failed.
LOG_LINES = 8


@attrs.frozen
class Bench:
    """The systems that are up, and those that cannot run here."""

    folder: Path
    """Each system's own is inside, by its name, with the logs of its processes."""
    upstream: Upstream
    systems: tuple[System, ...]
    missing: tuple[str, ...]
    """Why a system is not among them, by its own message."""


@attrs.define
class Outcome:
    """What the runs gave; `failed` has a line for each run that has no figure."""

    samples: list[Sample] = attrs.Factory(list)
    failed: list[str] = attrs.Factory(list)


def say(text: str) -> None:
    """Progress, on stderr: stdout is the table's."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def open_bench(folder: Path, openers: Mapping[str, OpenSystem]) -> Iterator[Bench]:
    """Start the upstream and every system that can run here; raises Missing when the upstream cannot."""
    with (
        open_apiserver(_made(folder / "upstream")) as upstream,
        open_systems(folder, upstream, openers) as bench,
    ):
        yield bench


@contextmanager
def open_systems(folder: Path, upstream: Upstream, openers: Mapping[str, OpenSystem]) -> Iterator[Bench]:
    """Start every system that can run here, each in a folder of its name."""
    with ExitStack() as stack:
        systems, missing = [], []
        for name, open_system in openers.items():
            say(f"starting {name} ...")
            try:
                system = stack.enter_context(open_system(_made(folder / name), upstream))
                systems.append(attrs.evolve(system, open_again=open_system))
            except Missing as error:
                say(f"missing: {error}")
                missing.append(str(error))
        yield Bench(folder, upstream, tuple(systems), tuple(missing))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def run_all(
    bench: Bench, workloads: Iterable[Workload], options: Options, outcome: Outcome | None = None
) -> Outcome:
    """Every variant of every workload, so many rounds over all systems; added to `outcome` as it comes."""
    outcome = Outcome() if outcome is None else outcome
    for workload in workloads:
        for variant in workload.variants:
            systems = [system for system in bench.systems if _applies(workload, system)]
            _run_rounds(bench, workload, variant, systems, options, outcome)
    return outcome


def _applies(workload: Workload, system: System) -> bool:
    return workload.systems is None or system.name in workload.systems


def _run_rounds(
    bench: Bench,
    workload: Workload,
    variant: int,
    systems: Sequence[System],
    options: Options,
    outcome: Outcome,
) -> None:
    for number in range(1, (workload.runs or options.runs) + 1):
        for system in systems:
            try:
                sample = workload.run(system, bench.upstream, variant, options)
            except RunFailed as error:
                line = f"{workload.name} {variant} {system.name}, run {number}: {error}"
                say(f"failed: {line}")
                say(last_words(bench.folder / system.name))
                outcome.failed.append(line)
            else:
                say(f"{workload.name} {variant}, run {number}: {describe(sample)}")
                outcome.samples.append(sample)


def last_words(folder: Path) -> str:
    """The ends of the logs in a system's folder, which is deleted with them."""
    return "\n".join(
        f"  {log.name}: {line}"
        for log in sorted(folder.glob("*.log"))
        for line in log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    )


def describe(sample: Sample) -> str:
    """A sample in one line of progress."""
    of = attrs.asdict(sample.measurement)
    name = of.pop("system")
    figures = [f"{key} {value:.3g}" for key, value in of.items() if isinstance(value, float)]
    spent = [f"{key} {value:.3f} s" for key, value in sample.cpu_s.items()]
    notes = [f"{key} {value:.4g}" for key, value in sample.notes.items()]
    return f"{name:<14} {', '.join(figures)} ({', '.join([*spent, *notes])})"
