"""`python -m benchmarks.gate`: has Hawse become dearer than it was, measured by its yardstick?

A few short rounds of Hawse and of a plain reverse proxy side by side give ratios of CPU time, each of the
least that either took. The yardstick is of the same interpreter and libraries (benchmarks.plain), so that
a ratio says the same on a fast machine as on a slow one, and a busy neighbour slows both. nginx would not do:
it stays in a core's nearest caches, where no neighbour disturbs it. The gate fails when a ratio is more than
ALLOWED times what benchmarks/baseline.json has. After a change that is meant to cost something, or that saves
much: `python -m benchmarks.gate --write`, and commit the file with the reason.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import attrs

from benchmarks.figures import Found
from benchmarks.result import group
from benchmarks.runner import open_bench, run_all, say
from benchmarks.system import Missing
from benchmarks.systems import ALWAYS, EXTRA
from benchmarks.verdicts import conclude
from benchmarks.workload import Options
from benchmarks.workloads import WORKLOADS

BASELINE = Path(__file__).with_name("baseline.json")
ALLOWED = 1.25
ROUNDS = 5
OURS, YARDSTICK = "hawse", "plain"
# What is compared: workload, variant and figure.
COMPARED = (
    ("small", 1, "cpu_us_per_request"),
    ("small", 64, "cpu_us_per_request"),
    ("bulk", 1, "cpu_s_per_gb"),
    ("bulk", 32, "cpu_s_per_gb"),
    ("bulk-up", 1, "cpu_s_per_gb"),
)


def ratios(found: Found) -> dict[str, float]:
    """Each compared figure of Hawse over that of the yardstick."""
    measured = {}
    for workload, variant, name in COMPARED:
        ours, yardstick = found.get(workload, OURS, variant), found.get(workload, YARDSTICK, variant)
        if ours is None or yardstick is None:
            continue
        least, its_least = ours.minimum(name), yardstick.minimum(name)
        if least is not None and its_least:
            measured[f"{workload} {variant}: {name}"] = round(least / its_least, 3)
    return measured


def measure() -> dict[str, float]:
    """Run what is compared; raises Missing."""
    wanted = {(workload, variant) for workload, variant, _ in COMPARED}
    workloads = [
        attrs.evolve(part, variants=variants)
        for parts in WORKLOADS.values()
        for part in parts
        if (variants := tuple(each for each in part.variants if (part.name, each) in wanted))
    ]
    with tempfile.TemporaryDirectory(prefix="hawse-gate-") as folder:
        openers = {YARDSTICK: EXTRA[YARDSTICK], OURS: ALWAYS[OURS]}
        with open_bench(Path(folder), openers) as bench:
            outcome = run_all(bench, workloads, Options(runs=ROUNDS, seconds=1.0, quick=False))
    for failure in outcome.failed:
        say(failure)
    return ratios(Found(group(outcome.samples)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="take this run for the new baseline")
    arguments = parser.parse_args()
    try:
        now = measure()
    except Missing as error:
        sys.exit(str(error))
    conclude(now, BASELINE, unit=f"x {YARDSTICK}", allowed=ALLOWED, write=arguments.write)


if __name__ == "__main__":
    main()
