"""The budget of Hawse's costs, beside the figures of this run.

The absolute goals were set on a machine where nginx took 26 µs a request at 64 connections, and OpenSSH 33.
On another machine, compare the ratios to nginx and OpenSSH in the same run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import attrs

from benchmarks.figures import Found, brief
from benchmarks.result import Sample, Series, ratio

OURS = "hawse"


@attrs.frozen
class Line:
    """One line of the budget."""

    title: str
    gate: float
    goal: float
    stretch: float
    measured: Callable[[Found], float | None]
    """None when the run does not have it."""


def figure(workload: str, variant: int, name: str, system: str = OURS) -> Callable[[Found], float | None]:
    def measured(found: Found) -> float | None:
        series = found.get(workload, system, variant)
        return series.figure(name) if series is not None else None

    return measured


def hub_to_nginx(found: Found) -> float | None:
    """The hub's µs a request over those of nginx."""
    ours, nginx = found.get("small", OURS, 64), found.get("small", "nginx", 64)
    if ours is None or nginx is None:
        return None
    return statistics.median(
        _us(mine, "hub") / _us(theirs, "nginx")
        for mine, theirs in zip(ours.samples, nginx.samples, strict=False)
    )


def _us(sample: Sample, process: str) -> float:
    return sample.cpu_s[process] * 1e6 / sample.notes["requests"]


def added(name: str) -> Callable[[Found], float | None]:
    """The latency that Hawse adds to a direct connection, at one connection."""

    def measured(found: Found) -> float | None:
        ours, direct = found.get("small", OURS, 1), found.get("small", "direct", 1)
        return difference(ours, direct, name) if ours is not None and direct is not None else None

    return measured


def difference(series: Series, yardstick: Series, name: str) -> float | None:
    """The median over the runs of one system's figure less that of another, run by run."""
    pairs = list(zip(series.values(name), yardstick.values(name), strict=False))
    return statistics.median(ours - theirs for ours, theirs in pairs) if pairs else None


def kubectl_longer(workload: str) -> Callable[[Found], float | None]:
    """How many ms longer `kubectl get` takes than over a direct connection to the API server."""

    def measured(found: Found) -> float | None:
        series = found.get(workload, OURS, 1)
        return None if series is None else statistics.median(run.notes["added_ms"] for run in series.samples)

    return measured


def slowed(workload: str) -> Callable[[Found], float | None]:
    """p99 beside a download over p99 without one."""

    def measured(found: Found) -> float | None:
        beside, alone = found.get(workload, OURS, 1), found.get(workload, OURS, 0)
        return ratio(beside, alone, "p99_ms") if beside is not None and alone is not None else None

    return measured


BUDGET = (
    Line(
        "CPU µs a request, hub + relay, 64 connections", 90, 65, 50, figure("small", 64, "cpu_us_per_request")
    ),
    Line(
        "CPU µs a PUT of 1 KB, 64 connections",
        *(150, 150, 120),
        figure("writes", 64, "cpu_us_per_request"),
    ),
    Line("hub µs / nginx µs, 64 connections", 4, 2.5, 2, hub_to_nginx),
    Line("CPU s a GB down, one stream", 3.6, 2.8, 2.4, figure("bulk", 1, "cpu_s_per_gb")),
    Line(
        "the same without any optional C wheel",
        *(5.9, 5.2, 4.5),
        figure("bulk", 1, "cpu_s_per_gb", "hawse-nowheel"),
    ),
    Line("p50 ms added over direct, 1 connection", 0.6, 0.35, 0.25, added("p50_ms")),
    Line("p99 ms added over direct, 1 connection", 3, 1.5, 1, added("p99_ms")),
    Line("p50 ms beside 80 MB/s of downloads", 2, 0.7, 0.5, figure("beside-paced", 4, "p50_ms")),
    Line("p99 beside a download that fills the link / without", 3, 3, 2, slowed("beside-link")),
    Line("p99 beside a download that fills the machine / without", 3, 3, 2, slowed("beside")),
    Line("ms kubectl get takes longer, with a token at hand", 5, 5, 2, kubectl_longer("kubectl")),
    Line(
        "CPU µs an event of a watch, 2,000 a second",
        *(60, 40, 30),
        figure("watch", 1000, "cpu_us_per_request"),
    ),
    Line("the same, 10,000 a second", 60, 40, 30, figure("watch-many", 1000, "cpu_us_per_request")),
    Line(
        "the same, each to 1,000 watches at once",
        *(60, 40, 30),
        figure("watch-all", 1000, "cpu_us_per_request"),
    ),
)


def budget_table(found: Found) -> list[list[str]]:
    """Rows for what the run has: title, measured, which column of the budget it meets, and the columns."""
    rows = []
    for line in BUDGET:
        value = line.measured(found)
        if value is not None:
            columns = [brief(line.gate), brief(line.goal), brief(line.stretch)]
            rows.append([line.title, brief(value), verdict(line, value), *columns])
    return rows


def verdict(line: Line, value: float) -> str:
    """The best column that a value meets."""
    if value <= line.stretch:
        return "stretch"
    if value <= line.goal:
        return "goal"
    return "gate" if value <= line.gate else "over"
