"""The figures for people: Markdown tables that a terminal shows as well, ratios to the yardsticks first."""

from __future__ import annotations

import os
import shlex
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from benchmarks.budget import OURS, budget_table, difference
from benchmarks.figures import Found, brief
from benchmarks.machine import machine, versions
from benchmarks.plot import bars
from benchmarks.result import Sample, Series, ratio
from benchmarks.runner import Bench, Outcome
from benchmarks.workload import Workload

YARDSTICKS = ("nginx", "ssh")


FAULTS = "## Faults"
COMPARED = "## Beside Hawse"
COMPARED_BY = "CPU time by Hawse's of the same round, the median of the rounds: 1.2 is a fifth more."


@attrs.frozen
class Report:
    """The results of a run, as text."""

    bench: Bench
    outcome: Outcome
    workloads: Sequence[Workload]
    found: Found

    def text(self) -> str:
        """The tables, and what is missing or failed."""
        parts = [part for name in self.found.workloads() for part in self._workload(name)]
        return "\n\n".join([*parts, *self._budget(), *self._compared(), *self._absent()])

    def write(self, path: Path, arguments: Sequence[str]) -> None:
        """Write the results with machine, versions and command, and the plots beside them."""
        plots = path.parent / "plots"
        plots.mkdir(parents=True, exist_ok=True)
        parts = []
        for name in self.found.workloads():
            (plots / f"{name}.svg").write_text(bars(self.found, name))
            parts += [*self._workload(name), f"![{name}](plots/{name}.svg)"]
        readme = os.path.relpath(Path(__file__).with_name("README.md"), path.parent)
        head = [
            "# Results",
            "Written by this command, on the machine and with the versions listed here, and not edited by "
            f"hand. How to read it is in [README.md]({readme}).",
            f"    python -m benchmarks {shlex.join(arguments)}",
            "\n".join(
                f"- {line}" for line in (*machine(), *versions(self.bench.upstream, self.bench.systems))
            ),
        ]
        page = "\n\n".join([*head, *self._budget(), *self._compared(), *self._absent(), *parts]) + "\n"
        # The fault suite writes its figures on the same page, and not each time that these are written.
        faults = section(path.read_text(), FAULTS) if path.exists() else ""
        path.write_text(replace_section(page, FAULTS, faults))

    def _workload(self, name: str) -> list[str]:
        titles = [each.title for each in self.workloads if each.name == name]
        parts = [f"## {name}", *titles[:1], render(*figures_table(self.found, name))]
        more = (processes_table(self.found, name), notes_table(self.found, name))
        return [*parts, *(table for table in more if table)]

    def _budget(self) -> list[str]:
        rows = budget_table(self.found)
        titles = ["", "measured", "meets", "gate", "goal", "stretch"]
        return ["## Budget", render(titles, rows)] if rows else []

    def _compared(self) -> list[str]:
        titles, rows = compared_table(self.found)
        return [COMPARED, COMPARED_BY, render(titles, rows)] if rows else []

    def _absent(self) -> list[str]:
        lines = [f"missing: {text}" for text in self.bench.missing]
        return [*lines, *(f"failed: {text}" for text in self.outcome.failed)]


def figures_table(found: Found, workload: str) -> tuple[list[str], list[list[str]]]:
    """Titles and rows: ratios of what the workload is about, then every figure, CPU also by its median."""
    series = found.of(workload)
    figures = found.figures(workload)
    main = next((figure for figure in figures if figure.compared), None)
    yardsticks = [name for name in YARDSTICKS if any(each.system == name for each in series)]
    over_direct = any(each.system == "direct" for each in series) and any(
        each.values("p50_ms") for each in series
    )
    titles = ["", "system"]
    titles += [f"x {name}" for name in yardsticks] if main is not None else []
    titles += ["p50 over direct"] if over_direct else []
    for figure in figures:
        titles += [figure.title, "median"] if figure.name.startswith("cpu_") else [figure.title]
    rows = []
    for each in series:
        row = [str(each.variant), each.system]
        if main is not None:
            row += [brief(_ratio(found, each, name, main.name)) for name in yardsticks]
        if over_direct:
            direct = found.beside(each, "direct")
            row.append(brief(difference(each, direct, "p50_ms")) if direct not in (None, each) else "")
        for figure in figures:
            row.append(brief(each.figure(figure.name)))
            if figure.name.startswith("cpu_"):
                row.append(brief(each.median(figure.name)))
        rows.append(row)
    return titles, rows


