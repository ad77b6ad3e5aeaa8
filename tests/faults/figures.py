"""The figures of the suite, and the pages that they are written on.

HAWSE_FAULTS_FIGURES=FILE python -m pytest tests/faults            a JSON object a line
python -m tests.faults.figures FILE faults benchmarks/RESULTS.md   the section of `make faults` on that page
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.report import FAULTS, replace_section

FILE = "HAWSE_FAULTS_FIGURES"
# What each target of make runs.
RUNS = {
    "faults": "tests/faults and tests/system/test_planned_restarts.py",
    "faults-postgres": "tests/faults/test_postgres_*.py",
    "faults-hubs": "tests/faults/test_hubs_*.py",
}


def note(what: str, variant: str = "", **figures: float | str) -> None:
    """Write figures into the file, if there is one; several processes may."""
    if path := os.environ.get(FILE):
        line = json.dumps({"what": what, "variant": variant, **figures})
        with Path(path).open("a") as file:
            file.write(line + "\n")


def written(lines: Sequence[str], target: str) -> str:
    """The section, from the lines of the file."""
    rows = sorted((json.loads(line) for line in lines), key=lambda row: (row["what"], row["variant"]))
    parts = [
        FAULTS,
        "",
        f"By `make {target}`: {RUNS[target]}, on this machine:",
        "",
        *(f"- {line}" for line in machine()),
        "",
        "| what | | figures |",
        "|---|---|---|",
    ]
    for row in rows:
        what, variant = row.pop("what"), row.pop("variant")
        figures = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row.items())
        parts.append(f"| {what} | {variant} | {figures} |")
    return "\n".join(parts)


def main(figures: Path, target: str, page: Path) -> None:
    """Replace the section on the page."""
    before = page.read_text() if page.exists() else "# Results\n"
    page.write_text(replace_section(before, FAULTS, written(figures.read_text().splitlines(), target)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
