"""Several hubs on one PostgreSQL, behind one name."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.postgres import PostgresServer
from tests.system.hubs import CLUSTER, RELAYS, HubsWorld, administration_of, rows_of, running_hubs
from tests.system.raw import RawClient
from tests.system.world import AGENT, NAMESPACE, POD

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> Iterator[HubsWorld]:
    with (
        postgres.new_database() as database,
        running_hubs(tmp_path_factory.mktemp("hubs"), postgres.url(database)) as running,
    ):
        yield running


def test_kubectl_works_through_the_balancer(world: HubsWorld) -> None:
    done = world.kubectl("tunnel", "get", "pods")
    assert (done.code, POD.encode() in done.out) == (0, True)
    world.wait_for_tunnels(4)
    assert world.cut_relays() == 4


def test_a_third_relay_is_refused_whichever_hub_it_dials(world: HubsWorld) -> None:
    world.wait_for_tunnels(4)
    for member in world.members:
        tunnels = [row for row in rows_of(member, "relays") if row["connected"] and not row["leaving"]]
        # Two tunnels each, to two hubs, whichever hub is asked.
        assert len(tunnels) >= 4
        assert {str(row["instance"]) for row in tunnels} == set(RELAYS)
    world.start_relay(CLUSTER, "third")
    third = world.relays.pop(f"{CLUSTER}-third")
    third.wait_for("has 2 relays here")
    third.stop()
    assert all("third" not in names for names in world.tunnels().values())


def test_the_calls_of_all_hubs_are_listed_and_ended_at_any_of_them(world: HubsWorld) -> None:
    first, second, third = world.members
    with ExitStack() as stack:
        watches = []
        for member in world.members:
            client = RawClient(world, CLUSTER, at=member.port)
            watches.append(stack.enter_context(client.talk()))
            watches[-1].send(client.head(f"/api/v1/namespaces/{NAMESPACE}/pods?watch=1"))
            assert watches[-1].answer(body=False).status == 200
        ids = {row["hub"]: row["address"] for row in rows_of(first, "hubs")}
        assert len(set(ids.values())) == 3
        for member in world.members:
            assert sorted(str(row["hub"]) for row in rows_of(member, "sessions")) == sorted(ids)
        # A hub that hangs is named in time, and the others answer.
        third.signal(signal.SIGSTOP)
        try:
            found = administration_of(first).get("sessions")
            assert found["silent_hubs"] == [hub for hub in ids if ids[hub] == f"127.0.0.1:{third.peer_port}"]
            assert len(found["sessions"]) == 2
        finally:
            third.signal(signal.SIGCONT)
        kill = {"agent": AGENT, "reason": "incident 7"}
        killed = administration_of(second).post("sessions", "kill", body=kill)
        assert sorted(str(row["hub"]) for row in killed["killed"]) == sorted(ids)
        for watch in watches:
            assert b"incident 7" not in watch.rest()
        assert rows_of(third, "sessions") == []
