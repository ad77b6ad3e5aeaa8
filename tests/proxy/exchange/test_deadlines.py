from __future__ import annotations

import socket
from contextlib import suppress

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from proxy.exchange.deadlines import IDLE_S, SWEEP_S
from proxy.exchange.server import HEAD_S, ServerConnection
from tests.proxy.exchange.legs import answer_ok, read_until, swept
from tunnel.net.tcp import TCPStream

GET = b"GET /api HTTP/1.1\r\nHost: a\r\n\r\n"


async def exchange(client: trio.abc.Stream, connection: ServerConnection) -> None:
    await client.send_all(GET)
    assert await connection.next_request() is not None
    await answer_ok(connection)
    await read_until(client, b"\r\n\r\n")


async def test_a_connection_that_is_idle_for_too_long_is_closed(autojump_clock):
    async with swept() as deadlines:
        client, server = memory_stream_pair()
        connection = ServerConnection(server, deadlines)
        await exchange(client, connection)
        began = trio.current_time()
        assert await connection.next_request() is None
        assert IDLE_S - SWEEP_S <= trio.current_time() - began <= IDLE_S + SWEEP_S
        assert await client.receive_some() == b""


async def test_a_wait_that_was_over_in_time_is_no_wait_any_more(autojump_clock):
    async with swept() as deadlines:
        client, server = memory_stream_pair()
        connection = ServerConnection(server, deadlines)
        for _ in range(3):
            await trio.sleep(IDLE_S * 0.9)
            await exchange(client, connection)
        # Nor is an exchange that takes its time.
        await client.send_all(GET)
        await connection.next_request()
        await trio.sleep(4 * IDLE_S)
        await answer_ok(connection)
        await read_until(client, b"\r\n\r\n")
        await connection.aclose()


async def test_a_head_that_began_has_its_own_deadline(autojump_clock):
    async with swept() as deadlines:
        client, server = memory_stream_pair()
        connection = ServerConnection(server, deadlines)
        await exchange(client, connection)
        await client.send_all(GET[:10])
        began = trio.current_time()
        with pytest.raises(Exception, match="408"):
            await connection.next_request()
        assert trio.current_time() - began == pytest.approx(HEAD_S)
        await connection.aclose()


async def test_a_cancelled_wait_and_a_closed_connection_are_forgotten(autojump_clock):
    async with swept() as deadlines:
        client, server = memory_stream_pair()
        connection = ServerConnection(server, deadlines)
        await exchange(client, connection)
        with trio.move_on_after(1):
            await connection.next_request()
        await trio.sleep(2 * IDLE_S)
        # The stream is still open.
        await client.send_all(b"x")
        await connection.cut()
        assert deadlines.watched == 0


async def test_a_request_that_comes_as_others_are_closed_is_answered(autojump_clock):
    """To close one takes a pass of the scheduler, in which the next one's wait may be over."""
    begun = answered = 0

    async def serve(connection: ServerConnection) -> None:
        nonlocal begun
        if await connection.next_request() is not None:
            begun += 1
            await trio.sleep(1)
            await answer_ok(connection)
            await connection.aclose()

    async def ask(client: TCPStream, at: float) -> None:
        nonlocal answered
        await trio.sleep_until(at)
        async with client:
            with suppress(trio.BrokenResourceError):
                await client.send_all(GET)
                if await client.receive_some():
                    answered += 1

    async with swept() as deadlines, trio.open_nursery() as nursery:
        for _ in range(8):
            client, server = (TCPStream(end) for end in socket.socketpair())
            connection = ServerConnection(server, deadlines)
            await exchange(client, connection)
            nursery.start_soon(serve, connection)
            nursery.start_soon(ask, client, trio.current_time() + IDLE_S)
    assert answered == begun > 0


async def test_a_wait_that_ends_as_others_are_closed_is_not_closed(mock_clock: MockClock) -> None:
    closed: list[Wait] = []

    class Wait:
        async def aclose(self) -> None:
            closed.append(self)
            for idle in idles:
                if idle.waiting is not self:
                    deadlines.leave(idle)
            await trio.lowlevel.checkpoint()

    async with swept() as deadlines:
        idles = [deadlines.watch(Wait()) for _ in range(2)]
        for idle in idles:
            deadlines.begin(idle, 1)
        mock_clock.jump(1)
        await wait_all_tasks_blocked()
        assert len(closed) == 1
