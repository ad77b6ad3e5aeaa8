"""The rows of README's section "What it costs", and the sentences below them, from the runs. Pure.

A row has the median and the range of its runs: the least alone, which benchmarks.report has as well, is the
best of several moments. A ratio is the median over the rounds, each of which ran both systems within the same
seconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import attrs

from benchmarks.budget import BUDGET, OURS
from benchmarks.capacity import CORE_SHARE, Absent, count
from benchmarks.figures import Found, brief
from benchmarks.report import render
from benchmarks.result import Series

YARDSTICK = "nginx"
GOALS = {line.title: line.goal for line in BUDGET}


@attrs.frozen
class Row:
    """One line of the table."""

    title: str
    values: Callable[[Found, str], list[float]]
    """A system's values, one a run in the order of the runs; raises Absent."""
    goal: float | None = None
    compared: bool = True
    """Whether a ratio to the yardstick says something: what is added to a latency of zero has none."""


def figure(
    workload: str, variant: int, name: str, factor: float = 1.0
) -> Callable[[Found, str], list[float]]:
    def values(found: Found, system: str) -> list[float]:
        return [value * factor for value in series(found, workload, system, variant).values(name)]

    return values


def over_direct(workload: str, variant: int, name: str) -> Callable[[Found, str], list[float]]:
    """What a system adds to a latency, round by round."""

    def values(found: Found, system: str) -> list[float]:
        pairs = zip(
            series(found, workload, system, variant).values(name),
            series(found, workload, "direct", variant).values(name),
            strict=True,
        )
        return [after - before for after, before in pairs]

    return values


def note(workload: str, name: str) -> Callable[[Found, str], list[float]]:
    def values(found: Found, system: str) -> list[float]:
        return [sample.notes[name] for sample in series(found, workload, system, 1).samples]

    return values


def series(found: Found, workload: str, system: str, variant: int) -> Series:
    """A series that the table needs; raises Absent."""
    one = found.get(workload, system, variant)
    if one is None:
        raise Absent(f"{workload} {variant} of {system}")
    return one


US, GB = "cpu_us_per_request", "cpu_s_per_gb"
CPU_ROWS = (
    Row(
        "µs a GET of 2 KB, 64 connections",
        figure("small", 64, US),
        GOALS["CPU µs a request, hub + relay, 64 connections"],
    ),
    Row("µs a GET of 2 KB, 1 connection", figure("small", 1, US)),
    Row(
        "µs a PUT of 1 KB, 64 connections",
        figure("writes", 64, US),
        GOALS["CPU µs a PUT of 1 KB, 64 connections"],
    ),
    Row("µs a PUT of 1 KB, 1 connection", figure("writes", 1, US)),
    Row("ms a new TLS connection with one GET", figure("starts-connections", 1, US, 1e-3)),
    Row("ms the same, 16 at a time", figure("starts-connections", 16, US, 1e-3)),
    Row("s a GB down, one stream", figure("bulk", 1, GB), GOALS["CPU s a GB down, one stream"]),
    Row("s a GB up, one stream", figure("bulk-up", 1, GB)),
    Row(
        "µs a watch event, 2,000 a second in turn",
        figure("watch", 1000, US),
        GOALS["CPU µs an event of a watch, 2,000 a second"],
    ),
    Row(
        "µs a watch event, 10,000 a second in turn",
        figure("watch-many", 1000, US),
        GOALS["the same, 10,000 a second"],
    ),
    Row(
        "µs a watch event, to 1,000 watches at once",
        figure("watch-all", 1000, US),
        GOALS["the same, each to 1,000 watches at once"],
    ),
)
TIME_ROWS = (
    Row(
        "a GET, 1 connection: the median",
        over_direct("small", 1, "p50_ms"),
        GOALS["p50 ms added over direct, 1 connection"],
        compared=False,
    ),
    Row(
        "a GET, 1 connection: 99 of 100",
        over_direct("small", 1, "p99_ms"),
        GOALS["p99 ms added over direct, 1 connection"],
        compared=False,
    ),
    Row(
        "`kubectl get`, token in the kubeconfig",
        note("kubectl", "added_ms"),
        GOALS["ms kubectl get takes longer, with a token at hand"],
        compared=False,
    ),
    Row("`kubectl get`, plugin, cached token", note("kubectl-plugin", "added_ms"), compared=False),
    Row("`kubectl get`, plugin, new token", note("kubectl-token", "added_ms"), compared=False),
)


