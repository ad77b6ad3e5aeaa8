"""Changes of the directory beside 10,000 agents: how soon a lock counts, and what reading a change costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import cycle
from pathlib import Path

import pytest

from benchmarks.accounting import cpu_s
from benchmarks.directory import add_agents
from benchmarks.revocation import Figures, measure
from benchmarks.systems.hawse import TEAM, Enrolled, enrolled
from benchmarks.upstream.other import OtherUpstream
from benchmarks.upstream.streams import open_streams
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.store import Store
from tests.faults.figures import note
from tests.faults.postgres import FaultyPostgres, faulty_postgres
from tests.faults.reloading import RELOAD_EVERY_S, reloading

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

AGENTS = 10_000
STREAMS = 200
ROUNDS = 3
LOCK_P99_S, LOCK_BESIDE_P99_S = 2.0, 2.5
READINGS = 10
READING_S_MIN = 0.1
CHANGES = 20
CHANGE_EVERY_S = 1.0
CHANGE_CPU_MS = 20.0


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyPostgres]:
    with faulty_postgres() as running:
        yield running


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OtherUpstream]:
    with open_streams(tmp_path_factory.mktemp("source")) as running:
        yield running


@pytest.fixture(scope="module")
def hub(
    server: FaultyPostgres, source: OtherUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Enrolled]:
    folder = tmp_path_factory.mktemp("hub")
    with enrolled(folder, source, "hawse", {"HAWSE_HUB_DATABASE_URL": server.url}) as running:
        yield running


@pytest.fixture(scope="module")
def crowded_hub(server: FaultyPostgres, hub: Enrolled) -> Enrolled:
    add_agents(PostgresAddress(server.url), AGENTS, TEAM)
    return hub


def lock(hub: Enrolled, source: OtherUpstream, variant: str) -> Figures:
    """Lock the agent of 200 streams, some times."""
    figures = measure(hub, source.endpoint, "tunnel", STREAMS, ROUNDS)
    note(
        "from a lock to the last byte of 200 streams, with PostgreSQL",
        variant,
        p50_s=round(figures.share(0.5), 2),
        p99_s=round(figures.share(0.99), 2),
        last_s=round(figures.ended_s[-1], 2),
    )
    return figures


def test_a_lock_ends_200_streams_in_time(source: OtherUpstream, hub: Enrolled) -> None:
    assert lock(hub, source, "").share(0.99) < LOCK_P99_S


def test_a_lock_ends_200_streams_in_time_beside_readings_of_10_000_agents(
    server: FaultyPostgres, source: OtherUpstream, crowded_hub: Enrolled
) -> None:
    pid = crowded_hub.system.processes["hub"]
    with reloading(server):
        before = cpu_s(pid)
        time.sleep(READINGS * RELOAD_EVERY_S)
        reading_s = (cpu_s(pid) - before) / READINGS
        variant = f"beside readings of {AGENTS:,} agents, {reading_s:.2f} s of CPU each"
        figures = lock(crowded_hub, source, variant)
    assert reading_s > READING_S_MIN
    assert figures.share(0.99) < LOCK_BESIDE_P99_S


def test_a_change_beside_10_000_agents_costs_a_hub_on_postgresql_little_cpu(
    server: FaultyPostgres, crowded_hub: Enrolled
) -> None:
    cost_ms = change_cost_ms(crowded_hub, PostgresAddress(server.url), "PostgreSQL")
    assert cost_ms < CHANGE_CPU_MS


def test_a_change_beside_10_000_agents_costs_a_hub_on_sqlite_little_cpu(
    source: OtherUpstream, tmp_path: Path
) -> None:
    with enrolled(tmp_path, source, "hawse", {}) as hub:
        location = tmp_path / "hub" / "hub.db"
        add_agents(location, AGENTS, TEAM)
        assert change_cost_ms(hub, location, "SQLite") < CHANGE_CPU_MS


def change_cost_ms(hub: Enrolled, location: Location, engine: str) -> float:
    """The CPU time that the hub takes to read a change of another process."""
    pid, agent = hub.system.processes["hub"], f"crowd-{AGENTS // 2:05}"
    # The hub has read all agents by then.
    time.sleep(2 * CHANGE_EVERY_S)
    with closing(Store(location, org="acme", clock=time.time, shared=True)) as store:
        idle_s = _spent(pid, lambda: None)
        changes = cycle((store.lock_agent, store.unlock_agent))
        changing_s = _spent(pid, lambda: next(changes)(agent))
    cost_ms = (changing_s - idle_s) / CHANGES * 1000
    note("the hub's CPU for the reading of one change beside 10,000 agents", engine, cpu_ms=round(cost_ms, 1))
    return cost_ms


def _spent(pid: int, act: Callable[[], object]) -> float:
    """The CPU seconds of a process while this one does something again and again."""
    before = cpu_s(pid)
    for _ in range(CHANGES):
        act()
        time.sleep(CHANGE_EVERY_S)
    return cpu_s(pid) - before
