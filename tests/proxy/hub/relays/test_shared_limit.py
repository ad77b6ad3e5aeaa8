"""Which relays of a cluster may be at several hubs together, on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import attrs
import psycopg
import pytest
import trio
import trio.lowlevel

from auth.keys import SigningKey
from proxy.hub.membership.tunnels import Tunnels
from proxy.hub.relays import relay_limit, shared_limit
from proxy.hub.relays.contexts import TokenContexts
from proxy.hub.relays.registry import LiveRelay
from proxy.hub.relays.relay_limit import RelayRefusedError
from proxy.hub.relays.shared_limit import (
    DISPLACED,
    SharedRelayLimit,
    SlotUnavailableError,
    open_shared_limit,
)
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.store import Store
from tests.fakes.databases import run
from tests.fakes.hub_rows import add_hub
from tests.tunnel.pairs import Pair, open_pair
from tunnel import CloseCode

HUBS = "hub-1", "hub-2"
SOON_S = 0.1


@attrs.define(eq=False)
class Hubs:
    """Two hubs, the relays of one cluster, and transports that can fall silent."""

    cluster_id: str
    stack: AsyncExitStack
    limits: dict[str, SharedRelayLimit] = attrs.Factory(dict)
    pairs: dict[LiveRelay, Pair] = attrs.Factory(dict)
    slots: dict[LiveRelay, AsyncExitStack] = attrs.Factory(dict)
    linked: bool = True

    async def ask(self, hub: str, session: str, instance: str) -> bool:
        return self.linked and await self.limits[hub].answers(session, instance)

    async def relay(self, instance: str, boot: str = "boot") -> LiveRelay:
        """One that has dialled, and has no slot yet."""
        pair = await self.stack.enter_async_context(open_pair())
        contexts = TokenContexts(pair.listener, lambda principal: "token", tuple)
        # One after the other: of several, the earliest loses its slot first.
        at = float(len(self.pairs))
        live = LiveRelay(
            self.cluster_id, "prod", instance, boot, "1", "192.0.2.1", at, pair.listener, contexts, "kid"
        )
        self.pairs[live] = pair
        return live

    async def come(self, hub: str, instance: str, boot: str = "boot") -> LiveRelay:
        """One that has a slot; raises RelayRefusedError."""
        live = await self.relay(instance, boot)
        slot = await self.stack.enter_async_context(AsyncExitStack())
        await slot.enter_async_context(self.limits[hub].admitted(live))
        self.slots[live] = slot
        return live

    async def leave(self, relay: LiveRelay) -> None:
        await self.slots[relay].aclose()

    async def compare(self, hub: str) -> None:
        """Compare the hub's sessions with the table, and let it correct them."""
        async with trio.open_nursery() as nursery:
            await self.limits[hub]._compare(nursery)

    @contextmanager
    def unplugged(self, *relays: LiveRelay) -> Any:
        """Silence relays, without a word to the hub."""
        for relay in relays:
            self.pairs[relay].wire.unplugged = True
        yield
        for relay in relays:
            self.pairs[relay].wire.unplugged = False

    async def rows(self) -> dict[str, list[tuple[str, bool]]]:
        """The hub of each tunnel and whether it leaves, by instance, once no batch waits."""
        with trio.fail_after(10):
            # A batch is written by a thread, which trio cannot wait for.
            while any(each._dials or each._left or each._ended for each in self.limits.values()):  # noqa: ASYNC110
                await trio.sleep(0.01)
        found: dict[str, list[tuple[str, bool]]] = {}
        for each in self.limits["hub-1"]._tunnels.tunnels():
            key = each.tunnel.contact.instance
            found.setdefault(key, []).append((each.tunnel.hub_boot, each.tunnel.leaving))
        return {key: sorted(rows) for key, rows in found.items()}


@pytest.fixture
def address(in_postgres: PostgresAddress, monkeypatch: pytest.MonkeyPatch) -> PostgresAddress:
    """The rows of two hubs. Time is real, since a thread and a server take part."""
    for module, name in ((relay_limit, "ANSWER_S"), (shared_limit, "ANSWER_S"), (shared_limit, "REPLY_S")):
        monkeypatch.setattr(module, name, SOON_S)
    for boot in HUBS:
        add_hub(in_postgres, boot)
    return in_postgres


