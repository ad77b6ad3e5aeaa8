"""`python -m benchmarks.structure`: measure the layout of the code, beside what is wanted of it.

    python -m benchmarks.structure [--json] [--write]

tests/benchmarks/test_structure.py fails when a figure is higher than benchmarks/structure.json records. After
a change that lowers figures: `--write`, which never raises one. A figure that has to rise is raised in that
file by hand, with the reason in the commit.
"""

from __future__ import annotations

import argparse
import json
import sys

import attrs

from benchmarks.structure.journeys import measure_apart
from benchmarks.structure.measures import BOUNDS, Record, read_english, read_layout
from benchmarks.structure.sources import ROOT
from benchmarks.structure.tables import report
from benchmarks.workload import RunFailed


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.structure", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    parser.add_argument("--write", action="store_true", help=f"record what is lower in {BOUNDS.name}")
    arguments = parser.parse_args()
    layout, words = read_layout(ROOT), read_english(ROOT)
    try:
        journeys = measure_apart()
    except RunFailed as error:
        sys.exit(str(error))
    if arguments.json:
        english = {name: {**attrs.asdict(each), "per_1000": each.per_1000} for name, each in words.items()}
        print(json.dumps({**attrs.asdict(layout), "english": english, "journeys": journeys}, indent=1))
    else:
        print(report(layout, words, journeys))
    now = Record.of(layout, journeys)
    before = Record.read() if BOUNDS.exists() else now
    if arguments.write:
        now.lowered(before).write()
    if grown := now.grown(before):
        sys.exit("\n".join(["higher than recorded:", *grown]))


if __name__ == "__main__":
    main()
