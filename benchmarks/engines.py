"""`python -m benchmarks.engines`: what a hub costs with its data in PostgreSQL, and with SQLite beside it.

Calls: two hubs are up at the same time, runs of the two alternate, and the figure is the median ratio of
their CPU time a call. Administration, with AGENTS agents in the directory: the hub's CPU time to add one more
and to register its key, and that of `hawse admin` and the hub together for a command. The database's own CPU
time is listed and not counted, since it may be on another machine.

The exit code is 1 when a figure exceeds its bound.
"""

from __future__ import annotations

import argparse
import resource
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

import attrs

from auth.keys import SigningKey
from auth.tokens import issue_enrolment
from benchmarks.accounting import cpu_s
from benchmarks.directory import add_agents
from benchmarks.figures import brief
from benchmarks.gate import Line, Pair, figure, measure_pass, summary
from benchmarks.machine import machine
from benchmarks.processes import prepare_process
from benchmarks.report import render, replace_section
from benchmarks.result import Sample
from benchmarks.runner import open_bench, say
from benchmarks.system import Missing
from benchmarks.systems.hawse import CLUSTER, TEAM, Enrolled, enrolled, open_hawse
from benchmarks.systems.postgres import open_database, open_on_postgres
from benchmarks.upstream.streams import open_streams
from proxy.agent.hub.requests import register_key
from proxy.agent.local.account import Account
from proxy.cli.admin.api.client import AdminClient, Reach
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.engines.postgres_address import PostgresAddress

PAGE: Final = Path(__file__).parent / "postgres" / "RESULTS.md"
TITLE: Final = "## Costs"
# In CPU time of the hub alone.
RATIO_MAX: Final = 1.15
LINES: Final = tuple(Line(name, 64, pairs=10, allowed=RATIO_MAX) for name in ("small", "mixed", "writes"))
PASSES: Final = 3
AGENTS: Final = 9_990
TIMES: Final = 20
ADDED_MS_MAX: Final = 10.0
COMMAND_MS_MAX: Final = 100.0
# Until the hub has read all agents, and between two actions: the end of an action is recorded after 20 ms.
READ_S: Final = 3.0
SETTLE_S: Final = 0.1


@attrs.frozen
class Figure:
    """One line of the table."""

    what: str
    values: tuple[float, ...]
    """Of SQLite and PostgreSQL."""
    unit: str
    ratio: float | None
    bound: float

    @property
    def met(self) -> bool:
        """Whether it is within its bound: the ratio where there is one, else both values."""
        return max(self.values if self.ratio is None else (self.ratio,)) <= self.bound

    def row(self) -> list[str]:
        """Its cells."""
        ratio = "" if self.ratio is None else brief(self.ratio)
        return [self.what, *(f"{value:.1f}" for value in self.values), self.unit, ratio, brief(self.bound)]


def hub_us(sample: Sample, process: str = "hub") -> float:
    """The CPU time of one process a call."""
    return sample.cpu_s[process] * 1e6 / sample.notes["requests"]


def measure_calls(folder: Path) -> list[Figure]:
    """Measure calls of two hubs side by side. Raises Missing and RunFailed."""
    figures = []
    with open_bench(folder, {"sqlite": open_hawse, "postgres": open_on_postgres}) as bench:
        if bench.missing:
            raise Missing("\n".join(bench.missing))
        for line in LINES:
            pairs: list[Pair] = []
            samples: list[Sample] = []

            def cost(sample: Sample, samples: list[Sample] = samples) -> float:
                samples.append(sample)
                return hub_us(sample)

            for _ in range(PASSES):
                pairs += measure_pass(bench, line, cost)
                say(f"{line}: {summary(pairs)}")
            both = tuple(
                statistics.median(getattr(pair, name) for pair in pairs) for name in ("yardstick", "ours")
            )
            database_us = statistics.median(
                hub_us(sample, "database") for sample in samples if "database" in sample.cpu_s
            )
            unit = f"CPU µs a call (the database: {database_us:.1f})"
            figures.append(Figure(f"`{line}`", both, unit, figure(pairs), RATIO_MAX))
    return figures