@asynccontextmanager
async def open_hubs(address: PostgresAddress) -> AsyncIterator[Hubs]:
    store = Store(address, org="main", clock=lambda: 1000.0)
    cluster_id = store.add_cluster("prod", relay_key=SigningKey.generate().public)
    store.close()
    async with AsyncExitStack() as stack:
        hubs = Hubs(cluster_id, stack)
        for boot in HUBS:
            opened = open_shared_limit(address, org="main", hub_boot=boot, relays_per_cluster=2)
            limit = hubs.limits[boot] = await stack.enter_async_context(opened)
            limit.ask = hubs.ask
        yield hubs


async def test_a_third_relay_is_refused_at_each_hub(address: PostgresAddress) -> None:
    async with open_hubs(address) as hubs:
        await hubs.come("hub-1", "a")
        await hubs.come("hub-2", "b")
        for hub in HUBS:
            with pytest.raises(RelayRefusedError, match=r"2 relays here \(a, b\), the limit is 2"):
                await hubs.come(hub, "c")
            # A second tunnel of the same process takes no slot.
            await hubs.come(hub, "a")
        assert await hubs.rows() == {
            "a": [("hub-1", False), ("hub-1", False), ("hub-2", False)],
            "b": [("hub-2", False)],
        }


async def test_a_slot_is_free_once_its_tunnel_has_ended(address: PostgresAddress) -> None:
    async with open_hubs(address) as hubs:
        first = await hubs.come("hub-1", "a")
        await hubs.come("hub-1", "b")
        await hubs.leave(first)
        await hubs.come("hub-2", "c")
        assert await hubs.rows() == {"b": [("hub-1", False)], "c": [("hub-2", False)]}


async def test_another_process_of_an_instance_at_another_hub_waits_while_the_first_answers(
    address: PostgresAddress,
) -> None:
    async with open_hubs(address) as hubs:
        first = await hubs.come("hub-1", "a", "boot-1")
        with pytest.raises(
            RelayRefusedError,
            match=r"connected at hub hub-1 as relay a of cluster prod, from .*: give each its own instance",
        ):
            await hubs.come("hub-2", "a", "boot-2")
        assert not first.session.closed
        with hubs.unplugged(first):
            await hubs.come("hub-2", "a", "boot-2")
            assert await first.session.wait_closed() == "no answer within 0 s when relay a connected"
        await hubs.leave(first)
        assert await hubs.rows() == {"a": [("hub-2", False)]}


async def test_a_relay_that_drains_gives_up_its_slot_at_another_hub(address: PostgresAddress) -> None:
    async with open_hubs(address) as hubs:
        first = await hubs.come("hub-1", "a")
        await hubs.come("hub-2", "b")
        hubs.pairs[first].dialer.go_away(code=CloseCode.DRAINING, drain_ms=1000, reason="rollout")
        with trio.fail_after(5):
            await first.session.wait_going_away()
        await hubs.come("hub-2", "c")
        # What is open there goes on.
        assert not first.session.closed
        assert (await hubs.rows())["a"] == [("hub-1", True)]


async def test_a_hub_that_cannot_be_asked_loses_one_slot_and_ends_its_session(
    address: PostgresAddress,
) -> None:
    async with open_hubs(address) as hubs:
        old = await hubs.come("hub-1", "a")
        other = await hubs.come("hub-1", "b")
        hubs.linked = False
        await hubs.come("hub-2", "c")
        await hubs.compare("hub-1")
        assert await old.session.wait_closed() == DISPLACED
        assert not other.session.closed
        await hubs.leave(old)
        assert await hubs.rows() == {"b": [("hub-1", False)], "c": [("hub-2", False)]}


async def never(hub: str, session: str, instance: str) -> bool:
    await trio.sleep_forever()


async def test_a_hub_that_does_not_answer_a_question_loses_the_slot(address: PostgresAddress) -> None:
    async with open_hubs(address) as hubs:
        await hubs.come("hub-1", "a", "boot-1")
        hubs.limits["hub-2"].ask = never
        await hubs.come("hub-2", "a", "boot-2")
        assert await hubs.rows() == {"a": [("hub-1", True), ("hub-2", False)]}


