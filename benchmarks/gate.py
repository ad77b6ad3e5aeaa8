"""`python -m benchmarks.gate`: has Hawse become dearer, compared with nginx in the same run?

The machine's speed changes by the hour, so no absolute figure is compared. Each run of Hawse has a run of
nginx beside it, within the same second or two, and the figure is the ratio of their CPU times. A line of the
gate is the median of these ratios over all its pairs. The gate fails when a median exceeds its baseline in
benchmarks/baseline.json by more than the line's share. benchmarks/README.md says how the number of pairs and
the shares were chosen.

After a change that is meant to cost something, or that saves much: `python -m benchmarks.gate --write`, on a
quiet machine, and commit the file with the reason. `--seed NAME` shows that the gate catches a regression: it
runs Hawse with a folder of benchmarks/seed, and has to fail. `dearer` makes each request some 20 µs dearer,
`uncached` turns the caches of a request off. `--against REVISION` takes that revision of Hawse in nginx's
place, and is the comparison for a single change.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import attrs

from benchmarks.figures import brief
from benchmarks.processes import prepare_process
from benchmarks.result import Sample, quantile
from benchmarks.runner import Bench, last_words, open_bench, say
from benchmarks.system import Missing, OpenSystem
from benchmarks.systems.hawse import open_checkout, open_hawse, open_seeded
from benchmarks.systems.nginx import open_nginx
from benchmarks.verdicts import conclude, report
from benchmarks.workload import Options, RunFailed
from benchmarks.workloads import BY_NAME

BASELINE = Path(__file__).with_name("baseline.json")
# Each line is measured in so many passes, a minute apart: on a busy machine the ratio drifts within minutes.
PASSES: Final = 4
# A run is short, so that the two of a pair meet the same neighbours.
SECONDS: Final = 0.3
# An access token is good for 60 s. A pass that a busy machine draws out ends before that, with fewer pairs.
PASS_S: Final = 45.0


# The folders of benchmarks/seed.
SEEDED: Final = ("dearer", "uncached")


@attrs.frozen
class Line:
    """What the gate compares: a workload and its variant."""

    workload: str
    variant: int
    pairs: int
    """In each pass."""
    allowed: float
    """How many times the baseline: above the noise, below the seed."""

    def __str__(self) -> str:
        return f"{self.workload} {self.variant}"


LINES: Final = (
    Line("small", 64, pairs=10, allowed=1.10),
    Line("writes", 64, pairs=8, allowed=1.12),
    Line("bulk", 1, pairs=6, allowed=1.15),
    Line("bulk-up", 1, pairs=6, allowed=1.15),
    Line("watch", 100, pairs=6, allowed=1.12),
    Line("exec-start", 1, pairs=6, allowed=1.12),
    Line("starts-connections", 16, pairs=10, allowed=1.15),
)


@attrs.frozen
class Pair:
    """The CPU time of Hawse and of its yardstick, of a request or of a GB, in two runs side by side."""

    ours: float
    yardstick: float

    @property
    def ratio(self) -> float:
        return self.ours / self.yardstick


def figure(pairs: Sequence[Pair]) -> float:
    """A line's figure: the median ratio. A disturbed pair is far off, and a mean would follow it."""
    return round(statistics.median(pair.ratio for pair in pairs), 3)


def summary(pairs: Sequence[Pair]) -> str:
    """The pairs in a few words, as progress."""
    ratios = sorted(pair.ratio for pair in pairs)
    ours, yardstick = (
        statistics.median(getattr(pair, name) for pair in pairs) for name in ("ours", "yardstick")
    )
    return (
        f"{brief(ours)} / {brief(yardstick)}, ratio {brief(figure(pairs))}, "
        f"quartiles {brief(quantile(ratios, 0.25))} to {brief(quantile(ratios, 0.75))}, {len(pairs)} pairs"
    )


def whole_cost(sample: Sample) -> float:
    """The CPU time that a sample is about, of all processes."""
    value = sample.measurement.cpu_us_per_request or sample.measurement.cpu_s_per_gb
    assert value, "a workload of the gate measures CPU time"
    return value


def measure_pass(bench: Bench, line: Line, cost: Callable[[Sample], float] = whole_cost) -> list[Pair]:
    """Measure a line's pairs. Raises RunFailed."""
    (workload,) = (each for each in BY_NAME[line.workload] if each.name == line.workload)
    assert workload.open is not None, f"{line.workload} does not repeat its runs over open connections"
    options = Options(seconds=SECONDS)
    pairs: list[Pair] = []
    with ExitStack() as stack:
        yardstick, ours = (
            stack.enter_context(workload.open(system, bench.upstream, line.variant, options))
            for system in bench.systems
        )
        began_s = time.monotonic()
        while len(pairs) < line.pairs and time.monotonic() - began_s < PASS_S:
            # Each of the two is first in every other pair, so that a drift does not favour one.
            if len(pairs) % 2:
                first, second = cost(yardstick()), cost(ours())
                pairs.append(Pair(second, first))
            else:
                first, second = cost(ours()), cost(yardstick())
                pairs.append(Pair(first, second))
    return pairs


def measure(ours: OpenSystem, yardstick: OpenSystem) -> dict[str, float]:
    """Measure every line. A line with a failed run is missing in the answer. Raises Missing."""
    pairs: dict[str, list[Pair]] = {str(line): [] for line in LINES}
    failed = set()
    with tempfile.TemporaryDirectory(prefix="hawse-gate-") as folder:
        with open_bench(Path(folder), {"yardstick": yardstick, "ours": ours}) as bench:
            if bench.missing:
                raise Missing("\n".join(bench.missing))
            for _ in range(PASSES):
                for line in LINES:
                    try:
                        measured = measure_pass(bench, line)
                    except RunFailed as error:
                        say(f"{line}: failed: {error}\n{last_words(bench.folder / 'ours')}")
                        failed.add(str(line))
                    else:
                        say(f"{line}: {summary(measured)}")
                        pairs[str(line)] += measured
    return {line: figure(measured) for line, measured in pairs.items() if line not in failed}


def allowed() -> dict[str, float]:
    """By the name of each line."""
    return {str(line): line.allowed for line in LINES}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--seed", choices=sorted(SEEDED), help="run with that regression of benchmarks/seed: it has to fail"
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--write", action="store_true", help="take this run for the new baseline")
    kind.add_argument(
        "--against", metavar="REVISION", help="compare with this revision of Hawse, not with nginx"
    )
    arguments = parser.parse_args()
    if arguments.seed and arguments.write:
        parser.error("a baseline has no seed in it")
    prepare_process()
    revision: str | None = arguments.against
    try:
        now = measure(
            open_hawse if arguments.seed is None else open_seeded(arguments.seed),
            open_nginx if revision is None else open_checkout(revision),
        )
    except Missing as error:
        sys.exit(str(error))
    if revision is not None:
        report(now, {str(line): 1.0 for line in LINES}, unit=f"x {revision}", allowed=allowed())
        return
    if arguments.write and len(now) < len(LINES):
        sys.exit("nothing is written, since a line was not measured")
    conclude(now, BASELINE, unit="x nginx", allowed=allowed(), write=arguments.write)


if __name__ == "__main__":
    main()
