"""What the hub keeps of a relay in direct mode, and what it says to one that is real."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import Mock

import attrs
import pytest
import sqlalchemy as sa
import trio
from trio.testing import wait_all_tasks_blocked

from audit.ids import new_eid
from audit.reader import AuditReader
from audit.recording.opening import open_recorder
from audit.recording.recorder import Recorder
from audit.store import AuditStore
from auth.key_rotation import issue_rotation
from auth.keys import SigningKey
from auth.principal import Principal
from proxy.hub.authorize.events import Trail
from proxy.hub.relays import direct
from proxy.hub.relays.contexts import RENEW_AFTER_S
from proxy.hub.relays.direct import DirectRelays
from proxy.hub.relays.pins import Pins
from proxy.hub.store.directory import Directory, open_directory
from proxy.hub.store.entities import Cluster, Mode
from proxy.hub.store.migrations import tables
from proxy.hub.store.secrets.signing_keys import SigningKeys
from proxy.hub.store.store import Store
from proxy.kubernetes.statement import Statement
from proxy.message.failure import OutboundBroken, Processed, StreamCode
from sandbox.demo.processes import free_port
from tests.proxy.hub.relays.direct_relays import (
    ANN,
    NO_PINS,
    ask,
    cluster_at,
    name_the_caller,
    old_keys,
    open_relays,
)
from tests.proxy.relay.apiserver import running
from tests.proxy.relay.ways import CLUSTER_ID, HUB, KEY, direct_way

BOB = Principal("agent-2", "bob", "acme", ("web",))


def kept(relays: DirectRelays) -> int:
    return relays._relays[CLUSTER_ID].connections.idle_count


async def test_each_request_has_its_agents_identity_on_any_connection(tmp_path: Path) -> None:
    async with (
        running(name_the_caller, tmp_path) as server,
        direct_way(server.access, tmp_path) as way,
        open_relays(old_keys) as relays,
    ):
        cluster = cluster_at(way)
        assert await ask(relays, cluster, ANN) == b"agent:ann acme/sre"
        assert await ask(relays, cluster, BOB) == b"agent:bob acme/web"
        # At once, and not only when its token is renewed.
        assert await ask(relays, cluster, attrs.evolve(ANN, teams=("web",))) == b"agent:ann acme/web"
        assert kept(relays) == 1


async def test_a_relay_hears_of_a_new_key_on_the_connections_that_it_has(tmp_path: Path) -> None:
    keys, new = old_keys(), SigningKey.generate()
    async with (
        running(name_the_caller, tmp_path) as server,
        direct_way(server.access, tmp_path) as way,
        open_relays(lambda: keys) as relays,
    ):
        cluster = cluster_at(way)
        await ask(relays, cluster, ANN)
        now = time.time()
        said = issue_rotation(KEY, issuer=HUB, successor=new.public, now=now, retires_at=now + 120)
        keys = SigningKeys(new, (KEY, new), (said,))
        # What was signed before is good for as long as it lives, what is signed from now on as well.
        assert await ask(relays, cluster, ANN) == b"agent:ann acme/sre"
        assert await ask(relays, cluster, ANN, renew=True) == b"agent:ann acme/sre"
        assert kept(relays) == 1


async def test_a_refusal_of_the_relay_is_no_answer(tmp_path: Path) -> None:
    async with (
        running(name_the_caller, tmp_path) as server,
        direct_way(server.access, tmp_path) as way,
        open_relays(old_keys) as relays,
    ):
        other = attrs.evolve(cluster_at(way), id="another")
        with pytest.raises(OutboundBroken) as broken:
            await ask(relays, other, ANN)
        assert (broken.value.failure.code, broken.value.failure.processed) == (
            StreamCode.UNAUTHENTICATED,
            Processed.NO,
        )
        assert server.connections == []


async def test_a_cluster_that_has_moved_is_asked_where_it_is_now(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    async with (
        running(name_the_caller, here) as first,
        running(name_the_caller, there) as second,
        direct_way(first.access, here) as old,
        direct_way(second.access, there) as new,
        open_relays(old_keys) as relays,
    ):
        await ask(relays, cluster_at(old), ANN)
        left = relays._relays[CLUSTER_ID].connections
        assert await ask(relays, cluster_at(new), ANN) == b"agent:ann acme/sre"
        assert (len(first.connections), len(second.connections)) == (1, 1)
        await wait_all_tasks_blocked()
        assert left.idle_count == 0


async def test_of_a_cluster_that_was_removed_nothing_is_kept_once_another_is_asked(tmp_path: Path) -> None:
    async with running(name_the_caller, tmp_path) as server, direct_way(server.access, tmp_path) as way:
        # The relay knows but its own cluster, so nothing of the others is answered.
        here, *others = (attrs.evolve(cluster_at(way), id=id_) for id_ in (CLUSTER_ID, "c2", "c3"))
        enrolled = {CLUSTER_ID, "c2", "c3"}
        async with open_relays(old_keys, enrolled) as relays:
            await ask(relays, here, ANN)
            left = relays._relays[CLUSTER_ID].connections
            for other in others:
                with pytest.raises(OutboundBroken):
                    await ask(relays, other, ANN)
                enrolled.discard(CLUSTER_ID)
            assert relays._relays.keys() == {"c2", "c3"}
            await wait_all_tasks_blocked()
            assert left.idle_count == 0


async def test_a_clock_that_is_set_back_makes_no_token_young(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_800_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    key = SigningKey.generate()
    relay = Mock(cluster=Mock(id="c1"), session="s1", tokens={})
    ann = Principal("agent-1", "ann", "acme", ("sre",))
    async with trio.open_nursery() as nursery:
        relays = DirectRelays(
            keys=lambda: SigningKeys(key, (key,)),
            issuer="https://hub.example",
            new_id=new_eid,
            nursery=nursery,
            enrolled=set,
            pins=NO_PINS,
        )
        first = relays._token(relay, ann, renew=False)
        now += RENEW_AFTER_S - 0.1
        assert relays._token(relay, ann, renew=False) == first
        now -= 3600
        assert relays._token(relay, ann, renew=False) != first
        nursery.cancel_scope.cancel()


# -- what a relay states -------------------------------------------------------------------------------------


@attrs.define
class Enrolled:
    """A cluster in a store, its relay, and what that states."""

    directory: Directory
    relays: DirectRelays
    recorder: Recorder
    audit_file: Path
    statement: Statement

    @property
    def cluster(self) -> Cluster:
        return self.directory.current.clusters_by_id[CLUSTER_ID]

    async def ask(self) -> bytes:
        return await ask(self.relays, self.cluster, ANN)

    async def trail(self) -> list[tuple[str, str]]:
        """Kind and note of each event."""
        await self.recorder.flush()
        reader = AuditReader(self.audit_file)
        try:
            events = [json.loads(stored.body) for stored in reader.query()]
        finally:
            reader.close()
        return [(event["kind"], event.get("note", "")) for event in events]


@asynccontextmanager
async def enrolled(folder: Path, statement: Statement) -> AsyncIterator[Enrolled]:
    audit_file = folder / "audit.db"
    store = AuditStore(audit_file)
    async with (
        running(name_the_caller, folder) as server,
        direct_way(server.access, folder, statement=lambda: bench.statement) as way,
        open_recorder(store, org="acme") as recorder,
        open_directory(folder / "hub.db", org="acme", clock=time.time) as directory,
        open_relays(old_keys, pins=Pins(directory, recorder, Trail("acme"))) as relays,
    ):

        def add(store: Store) -> None:
            cluster_id = store.add_cluster(
                "far",
                mode=Mode.DIRECT,
                relay_url=f"https://127.0.0.1:{way.port}",
                relay_ca_pem=way.ca_pem,
                relay_address_private=True,
            )
            with store._change() as connection:
                # The one that the relay is of.
                row = sa.update(tables.clusters).where(tables.clusters.c.id == cluster_id)
                connection.execute(row.values(id=CLUSTER_ID))

        await directory.change(add)
        bench = Enrolled(directory, relays, recorder, audit_file, statement)
        yield bench
    store.close()


async def test_before_the_first_request_a_cluster_is_pinned(tmp_path: Path) -> None:
    async with enrolled(tmp_path, Statement("east", api_server=True)) as bench:
        assert list(bench.relays.here()) == []
        assert await bench.ask() == b"agent:ann acme/sre"
        assert bench.cluster.cluster_uid == "east"
        assert ("relay.pinned", "kube-system uid=east") in await bench.trail()
        (shown,) = bench.relays.here()
        assert (shown.cluster, shown.instance, shown.statement) == ("far", "direct", bench.statement)


async def test_nothing_is_sent_to_a_relay_in_another_cluster_until_that_is_meant(tmp_path: Path) -> None:
    async with enrolled(tmp_path, Statement("west", api_server=True)) as bench:
        await bench.directory.change(lambda store: store.pin_cluster(CLUSTER_ID, "east"))
        for _ in range(2):
            with pytest.raises(OutboundBroken, match="Kubernetes cluster than the pinned one") as broken:
                await bench.ask()
            assert broken.value.failure.processed is Processed.NO
        (refused,) = [note for kind, note in await bench.trail() if kind == "relay.refused"]
        assert refused.startswith("wrong cluster: if that is meant, `hawse admin cluster repin far`")
        await bench.directory.change(lambda store: store.unpin_cluster("far"))
        assert await bench.ask() == b"agent:ann acme/sre"
        assert bench.cluster.cluster_uid == "west"


async def test_a_relay_is_asked_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "ASK_EVERY_S", 0.05)
    async with enrolled(tmp_path, Statement("east", api_server=True)) as bench:
        await bench.ask()
        # Asked again, since pinning has changed the cluster.
        await bench.ask()
        bench.statement = Statement("west", api_server=False)
        with trio.fail_after(5):
            while not bench.relays._relays[CLUSTER_ID].refused:  # noqa: ASYNC110 - a socket decides it
                await trio.sleep(0.01)
        with pytest.raises(OutboundBroken, match="another Kubernetes cluster"):
            await bench.ask()
        bench.statement = Statement("east", api_server=False)
        with trio.fail_after(5):
            while bench.relays._relays[CLUSTER_ID].refused:  # noqa: ASYNC110 - as above
                await trio.sleep(0.01)
        assert await bench.ask() == b"agent:ann acme/sre"
        (shown,) = bench.relays.here()
        assert shown.statement.api_server is False


async def test_nothing_is_sent_to_a_relay_that_states_what_none_does(tmp_path: Path) -> None:
    async with enrolled(tmp_path, Statement("a/b")) as bench:
        with pytest.raises(OutboundBroken, match="statement is invalid"):
            await bench.ask()
        assert bench.cluster.cluster_uid is None
        # Nor is more read than a statement has.
        bench.statement = Statement("a" * 100_000)
        bench.relays._relays.clear()
        with pytest.raises(OutboundBroken, match="statement is invalid"):
            await bench.ask()


async def test_a_relay_that_states_nothing_is_served_also_where_a_cluster_is_pinned(tmp_path: Path) -> None:
    async with enrolled(tmp_path, Statement()) as bench:
        await bench.directory.change(lambda store: store.pin_cluster(CLUSTER_ID, "east"))
        assert await bench.ask() == b"agent:ann acme/sre"


async def test_a_relay_that_knows_no_such_question_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a version before this one: it takes an inquiry for a token that is none of its kinds.
    monkeypatch.setattr("proxy.relay.direct.STATEMENT_TARGET", b"/never")
    async with enrolled(tmp_path, Statement("west")) as bench:
        await bench.directory.change(lambda store: store.pin_cluster(CLUSTER_ID, "east"))
        assert await bench.ask() == b"agent:ann acme/sre"
        (shown,) = bench.relays.here()
        assert shown.statement == Statement()


@pytest.mark.parametrize("met_before", [False, True])
async def test_a_relay_that_was_not_there_is_asked_before_anything_is_sent_again(
    tmp_path: Path, met_before: bool
) -> None:
    async with enrolled(tmp_path, Statement("east")) as bench:
        if met_before:
            # Twice: it is asked again once it is pinned.
            await bench.ask()
            await bench.ask()
        else:
            await bench.directory.change(lambda store: store.pin_cluster(CLUSTER_ID, "east"))
        relay = bench.relays._relay(bench.cluster)
        connections, dial = relay.connections, relay.connections._dial

        async def fail() -> trio.abc.Stream:
            raise OSError("no route")

        connections._dial = fail
        await connections.aclose()
        with pytest.raises(OutboundBroken, match="no route"):
            await bench.ask()
        # What listens there now is another one.
        bench.statement = Statement("west")
        connections._dial = dial
        with pytest.raises(OutboundBroken, match="another Kubernetes cluster"):
            await bench.ask()
        bench.statement = Statement("east")


async def test_a_relay_that_is_not_there_is_dialled_once_for_the_first_request(tmp_path: Path) -> None:
    async with enrolled(tmp_path, Statement()) as bench:
        gone = attrs.evolve(bench.cluster, relay_url=f"https://127.0.0.1:{free_port()}")
        with pytest.raises(OutboundBroken) as broken:
            await ask(bench.relays, gone, ANN)
        assert (broken.value.failure.code, broken.value.failure.processed) == (
            StreamCode.DIAL_FAILED,
            Processed.NO,
        )
        assert list(bench.relays.here()) == []
