"""`python -m benchmarks.readme`: measure the costs that README states, and write them there.

Takes some 12 minutes on a quiet machine with two cores, and needs nginx and kubectl. It measures workloads of
`python -m benchmarks`, each system in each round; benchmarks.summary makes the text of them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs

from benchmarks.capacity import Absent, between
from benchmarks.figures import Found
from benchmarks.machine import machine
from benchmarks.processes import prepare_process
from benchmarks.result import group
from benchmarks.runner import open_bench, run_all
from benchmarks.summary import cpu_table, meaning, missed, time_table
from benchmarks.system import Missing
from benchmarks.systems import ALWAYS
from benchmarks.workload import Options, Workload
from benchmarks.workloads import BY_NAME

DOCUMENT = Path(__file__).parents[1] / "README.md"
BEGIN = "<!-- written by `make bench-readme` -->"
END = "<!-- up to here -->"
ROUNDS = 5
BOTH = frozenset({"nginx", "hawse"})
SYSTEMS = ("direct", "nginx", "hawse")
# What the tables compare, above them.
COMPARED = (
    "The tables compare the CPU time of hub and relay together with nginx as a TLS reverse proxy. Hawse has "
    "TLS on three legs and a tunnel. For each request it checks a token, decides by policy and writes an "
    "audit record; a write waits until its record is on the disk. The goals are Hawse's own, set before "
    "these runs."
)
# The variants that the tables are made of, and the systems, where they are not all.
PARTS: dict[str, tuple[tuple[int, ...], frozenset[str] | None]] = {
    "small": ((1, 64), None),
    "writes": ((1, 64), BOTH),
    "starts-connections": ((1, 16), BOTH),
    "bulk": ((1,), BOTH),
    "bulk-up": ((1,), BOTH),
    "watch": ((1000,), BOTH),
    "watch-many": ((1000,), BOTH),
    "watch-all": ((1000,), BOTH),
    # They compare with kubectl's direct connection to the API server by themselves.
    "kubectl": ((1,), BOTH),
    "kubectl-plugin": ((1,), BOTH),
    "kubectl-token": ((1,), BOTH),
}


def chosen() -> list[Workload]:
    """The workloads, cut to PARTS."""
    every = {workload.name: workload for group_of in BY_NAME.values() for workload in group_of}
    return [
        attrs.evolve(every[name], variants=variants, systems=systems)
        for name, (variants, systems) in PARTS.items()
    ]


def text(found: Found, rounds: int, where: Sequence[str]) -> list[str]:
    """What stands in the document; raises Absent."""
    runs = "1 run" if rounds == 1 else f"{rounds} runs, and their range"
    # What a user notices comes first, and the tables are folded.
    return [
        meaning(found),
        "<details>\n<summary>All figures beside nginx, and the goals that are missed</summary>",
        COMPARED,
        cpu_table(found),
        time_table(found),
        missed(found),
        f"The median of {runs}; a ratio is the median over the rounds. Measured on {', '.join(where)}.",
        "</details>",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.readme", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"default {ROUNDS}")
    parser.add_argument("--print", action="store_true", help="print the figures, and leave the document")
    parser.add_argument("--quick", action="store_true", help="does it work? Not figures to keep")
    asked = parser.parse_args()
    prepare_process()
    rounds = 1 if asked.quick else asked.rounds
    options = Options(runs=rounds, seconds=0.2 if asked.quick else 1.0, quick=asked.quick)
    try:
        with tempfile.TemporaryDirectory(prefix="hawse-bench-") as folder:
            with open_bench(Path(folder), {name: ALWAYS[name] for name in SYSTEMS}) as bench:
                if bench.missing:
                    sys.exit("\n".join(bench.missing))
                outcome = run_all(bench, chosen(), options)
                where = [
                    *machine(),
                    *(f"{name} {number}" for name, number in bench.upstream.versions.items()),
                ]
    except Missing as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted: everything is stopped, nothing is written")
    if outcome.failed:
        sys.exit("\n".join(f"failed: {line}" for line in outcome.failed))
    try:
        figures = text(Found(group(outcome.samples)), rounds, where)
    except Absent as error:
        sys.exit(f"there are no figures of {error}")
    if asked.print or asked.quick:
        print("\n\n".join(figures))
    else:
        DOCUMENT.write_text(between(DOCUMENT.read_text(), BEGIN, END, figures))


if __name__ == "__main__":
    main()
