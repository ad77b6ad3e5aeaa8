"""Exchanges of the relay on kept connections: one that is given up is not sent again."""

from __future__ import annotations

from typing import cast

import attrs
import pytest
import trio
from trio.testing import MemoryReceiveStream, MockClock, memory_stream_pair, wait_all_tasks_blocked

from proxy.exchange.pool import IDLE_S, Connections
from proxy.exchange.pooled import PooledOutbound
from proxy.message.failure import OutboundBroken, Processed, StreamCode
from proxy.message.head import RequestHead
from proxy.message.rewrite import identity_lines, relay_request_head
from proxy.relay.pool import Exchange, Pool
from proxy.relay.service_account import ClusterAccess

WATCH = RequestHead.of(b"GET", b"/api/v1/pods?watch=1", ((b"host", b"x"),))
IDENTITY = identity_lines(((b"impersonate-user", b"agent:a"), (b"impersonate-group", b"agents")))
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
UNAUTHORIZED = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno"
# Within what a dial may take.
SLOW_S = 8.0


@attrs.define(eq=False)
class EagerStream(trio.abc.Stream):
    """What is sent is on its way at once, without a checkpoint, as it is on a TCP stream of ours."""

    ours: trio.abc.Stream
    at_peer: MemoryReceiveStream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            self.at_peer.put_data(data)
        except trio.ClosedResourceError as error:
            raise trio.BrokenResourceError from error

    async def wait_send_all_might_not_block(self) -> None:
        raise NotImplementedError

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.ours.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.ours.aclose()


@attrs.define(eq=False)
class Server:
    """A server in memory, the credentials for it, and how long it takes to reach it."""

    connections: Connections = attrs.field(init=False)
    dials: int = 0
    ends: list[trio.abc.Stream] = attrs.Factory(list)
    """Its ends of the connections."""
    dial_s: float = 0.0
    dial_is_shielded: bool = False
    """So that it succeeds although it was cancelled, as one does whose last step was done already."""
    credential: int = 1
    authority: bytes = b"x"

    @connections.default
    def _its_connections(self) -> Connections:
        return Connections(self.dial, "the server")

    async def dial(self) -> trio.abc.Stream:
        self.dials += 1
        with trio.CancelScope(shield=self.dial_is_shielded):
            await trio.sleep(self.dial_s)
        ours, theirs = memory_stream_pair()
        self.ends.append(theirs)
        return EagerStream(ours, theirs.receive_stream)

    # -- what a relay's pool asks for its access

    def token(self) -> str:
        return str(self.credential)

    def refresh_token(self) -> bool:
        self.credential += 1
        return True

    # --

    def exchange(self) -> PooledOutbound:
        pool = Pool(cast(ClusterAccess, self), self.connections)
        return Exchange(pool, WATCH, IDENTITY)

    def seen_request(self) -> bytes:
        """What arrives of such an exchange's request."""
        return relay_request_head(WATCH, self.authority, "1", IDENTITY).encode()

    async def started_on_a_kept_connection(self) -> PooledOutbound:
        """An exchange whose request is sent, on a connection that has served another one."""
        before = self.exchange()
        await before.start()
        await self.ends[0].send_all(OK)
        await before.receive_head()
        assert await before.receive_body() == b"ok"
        await before.aclose()
        exchange = self.exchange()
        await exchange.start()
        assert self.dials == 1
        return exchange


async def seen_of(end: trio.abc.Stream) -> bytes:
    """All that came on a connection, which must be closed."""
    seen = b""
    with trio.fail_after(1):
        while data := await end.receive_some():
            seen += data
    return seen


@attrs.define(eq=False)
class Waiting:
    """A task that waits for the answer's head."""

    exchange: PooledOutbound
    broken: OutboundBroken | None = None
    ended_at: float | None = None

    async def run(self) -> None:
        try:
            with trio.fail_after(3 * SLOW_S):
                await self.exchange.receive_head()
        except OutboundBroken as error:
            self.broken = error
        self.ended_at = trio.current_time()

    @property
    def code(self) -> StreamCode | None:
        return None if self.broken is None else self.broken.failure.code


