"""`python -m benchmarks.gate`: has Hawse become dearer than it was, measured by its yardstick?

A few short rounds of Hawse and nginx side by side give ratios of CPU time, each of the least that either
took. A ratio says the same on a fast machine as on a slow one, near enough, and a busy neighbour slows both.
The gate fails when one is more than ALLOWED times what benchmarks/baseline.json has. After a change that is
meant to cost something, or that saves much: `python -m benchmarks.gate --write`, and commit the file with the
reason.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import attrs

from benchmarks.figures import Found, brief
from benchmarks.result import group
from benchmarks.runner import open_bench, run_all, say
from benchmarks.system import Missing
from benchmarks.systems import ALWAYS
from benchmarks.workload import Options
from benchmarks.workloads import WORKLOADS

BASELINE = Path(__file__).with_name("baseline.json")
ALLOWED = 1.25
ROUNDS = 5
OURS, YARDSTICK = "hawse", "nginx"
# What is compared: workload, variant and figure.
COMPARED = (
    ("small", 1, "cpu_us_per_request"),
    ("small", 64, "cpu_us_per_request"),
    ("bulk", 1, "cpu_s_per_gb"),
    ("bulk", 32, "cpu_s_per_gb"),
    ("bulk-up", 1, "cpu_s_per_gb"),
)


def ratios(found: Found) -> dict[str, float]:
    """Each compared figure of Hawse over that of nginx."""
    measured = {}
    for workload, variant, name in COMPARED:
        ours, yardstick = found.get(workload, OURS, variant), found.get(workload, YARDSTICK, variant)
        if ours is None or yardstick is None:
            continue
        least, its_least = ours.minimum(name), yardstick.minimum(name)
        if least is not None and its_least:
            measured[f"{workload} {variant}: {name}"] = round(least / its_least, 2)
    return measured


@attrs.frozen
class Verdict:
    """One line of the gate."""

    title: str
    now: float | None
    """None when the run did not have it."""
    before: float

    @property
    def passed(self) -> bool:
        return self.now is not None and self.now <= self.before * ALLOWED

    def __str__(self) -> str:
        now = brief(self.now) if self.now is not None else "not measured"
        end = "" if self.passed else f"  more than {ALLOWED:g} times the baseline"
        return f"{self.title:34} {now:>8} x nginx, baseline {brief(self.before)}{end}"


def judge(now: Mapping[str, float], baseline: Mapping[str, float]) -> list[Verdict]:
    """A verdict for each line of the baseline."""
    return [Verdict(title, now.get(title), before) for title, before in baseline.items()]


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
        openers = {name: ALWAYS[name] for name in (YARDSTICK, OURS)}
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
    if arguments.write:
        BASELINE.write_text(json.dumps(now, indent=1) + "\n")
        print(f"wrote {BASELINE.name}: {now}")
        return
    verdicts = judge(now, json.loads(BASELINE.read_text()))
    print("\n".join(map(str, verdicts)))
    if not all(verdict.passed for verdict in verdicts):
        sys.exit(1)


if __name__ == "__main__":
    main()
