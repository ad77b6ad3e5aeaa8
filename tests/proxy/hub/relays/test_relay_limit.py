"""Which relays of a cluster may be here together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import MockClock

from proxy.hub.relays.contexts import TokenContexts
from proxy.hub.relays.registry import LiveRelay, Registry
from proxy.hub.relays.relay_limit import ANSWER_S, LocalRelayLimit, RelayRefusedError
from proxy.hub.store.store import Store
from tests.tunnel.pairs import Pair, open_pair
from tunnel import StreamCode


async def note_nothing(write: Callable[[Store], str | None]) -> str | None:
    return None


@attrs.define(eq=False)
class Cluster:
    """Relays of one cluster, over transports that can fall silent."""

    stack: AsyncExitStack
    relay_limit: LocalRelayLimit = attrs.Factory(lambda: LocalRelayLimit(Registry(), 2, note_nothing))
    pairs: dict[LiveRelay, Pair] = attrs.Factory(dict)

    async def relay(self, instance: str, boot: str = "boot", cluster: str = "c1") -> LiveRelay:
        """One that has dialled, and is not in yet."""
        pair = await self.stack.enter_async_context(open_pair())
        session = pair.listener
        contexts = TokenContexts(session, lambda principal: "token", tuple)
        live = LiveRelay(cluster, "prod", instance, boot, "1", "192.0.2.1", 0.0, session, contexts)
        self.pairs[live] = pair
        return live

    async def come(self, instance: str, boot: str = "boot", cluster: str = "c1") -> LiveRelay:
        """One that has come in; raises RelayRefusedError."""
        live = await self.relay(instance, boot, cluster)
        await self.stack.enter_async_context(self.relay_limit.admitted(live))
        self.stack.enter_context(self.relay_limit.registry.registered(live))
        return live


@asynccontextmanager
async def open_cluster() -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        yield Cluster(stack)


async def test_two_may_be_here_and_a_third_may_not(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        await cluster.come("a")
        await cluster.come("b")
        began = trio.current_time()
        with pytest.raises(RelayRefusedError, match=r"2 relays here \(a, b\), the limit is 2"):
            await cluster.come("c")
        # Two that answer cause no wait.
        assert trio.current_time() - began < 1
        # Each cluster for itself.
        await cluster.come("c", cluster="c2")


@pytest.mark.parametrize("by_relay", [True, False])
async def test_who_goes_away_leaves_its_place(autojump_clock: MockClock, by_relay: bool) -> None:
    async with open_cluster() as cluster:
        first, _ = await cluster.come("a"), await cluster.come("b")
        pair = cluster.pairs[first]
        side = pair.dialer if by_relay else pair.listener
        side.go_away(code=StreamCode.DRAINING, drain_ms=1000, reason="rollout")
        await trio.sleep(0.1)
        await cluster.come("c")
        # What is open there goes on.
        assert not first.session.closed
        with pytest.raises(RelayRefusedError, match=r"\(b, c\)"):
            await cluster.come("d")


async def test_who_does_not_answer_makes_room(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        gone, here = await cluster.come("a"), await cluster.come("b")
        cluster.pairs[gone].wire.unplugged = True
        began = trio.current_time()
        await cluster.come("c")
        assert trio.current_time() - began == pytest.approx(ANSWER_S)
        assert (gone.session.closed, here.session.closed) == (True, False)
        assert await gone.session.wait_closed() == "no answer within 5 s when relay c connected"
        cluster.pairs[gone].wire.unplugged = False


async def test_the_same_process_takes_its_old_connections_place_at_once(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        await cluster.come("a")
        await cluster.come("b")
        old = next(iter(cluster.pairs))
        cluster.pairs[old].wire.unplugged = True
        began = trio.current_time()
        again = await cluster.relay("a")
        async with cluster.relay_limit.admitted(again):
            assert trio.current_time() - began < 1
            with cluster.relay_limit.registry.registered(again) as superseded:
                assert superseded is old
        cluster.pairs[old].wire.unplugged = False


async def test_another_process_of_the_same_name_waits_while_the_first_answers(
    autojump_clock: MockClock,
) -> None:
    async with open_cluster() as cluster:
        first = await cluster.come("a", "boot-1")
        with pytest.raises(
            RelayRefusedError,
            match=r"is connected as relay a of cluster prod, from .*: give each its own instance name$",
        ):
            await cluster.come("a", "boot-2")
        assert not first.session.closed
        # Its machine is gone without a word: the next one is let in.
        cluster.pairs[first].wire.unplugged = True
        async with cluster.relay_limit.admitted(await cluster.relay("a", "boot-2")):
            assert first.session.closed
        cluster.pairs[first].wire.unplugged = False


async def test_two_that_come_together_do_not_both_get_the_last_place(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        await cluster.come("a")
        refused = 0

        async def come(live: LiveRelay) -> None:
            nonlocal refused
            try:
                await cluster.stack.enter_async_context(cluster.relay_limit.admitted(live))
            except RelayRefusedError:
                refused += 1
            else:
                cluster.stack.enter_context(cluster.relay_limit.registry.registered(live))

        rivals = [await cluster.relay("b"), await cluster.relay("c")]
        async with trio.open_nursery() as nursery:
            for rival in rivals:
                nursery.start_soon(come, rival)
        assert refused == 1
        assert len(list(cluster.relay_limit.registry.relays())) == 2
