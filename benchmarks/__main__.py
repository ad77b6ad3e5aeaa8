"""`python -m benchmarks`: see --help."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import attrs

from benchmarks.figures import Found
from benchmarks.processes import prepare_process
from benchmarks.profile import profile_all, spy_program
from benchmarks.report import Report
from benchmarks.result import group
from benchmarks.runner import Outcome, open_bench, run_all
from benchmarks.system import Missing, OpenSystem
from benchmarks.systems import ALWAYS, EXTRA, PEERS
from benchmarks.workload import Options
from benchmarks.workloads import BY_NAME, WORKLOADS

RUNS = 5


def parser() -> argparse.ArgumentParser:
    lines = [
        f"  {part.name:<12} {part.title}" if part is parts[0] else f"    {part.name:<13} {part.title}"
        for parts in WORKLOADS.values()
        for part in parts
    ]
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure Hawse beside its yardsticks, as separate processes on loopback.",
        epilog="workloads (a name runs those indented below it as well):\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "workloads", nargs="+", choices=[*BY_NAME, "all"], metavar="WORKLOAD", help="see below; or `all`"
    )
    made.add_argument(
        "--peers", action="store_true", help=f"also {', '.join(PEERS)}, where their packages are at hand"
    )
    names = [*ALWAYS, *PEERS, *EXTRA]
    made.add_argument(
        "--systems",
        metavar="NAME,…",
        help=f"only these, of {', '.join(names)} (default: {', '.join(ALWAYS)})",
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures as a list of objects")
    made.add_argument(
        "--results", type=Path, metavar="FILE", help="write the tables as Markdown, with plots beside it"
    )
    made.add_argument(
        "--runs", type=int, default=RUNS, metavar="N", help=f"rounds over all systems (default {RUNS})"
    )
    made.add_argument("--seconds", type=float, default=1.0, help="how long a run takes (default 1)")
    made.add_argument(
        "--profile",
        type=Path,
        metavar="FOLDER",
        help="afterwards, some seconds of Hawse for each variant, as flame graphs (SVG) by py-spy",
    )
    made.add_argument("--native", action="store_true", help="C frames in the flame graphs as well")
    made.add_argument(
        "--quick", action="store_true", help="one small round: does it work? Not figures to compare"
    )
    return made


def main() -> None:
    arguments = parser().parse_args()
    prepare_process()
    every_day = [name for name, parts in WORKLOADS.items() if not parts[0].opens]
    names = every_day if "all" in arguments.workloads else arguments.workloads
    # Each once, also where a group and one of its own are named.
    workloads = list(dict.fromkeys(workload for name in names for workload in BY_NAME[name]))
    openers: dict[str, OpenSystem] = {}
    if not all(workload.opens for workload in workloads):
        openers = {**ALWAYS, **(PEERS if arguments.peers else {})}
    openers |= {name: EXTRA[name] for workload in workloads for name in workload.opens}
    if arguments.systems is not None:
        every = {**ALWAYS, **PEERS, **EXTRA}
        chosen = arguments.systems.split(",")
        if unknown := [name for name in chosen if name not in every]:
            sys.exit(f"unknown systems: {', '.join(unknown)}; there are {', '.join(every)}")
        openers = {name: every[name] for name in chosen}
    for file in (arguments.json, arguments.results):
        # Before the minutes that the runs take, not after.
        if file is not None and not file.parent.is_dir():
            sys.exit(f"{file}: there is no folder {file.parent}")
    options = Options(
        runs=1 if arguments.quick else arguments.runs,
        seconds=0.2 if arguments.quick else arguments.seconds,
        quick=arguments.quick,
    )
    outcome, bench = Outcome(), None
    try:
        spy = spy_program() if arguments.profile is not None else None
        with tempfile.TemporaryDirectory(prefix="hawse-bench-") as folder:
            with open_bench(Path(folder), openers) as bench:
                run_all(bench, workloads, options, outcome)
                if spy is not None:
                    profile_all(spy, bench, workloads, options, arguments.profile, native=arguments.native)
    except Missing as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        if bench is None or not outcome.samples:
            sys.exit("interrupted: everything is stopped, nothing is written")
        outcome.failed.append("interrupted: what is not here was not measured")
    found = Found(group(outcome.samples))
    if arguments.json is not None:
        lines = [attrs.asdict(series.measurement()) for series in found]
        arguments.json.write_text(json.dumps(lines, indent=1) + "\n")
    report = Report(bench, outcome, workloads, found)
    if arguments.results is not None:
        report.write(arguments.results, sys.argv[1:])
    print(report.text())
    if outcome.failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
