"""`python -m benchmarks.scaling`: measure what a hub is made of, and write the figures into docs/scaling.md.

Takes some ten minutes. It measures workloads of `python -m benchmarks`; benchmarks.capacity computes the
figures from them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs

from benchmarks.capacity import Absent, between, capacity_table, check_table, costs, unit_table
from benchmarks.figures import Found
from benchmarks.machine import machine, versions
from benchmarks.result import group
from benchmarks.runner import open_bench, run_all
from benchmarks.system import Missing
from benchmarks.systems.hawse import open_hawse
from benchmarks.workload import Options, Workload
from benchmarks.workloads import WORKLOADS

DOCUMENT = Path(__file__).parents[1] / "docs" / "scaling.md"
BEGIN = "<!-- written by `make bench-scaling` -->"
END = "<!-- up to here -->"
# Of each workload those variants that the tables are made of.
PARTS = {
    "small": (1, 64),
    "bulk": (32,),
    "watch": None,
    "idle": None,
    "idle-tunnels": None,
    "scale": None,
    "scale-two": None,
}
RUNS = 3


def chosen() -> list[Workload]:
    """The workloads, cut to PARTS."""
    every = [workload for group_of in WORKLOADS.values() for workload in group_of]
    return [
        attrs.evolve(workload, variants=PARTS[workload.name] or workload.variants)
        for workload in every
        if workload.name in PARTS
    ]


def tables(found: Found, where: Sequence[str]) -> list[str]:
    """What stands in the document; raises Absent."""
    of = costs(found)
    return [
        unit_table(of),
        capacity_table(of),
        check_table(of, found),
        "Measured on " + ", ".join(where) + ".",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--print", action="store_true", help="print the figures, and leave the document")
    parser.add_argument("--quick", action="store_true", help="does it work? Not figures to keep")
    asked = parser.parse_args()
    options = Options(runs=1 if asked.quick else RUNS, quick=asked.quick)
    try:
        with tempfile.TemporaryDirectory(prefix="hawse-bench-") as folder:
            with open_bench(Path(folder), {"hawse": open_hawse}) as bench:
                outcome = run_all(bench, chosen(), options)
                where = [*machine(), *versions(bench.upstream, bench.systems)]
    except Missing as error:
        sys.exit(str(error))
    if outcome.failed:
        sys.exit("\n".join(f"failed: {line}" for line in outcome.failed))
    try:
        figures = tables(Found(group(outcome.samples)), where)
    except Absent as error:
        sys.exit(f"there are no figures of {error}")
    if asked.print or asked.quick:
        print("\n\n".join(figures))
    else:
        DOCUMENT.write_text(between(DOCUMENT.read_text(), BEGIN, END, figures))


if __name__ == "__main__":
    main()