def cpu_table(found: Found) -> str:
    """CPU time of hub and relay together, beside nginx; raises Absent."""
    rows = [
        [*_cells(row, found), brief(_ratio(row, found)) if row.compared else "", _goal(row)]
        for row in CPU_ROWS
    ]
    return render(["CPU time", "Hawse", "nginx, no tunnel", "Hawse / nginx", "goal"], rows)


def time_table(found: Found) -> str:
    """What a user waits longer than without anything in between; raises Absent."""
    rows = [[*_cells(row, found), _goal(row)] for row in TIME_ROWS]
    return render(["ms longer than straight to the API server", "Hawse", "nginx, no tunnel", "goal"], rows)


def _cells(row: Row, found: Found) -> list[str]:
    return [row.title, *(spread(row.values(found, system)) for system in (OURS, YARDSTICK))]


def _ratio(row: Row, found: Found) -> float:
    pairs = zip(row.values(found, OURS), row.values(found, YARDSTICK), strict=True)
    return statistics.median(ours / theirs for ours, theirs in pairs)


def _goal(row: Row) -> str:
    return "" if row.goal is None else brief(row.goal)


def spread(values: Sequence[float]) -> str:
    """The median, and the range if there is more than one value."""
    middle = brief(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({brief(min(values))} to {brief(max(values))})"


def missed(found: Found) -> str:
    """A sentence with every row whose median misses its goal."""
    over = [
        f"{row.title} ({brief(middle)}, goal {brief(row.goal)})"
        for row in (*CPU_ROWS, *TIME_ROWS)
        if row.goal is not None and (middle := statistics.median(row.values(found, OURS))) > row.goal
    ]
    return f"Missed goals: {'; '.join(over)}." if over else "Every row that has a goal meets it."


def meaning(found: Found) -> str:
    """What the figures mean for a user, in sentences."""
    warm, cold = (statistics.median(note(name, "added_ms")(found, OURS)) for name in _PLUGIN)
    warm_all, cold_all = (statistics.median(figure(name, 1, "p50_ms")(found, OURS)) for name in _PLUGIN)
    core_us = CORE_SHARE * 1e6
    gets, puts = (count(core_us, hub_us(found, name, 64)) for name in ("small", "writes"))
    commands = count(core_us, hub_us(found, _PLUGIN[0], 1))
    return (
        f"An agent's `kubectl get` takes {_ms(warm)} longer than straight to the API "
        f"server, {_ms(warm_all)} in all. Once a minute, when the plugin needs a new token, it takes "
        f"{_ms(cold)} longer, {_ms(cold_all)} in all. At {CORE_SHARE:.0%} of its core, one hub serves "
        f"{gets} GETs a second over 64 open connections, or {puts} PUTs, or {commands} `kubectl` commands "
        "with a connection each."
    )


# With a token at hand, and with one to get.
_PLUGIN = ("kubectl-plugin", "kubectl-token")


def _ms(value: float) -> str:
    return f"{value:.0f} ms"


def hub_us(found: Found, workload: str, variant: int) -> float:
    """The hub's own CPU time for a request, the median of the runs: the relay has a core elsewhere."""
    samples = series(found, workload, OURS, variant).samples
    return statistics.median(sample.cpu_s["hub"] * 1e6 / sample.notes["requests"] for sample in samples)