async def test_an_exchange_that_is_given_up_ends_the_dial_for_its_second_try(
    autojump_clock: MockClock,
) -> None:
    server = Server()
    exchange = await server.started_on_a_kept_connection()
    server.dial_s = SLOW_S
    waiting = Waiting(exchange)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiting.run)
        await server.ends[0].aclose()
        await wait_all_tasks_blocked()
        assert server.dials == 2
        given_up_at = trio.current_time()
        await exchange.abandon()
    await exchange.aclose()
    assert (waiting.code, waiting.ended_at) == (StreamCode.CANCEL, given_up_at)
    assert len(server.ends) == 1


async def test_a_second_connection_that_comes_too_late_is_closed_unused(autojump_clock: MockClock) -> None:
    server = Server()
    exchange = await server.started_on_a_kept_connection()
    server.dial_s, server.dial_is_shielded = SLOW_S, True
    waiting = Waiting(exchange)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiting.run)
        await server.ends[0].aclose()
        await wait_all_tasks_blocked()
        await exchange.abandon()
    await exchange.aclose()
    assert waiting.code is StreamCode.CANCEL
    assert await seen_of(server.ends[1]) == b""
    assert server.connections.idle_count == 0


async def test_what_is_not_given_up_is_sent_once_more(autojump_clock: MockClock) -> None:
    server = Server()
    exchange = await server.started_on_a_kept_connection()
    server.dial_s = SLOW_S
    waiting = Waiting(exchange)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiting.run)
        await server.ends[0].aclose()
        await trio.sleep(SLOW_S + 1)
        await server.ends[1].send_all(OK)
    assert waiting.broken is None
    assert await exchange.receive_body() == b"ok"
    await exchange.aclose()
    assert server.connections.idle_count == 1


async def test_a_request_does_not_follow_on_a_first_connection_that_comes_as_it_is_cancelled(
    autojump_clock: MockClock,
) -> None:
    server = Server(dial_s=SLOW_S, dial_is_shielded=True)
    exchange = server.exchange()
    with trio.move_on_after(1) as scope:
        await exchange.start()
    assert scope.cancelled_caught
    assert await seen_of(server.ends[0]) == b""


@pytest.mark.parametrize("shielded", [False, True])
async def test_an_exchange_that_is_given_up_during_its_first_dial_is_not_begun(
    autojump_clock: MockClock, shielded: bool
) -> None:
    server = Server(dial_s=SLOW_S, dial_is_shielded=shielded)
    exchange = server.exchange()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_start_in_vain, exchange)
        await wait_all_tasks_blocked()
        await exchange.abandon()
    assert trio.current_time() - began == (SLOW_S if shielded else 0)
    assert [await seen_of(end) for end in server.ends] == [b""] * shielded


async def _start_in_vain(exchange: PooledOutbound) -> None:
    with pytest.raises(OutboundBroken) as caught:
        await exchange.start()
    failure = caught.value.failure
    assert (failure.code, failure.processed) == (StreamCode.CANCEL, Processed.NO)


@pytest.mark.parametrize("shielded", [False, True])
async def test_an_exchange_that_is_given_up_is_not_sent_under_another_credential(
    autojump_clock: MockClock, shielded: bool
) -> None:
    server = Server()
    exchange = server.exchange()
    await exchange.start()
    server.dial_s, server.dial_is_shielded = SLOW_S, shielded
    waiting = Waiting(exchange)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiting.run)
        await server.ends[0].send_all(UNAUTHORIZED)
        await trio.sleep(1)
        assert server.dials == 2
        await exchange.abandon()
    await exchange.aclose()
    assert waiting.code is StreamCode.CANCEL
    assert [await seen_of(end) for end in server.ends[1:]] == [b""] * shielded


async def test_connections_that_are_too_old_are_closed_although_their_finder_is_cancelled(
    autojump_clock: MockClock,
) -> None:
    server = Server()
    exchanges = [server.exchange() for _ in range(2)]
    for exchange in exchanges:
        await exchange.start()
    for number in (0, 1):
        await server.ends[number].send_all(OK)
        await exchanges[number].receive_head()
        assert await exchanges[number].receive_body() == b"ok"
    for exchange in exchanges:
        await exchange.aclose()
    await trio.sleep(IDLE_S)
    exchange = server.exchange()
    with trio.CancelScope() as scope:
        scope.cancel()
        await exchange.start()
    assert scope.cancelled_caught
    assert [await seen_of(end) for end in server.ends] == [server.seen_request()] * 2
