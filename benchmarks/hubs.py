"""`python -m benchmarks.hubs`: what a call costs on two hubs, beside one hub with half of the agents.

Small reads by one hub and by two are alternated, each for a second, and so are the cases of two
hubs: relays with a tunnel to each hub, as is the default; with a tunnel to one of them, so that the calls of
half of the agents hop; and all agents at the hub without a tunnel. Relays dial a load balancer, and agents
the hubs. All hubs together are counted; everything else is listed. A ratio is the median over all rounds.

The tables go into docs/scaling.md. The exit code is 1 when the default exceeds its bound.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import attrs

from benchmarks.capacity import between
from benchmarks.figures import brief
from benchmarks.load import Job, Load
from benchmarks.machine import machine
from benchmarks.meter import measure
from benchmarks.processes import prepare_process
from benchmarks.report import render
from benchmarks.result import quantile
from benchmarks.runner import say
from benchmarks.scaling import DOCUMENT, END
from benchmarks.system import Missing, Upstream
from benchmarks.systems.hubs import NAMES, Hubs, open_hubs
from benchmarks.upstream.apiserver import POD_PATH, open_apiserver
from benchmarks.workload import RunFailed
from benchmarks.workloads.scale import scrape

BEGIN: Final = "<!-- written by `python -m benchmarks.hubs` -->"
# Of all hubs together, over that of one.
RATIO_MAX: Final = 1.35
AGENTS: Final = 64
PASSES: Final = 8
# Long enough for the lease, which a hub renews each 2 s, to be in many of the runs.
SECONDS: Final = 1.0
ROUNDS: Final = 3
# No round begins later in a pass. A busy machine draws one out, and an access token is good for 60 s.
PASS_S: Final = 30.0
_FORWARDED: Final = re.compile(rb"(?m)^hawse_forwarded_calls_total (\S+)$")


@attrs.frozen
class Case:
    """A row of the table."""

    title: str
    system: str
    agents: tuple[int, ...]
    """Connections to each hub, each with one call at a time."""
    bound: float | None = None


CASES: Final = (
    Case("one hub, 64 agents", "one", (AGENTS,)),
    Case("one hub, 128 agents", "one", (2 * AGENTS,)),
    Case("two hubs, 64 each; a tunnel to each", "two", (AGENTS, AGENTS), RATIO_MAX),
    Case("two hubs, 64 each; a tunnel to one", "hop", (AGENTS, AGENTS)),
    Case("two hubs, 128 at one; a tunnel to the other", "hop", (2 * AGENTS, 0)),
)
# How many hubs there are, and to which of them the relay has a tunnel.
SYSTEMS: Final = {"one": (1, [0]), "two": (2, [0, 1]), "hop": (2, [1])}


@attrs.frozen
class Costs:
    """What was measured of a case."""

    calls: int
    us: dict[str, float]
    """CPU µs a call, by process."""

    @property
    def hubs_us(self) -> float:
        """Of all hubs together."""
        return sum(self.us.get(name, 0.0) for name in NAMES)


@attrs.define
class Found:
    """All runs of a case."""

    case: Case
    runs: list[Costs] = attrs.Factory(list)
    hops: float = 0.0
    """Calls that one hub has forwarded to the other."""

    def median_us(self, name: str) -> float:
        """Of one process."""
        return statistics.median(run.us.get(name, 0.0) for run in self.runs)

    def hubs_us(self) -> float:
        """Of all hubs together."""
        return statistics.median(run.hubs_us for run in self.runs)

    def ratios(self, one: Found) -> list[float]:
        """To the runs of the same rounds by one hub, ordered."""
        pairs = zip(self.runs, one.runs, strict=True)
        return sorted(run.hubs_us / other.hubs_us for run, other in pairs)

    def share(self) -> float:
        """Of the calls, those that hop."""
        return self.hops / sum(run.calls for run in self.runs)


@contextmanager
def open_case(case: Case, hubs: Hubs, upstream: Upstream) -> Iterator[Callable[[], Costs]]:
    """Connect the agents, and yield a run. Raises RunFailed."""
    with ExitStack() as stack:
        loads = [
            stack.enter_context(Load(Job("requests", endpoint, POD_PATH, count, SECONDS)))
            for endpoint, count in zip(hubs.endpoints(), case.agents, strict=True)
            if count
        ]

        def run() -> Costs:
            with measure(hubs.system, upstream) as costs:
                for load in loads:
                    load.go()
                reports = [load.report() for load in loads]
            calls = sum(report.requests for report in reports)
            spent = {**costs.cpu_s, "clients": sum(report.cpu_s for report in reports)}
            return Costs(calls, {name: cpu_s * 1e6 / calls for name, cpu_s in spent.items()})

        yield run


def forwarded(hubs: Hubs) -> float:
    """Calls that the hubs have forwarded to one another since their start."""
    texts = [scrape(client) for client in hubs.clients]
    return sum(float(number) for text in texts for number in _FORWARDED.findall(text))


def measure_pass(found: Sequence[Found], systems: dict[str, Hubs], upstream: Upstream, rounds: int) -> None:
    """Add some rounds to what was found. Raises RunFailed, and then the last round is not in it."""
    began_s = time.monotonic()
    with ExitStack() as stack:
        runs = [
            stack.enter_context(open_case(each.case, systems[each.case.system], upstream)) for each in found
        ]
        order = list(range(len(found)))
        for number in range(rounds):
            if number and time.monotonic() - began_s > PASS_S:
                return
            measured = {}
            # Each case is first in a round, then last, so that a drift does not favour one.
            first = number % len(found)
            for which in order[first:] + order[:first]:
                hubs = systems[found[which].case.system]
                before = forwarded(hubs)
                costs = runs[which]()
                measured[which] = costs, forwarded(hubs) - before
            for which, (costs, hops) in measured.items():
                found[which].runs.append(costs)
                found[which].hops += hops


def table(found: Sequence[Found]) -> str:
    """A row for each case."""
    titles = ["CPU µs a call", "hubs", "over the first row", "at most", "hops"]
    titles += ["database", "relay", "balancer", "API server", "clients"]
    rows = []
    for each in found:
        ratios = each.ratios(found[0])
        ratio = "" if each is found[0] else spread(ratios)
        others = [each.median_us(name) for name in ("database", "relay", "balancer", "upstream", "clients")]
        bound = brief(each.case.bound)
        hops = f"{each.share():.0%}"
        rows.append([each.case.title, brief(each.hubs_us()), ratio, bound, hops, *map(brief, others)])
    return render(titles, rows)


def spread(ratios: Sequence[float]) -> str:
    """The median of ordered ratios, and their quartiles."""
    low, high = quantile(ratios, 0.25), quantile(ratios, 0.75)
    return f"{brief(statistics.median(ratios))} ({brief(low)} to {brief(high)})"


def missed(found: Sequence[Found]) -> list[str]:
    """The cases above their bounds."""
    return [
        each.case.title
        for each in found
        if each.case.bound is not None and statistics.median(each.ratios(found[0])) > each.case.bound
    ]


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hubs", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--print", action="store_true", help="print the table, and leave the document")
    parser.add_argument("--quick", action="store_true", help="does it work? Not figures to keep")
    asked = parser.parse_args()
    prepare_process()
    found = [Found(case) for case in CASES]
    try:
        with tempfile.TemporaryDirectory(prefix="hawse-hubs-") as name, ExitStack() as stack:
            folders = {each: Path(name) / each for each in ("upstream", *SYSTEMS)}
            for folder in folders.values():
                folder.mkdir()
            upstream = stack.enter_context(open_apiserver(folders["upstream"]))
            systems = {
                each: stack.enter_context(
                    open_hubs(folders[each], upstream, each, count, dialled, balanced=True)
                )
                for each, (count, dialled) in SYSTEMS.items()
            }
            for number in range(1 if asked.quick else PASSES):
                try:
                    measure_pass(found, systems, upstream, 1 if asked.quick else ROUNDS)
                except RunFailed as error:
                    say(f"a pass ended early: {error}")
                for each in found if found[0].runs else ():
                    say(f"{each.case.title}, pass {number + 1}: {spread(each.ratios(found[0]))}")
    except Missing as error:
        sys.exit(str(error))
    if not found[0].runs:
        sys.exit("no round was complete")
    where = f"Measured in {len(found[0].runs)} rounds on {', '.join(machine())}."
    if asked.print or asked.quick:
        print(table(found), where, sep="\n\n")
    else:
        DOCUMENT.write_text(between(DOCUMENT.read_text(), BEGIN, END, [table(found), where]))
    if above := missed(found):
        sys.exit(f"above the bound: {', '.join(above)}")


if __name__ == "__main__":
    main()