def measure_administration(folder: Path) -> list[Figure]:
    """Measure a hub on each engine, beside many agents. Raises Missing."""
    found: dict[tuple[str, float], list[float]] = {}
    with ExitStack() as stack:
        database = stack.enter_context(open_database(folder))
        (folder / "source").mkdir()
        source = stack.enter_context(open_streams(folder / "source"))
        engines: dict[str, tuple[dict[str, str], Location]] = {
            "sqlite": ({}, folder / "sqlite" / "hub" / "hub.db"),
            "postgres": ({"HAWSE_HUB_DATABASE_URL": database.url}, PostgresAddress(database.url)),
        }
        for name, (environment, location) in engines.items():
            (folder / name).mkdir()
            with enrolled(folder / name, source, name, environment) as hub:
                add_agents(location, AGENTS, TEAM)
                time.sleep(READ_S)
                for (what, bound), costs_s in administer(hub).items():
                    costs_ms = [cost_s * 1000 for cost_s in costs_s]
                    say(f"{name}: {what}: {min(costs_ms):.1f} ms, median {statistics.median(costs_ms):.1f}")
                    found.setdefault((what, bound), []).append(min(costs_ms))
    unit = "CPU ms, the least"
    return [Figure(what, tuple(values), unit, None, bound) for (what, bound), values in found.items()]


def administer(hub: Enrolled) -> dict[tuple[str, float], list[float]]:
    """Repeat each action, and return the CPU seconds of each time, by the action and its bound in ms."""
    client = Reach(None, hub.installation.folder / "hub").client()
    acts: dict[str, list[Callable[[], object]]] = {
        "an agent is added, hub": [partial(add_agent, client, f"new-{n}", "none") for n in range(TIMES)],
        "its key is registered, hub": [registration(hub, client, f"own-{n}") for n in range(TIMES)],
    }
    commands = {
        "agent lock": ["agent", "lock", "crowd-{0:05}"],
        "agent add": ["agent", "add", "commanded-{0}", "--team", TEAM, "--owner", "bench"],
        "cluster grant": ["cluster", "grant", CLUSTER, "team-{0}"],
    }
    for number in range(TIMES):
        client.post("teams", body={"name": f"team-{number}"})
    pid = hub.system.processes["hub"]
    costs = {(what, ADDED_MS_MAX): [spent(pid, act) for act in each] for what, each in acts.items()}
    for what, words in commands.items():
        costs[f"`hawse admin {what}`, command and hub", COMMAND_MS_MAX] = [
            spent(pid, partial(hub.installation.run, "admin", *(word.format(n) for word in words)))
            for n in range(TIMES)
        ]
    return costs


def add_agent(client: AdminClient, name: str, credential: str) -> Mapping[str, object]:
    """Add an agent by the API that `hawse admin` uses."""
    body = {"name": name, "owner": "bench", "teams": [TEAM], "credential": credential}
    return client.post("agents", body=body)


def registration(hub: Enrolled, client: AdminClient, name: str) -> Callable[[], object]:
    """Add an agent with a code, and return what registers its key with it."""
    code = str(add_agent(client, name, "code")["code"])
    key, url = SigningKey.generate(), hub.installation.url
    account = Account(url, "", None, hub.installation.ca.read_text(), secrets.token_hex(8))

    def prove(hub_time: str) -> str:
        jti = secrets.token_urlsafe(16)
        return issue_enrolment(key, hub_url=url, jti=jti, now=time.time(), hub_time=hub_time)

    return partial(register_key, account, code, key.public.to_jwk(), prove)


def spent(hub: int, act: Callable[[], object]) -> float:
    """The CPU seconds of the hub and of the processes that an action starts."""
    before_s, children = cpu_s(hub), resource.getrusage(resource.RUSAGE_CHILDREN)
    act()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    time.sleep(SETTLE_S)
    commands_s = after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime
    return cpu_s(hub) - before_s + commands_s


def section(figures: Sequence[Figure]) -> str:
    """The section of the page."""
    titles = ["", "SQLite", "PostgreSQL", "", "ratio", "at most"]
    about = [
        f"By `python -m benchmarks.engines --write`. Administration is measured beside {AGENTS:,} agents.",
        "\n".join(f"- {line}" for line in machine()),
    ]
    return "\n\n".join([TITLE, *about, render(titles, [each.row() for each in figures])])


def _made(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def main() -> None:
    """Measure, print, and with --write put the table on its page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", choices=("calls", "administration"), help="one half")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.parent.name}/{PAGE.name}")
    options = parser.parse_args()
    prepare_process()
    figures: list[Figure] = []
    try:
        with tempfile.TemporaryDirectory(prefix="hawse-engines-") as name:
            if options.only != "administration":
                figures += measure_calls(_made(Path(name), "calls"))
            if options.only != "calls":
                figures += measure_administration(_made(Path(name), "administration"))
    except Missing as error:
        sys.exit(str(error))
    print(section(figures))
    if options.write:
        page = PAGE.read_text()
        PAGE.write_text(replace_section(page, TITLE, section(figures)))
    if missed := [each.what for each in figures if not each.met]:
        sys.exit(f"above the bound: {', '.join(missed)}")


if __name__ == "__main__":
    main()