async def test_a_relay_that_drains_is_noted_by_its_hub(address: PostgresAddress) -> None:
    async with open_hubs(address) as hubs:
        first = await hubs.come("hub-1", "a")
        first.session.go_away(code=CloseCode.DRAINING, drain_ms=1000, reason="the hub stops")
        await hubs.compare("hub-1")
        assert await hubs.rows() == {"a": [("hub-1", True)]}


async def test_a_row_that_is_lost_is_written_again(address: PostgresAddress) -> None:
    async with open_hubs(address) as hubs:
        first, _ = await hubs.come("hub-1", "a"), await hubs.come("hub-1", "b")
        run(address, "delete from tunnels")
        await hubs.come("hub-2", "c")
        await hubs.compare("hub-1")
        # One of the two has come too late, and c answers.
        rows = await hubs.rows()
        assert len(rows) == 2
        assert rows["c"] == [("hub-2", False)]
        assert [relay.session.closed for relay in hubs.pairs if relay.instance not in rows] == [True]
        assert first.session.closed != ("a" in rows)


async def test_a_row_without_a_session_is_deleted(address: PostgresAddress) -> None:
    async with open_hubs(address) as hubs:
        await hubs.come("hub-1", "a")
        run(address, "update tunnels set session = 'gone'")
        await hubs.compare("hub-1")
        assert await hubs.rows() == {"a": [("hub-1", False)]}
        assert await hubs.limits["hub-1"].elsewhere() == []
        (found,) = await hubs.limits["hub-2"].elsewhere()
        assert (found.hub, found.living, found.tunnel.session != "gone") == ("hub-1", True, True)


async def test_a_dial_that_the_database_does_not_decide_leaves_nothing(
    address: PostgresAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_hubs(address) as hubs:
        monkeypatch.setattr(shared_limit, "WAIT_S", SOON_S)
        with psycopg.connect(address.url) as other:
            other.execute("select from clusters for update")
            with pytest.raises(SlotUnavailableError, match="did not record the relay in 0 s: try again"):
                await hubs.come("hub-1", "a")
        assert await hubs.rows() == {}


async def test_a_database_that_fails_is_tried_again(address: PostgresAddress) -> None:
    async with open_hubs(address) as hubs:
        first = await hubs.come("hub-1", "a")
        run(
            address,
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and application_name = 'hawse-hub'",
        )
        await hubs.leave(first)
        await hubs.come("hub-1", "b")
        assert await hubs.rows() == {"b": [("hub-1", False)]}


async def test_many_dials_share_a_commit(address: PostgresAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_limit, "BATCH_MAX", 20)
    # How long a dial waits is the subject of another test. On a busy machine, these may need longer.
    monkeypatch.setattr(shared_limit, "WAIT_S", 50.0)
    async with open_hubs(address) as hubs:
        batches: list[int] = []

        def counted(change: Callable[..., Any], store: Tunnels, dials: Any = (), **more: Any) -> Any:
            batches.append(len(dials))
            return change(store, dials, **more)

        change = Tunnels.change_tunnels
        monkeypatch.setattr(Tunnels, "change_tunnels", lambda *args, **more: counted(change, *args, **more))
        relays = [await hubs.relay("a") for _ in range(40)]
        async with trio.open_nursery() as nursery:

            async def come(relay: LiveRelay) -> None:
                async with hubs.limits["hub-1"].admitted(relay):
                    pass

            for relay in relays:
                nursery.start_soon(come, relay)
        assert sum(batches) == len(relays)
        assert max(batches) == 20
        assert len(batches) < 6


async def test_a_hub_that_stops_deletes_its_tunnels(address: PostgresAddress) -> None:
    add_hub(address, "hub-3")
    opened = partial(open_shared_limit, address, org="main", hub_boot="hub-3", relays_per_cluster=2)
    async with open_hubs(address) as hubs:
        relay = await hubs.relay("a")
        async with opened() as limit, limit.admitted(relay):
            assert await hubs.rows() == {"a": [("hub-3", False)]}
        assert await hubs.rows() == {}