def _ratio(found: Found, series: Series, yardstick: str, name: str) -> float | None:
    other = found.beside(series, yardstick)
    return ratio(series, other, name) if other is not None and other is not series else None


def compared_table(found: Found) -> tuple[list[str], list[list[str]]]:
    """The cost of every other system over Hawse's; a row a system, a column a workload and variant."""
    columns = [
        (each, figure.name)
        for each in found
        if each.system == OURS and (figure := found.figures(each.workload)[0]).name.startswith("cpu_")
    ]
    if not columns:
        return [], []
    others = dict.fromkeys(each.system for each in found if not each.system.startswith(("direct", OURS)))
    titles = ["", "system", *(f"{each.workload} {each.variant}" for each, _ in columns)]
    rows = []
    for system in others:
        others_series = [(found.beside(ours, system), ours, name) for ours, name in columns]
        values = [ratio(other, ours, name) if other else None for other, ours, name in others_series]
        rows.append(["", system, *map(brief, values)])
    return titles, rows


def processes_table(found: Found, workload: str) -> str:
    """Where the CPU time went, by process; empty for a workload that does not count it."""
    rows, unit = [], ""
    for each in found.of(workload):
        names = dict.fromkeys(name for sample in each.samples for name in sample.cpu_s)
        unit, factor = _unit(each)
        spent = ", ".join(f"{name} {brief(each.cpu_of(name, factor))}" for name in names)
        if spent:
            rows.append([str(each.variant), each.system, spent])
    return render(["", "system", f"{unit} by process, the least of the runs"], rows) if rows else ""


def _unit(series: Series) -> tuple[str, Callable[[Sample], float]]:
    """The unit of a series' CPU time, and the factor from CPU seconds to it."""
    notes = series.samples[0].notes
    if "requests" in notes:
        return "CPU µs a request", lambda sample: 1e6 / sample.notes["requests"]
    if "gigabytes" in notes:
        return "CPU s a GB", lambda sample: 1 / sample.notes["gigabytes"]
    return "CPU s", lambda sample: 1.0


# The divisors of the figures.
_COUNTED = frozenset({"requests", "gigabytes"})


def notes_table(found: Found, workload: str) -> str:
    """What else was counted, the median of the runs; empty for a workload with nothing more to tell."""
    rows = []
    for each in found.of(workload):
        names = dict.fromkeys(name for sample in each.samples for name in sample.notes)
        for name in names:
            if name not in _COUNTED:
                value = statistics.median(sample.notes[name] for sample in each.samples)
                rows.append([str(each.variant), each.system, name, brief(value)])
    return render(["", "system", "also, the median of the runs", ""], rows) if rows else ""


def render(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it can be read as it is; numbers to the right."""
    every = [titles, *rows]
    widths = [max(3, *(len(row[column]) for row in every)) for column in range(len(titles))]
    right = [column != 1 and all(_numeric(row[column]) for row in rows) for column in range(len(titles))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(cells, widths, right, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    rule = "|".join(
        "-" * (width + 1) + (":" if to_right else "-") for width, to_right in zip(widths, right, strict=True)
    )
    return "\n".join([line(titles), f"|{rule}|", *(line(row) for row in rows)])


def _numeric(cell: str) -> bool:
    return not cell or cell.replace(",", "").replace(".", "").lstrip("-").isdigit()


def section(page: str, title: str) -> str:
    """A section of a page with its title, up to the next one; "" when it is not there."""
    start = page.find(f"\n{title}\n")
    if start < 0:
        return ""
    end = page.find("\n## ", start + 1)
    return page[start + 1 :] if end < 0 else page[start + 1 : end + 1]


def replace_section(page: str, title: str, text: str) -> str:
    """The page with `text` in place of that section, at the end of it."""
    old = section(page, title)
    rest = page.replace(old, "") if old else page
    return f"{rest.rstrip()}\n\n{text.strip()}\n" if text else rest
