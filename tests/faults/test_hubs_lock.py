"""A lock at one hub ends the agent's streams at all hubs, also those that take the hop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import yaml

from benchmarks.directory import add_agents
from benchmarks.revocation import EVENTS_PER_S, SETTLE_S, Figures, listen, lock_and_wait, open_live
from benchmarks.system import Endpoint
from benchmarks.systems.hawse import kubeconfig
from benchmarks.upstream.other import OtherUpstream
from benchmarks.upstream.streams import open_streams
from benchmarks.workloads.watch import emit
from proxy.hub.store.engines.postgres_address import PostgresAddress
from tests.faults.figures import note
from tests.faults.hub_on_postgres import LIMITS
from tests.faults.hubs import settled
from tests.faults.postgres import FaultyPostgres, faulty_postgres
from tests.faults.reloading import reloading
from tests.system.hubs import CLUSTER, HubsWorld, running_hubs
from tests.system.raw import RawClient
from tests.system.world import AGENT, TEAM

pytestmark = [pytest.mark.long, pytest.mark.alone, pytest.mark.timeout(300)]

STREAMS = 201
ROUNDS = 3
AGENTS = 10_000
P99_S, BESIDE_P99_S = 2.0, 2.5
# One relay at one hub: two thirds of the streams take the hop.
SETTINGS = f"{LIMITS}streams_per_agent = 1000\ntunnels_per_relay = 1\n"


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyPostgres]:
    with faulty_postgres() as running:
        yield running


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OtherUpstream]:
    with open_streams(tmp_path_factory.mktemp("source")) as running:
        yield running


@pytest.fixture(scope="module")
def world(
    server: FaultyPostgres, source: OtherUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HubsWorld]:
    folder = tmp_path_factory.mktemp("hubs")
    access = folder / "upstream.kubeconfig"
    access.write_text(yaml.safe_dump(kubeconfig(source.endpoint)))
    with running_hubs(
        folder, server.url, relays=("relay-0",), relay_kubeconfig=access, settings=SETTINGS
    ) as running:
        running.until(lambda: settled(running, 1), "the hubs are settled", 60.0)
        yield running


def lock(world: HubsWorld, source: OtherUpstream, variant: str) -> Figures:
    """Lock the agent of a third of the streams at each hub, some times."""
    ended_s: list[float] = []
    for _ in range(ROUNDS):
        with ExitStack() as stack:
            live = []
            for member in world.members:
                endpoint = Endpoint("127.0.0.1", member.port, world.ca)
                token = RawClient(world, CLUSTER, at=member.port).token
                live += open_live(endpoint, CLUSTER, token, STREAMS // len(world.members), stack)
            emit(source.endpoint, EVENTS_PER_S)
            listen(live, SETTLE_S)
            ended_s += lock_and_wait(world.administration, live)
        world.administration.post("agents", AGENT, "unlock")
    figures = Figures("tunnel", tuple(sorted(ended_s)))
    note(
        f"from a lock at one hub to the last byte of {STREAMS} streams at three",
        variant,
        p50_s=round(figures.share(0.5), 2),
        p99_s=round(figures.share(0.99), 2),
        last_s=round(figures.ended_s[-1], 2),
    )
    return figures


def test_a_lock_ends_the_streams_at_every_hub_in_time(world: HubsWorld, source: OtherUpstream) -> None:
    assert lock(world, source, "").share(0.99) < P99_S


def test_a_lock_ends_the_streams_at_every_hub_in_time_beside_readings_of_10_000_agents(
    world: HubsWorld, source: OtherUpstream, server: FaultyPostgres
) -> None:
    add_agents(PostgresAddress(server.url), AGENTS, TEAM)
    with reloading(server):
        figures = lock(world, source, f"beside readings of {AGENTS:,} agents by each hub")
    assert figures.share(0.99) < BESIDE_P99_S
