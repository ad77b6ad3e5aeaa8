from __future__ import annotations

import socket
import struct

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from proxy.exchange.http_server import EARLY_BYTES_MAX, ServerHTTP
from proxy.exchange.received import FULL_POLL_S, Received
from tests.proxy.exchange.legs import tls_pair
from tests.tunnel.stream_pairs import handshake, tcp_pair
from tunnel.net.tcp import TCPStream

GET = b"GET /api HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("clean", [True, False])
async def test_a_client_that_leaves_is_noticed(clean: bool) -> None:
    client, server = tls_pair()
    received = Received(server, ServerHTTP())
    await client.send_all(b"one")
    assert await received.receive()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(received.wait_end)
        await client.send_all(b" and two")
        await wait_all_tasks_blocked()
        assert not received.http.ended
        if clean:
            await client.aclose()
        else:
            await trio.aclose_forcefully(client)
    assert received.http.ended
    assert received.http.take_rest() == b"one and two"
    assert not await received.receive()
    # Who asks later hears of it as well.
    await received.wait_end()
    await server.aclose()


async def test_early_bytes_are_kept_up_to_a_bound(autojump_clock: MockClock) -> None:
    client, server = memory_stream_pair()
    received = Received(server, ServerHTTP())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(received.wait_end)
        await client.send_all(GET + b"x" * 1_000_000)
        await wait_all_tasks_blocked()
        assert received.http.full
        unread = len(await server.receive_some(2_000_000))
        assert unread > 1_000_000 - 2 * EARLY_BYTES_MAX - len(GET)
        # Beyond that not even the end is heard.
        await client.aclose()
        await trio.sleep(1)
        assert not received.http.ended
        nursery.cancel_scope.cancel()
    assert received.http.take_head() == GET


@pytest.mark.parametrize("clean", [True, False])
async def test_a_client_that_leaves_behind_a_full_buffer_is_noticed(
    autojump_clock: MockClock, clean: bool
) -> None:
    client, server = await handshake(await tcp_pair())
    received = Received(server, ServerHTTP())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(received.wait_end)
        await client.send_all(GET + b"x" * (EARLY_BYTES_MAX + 1000))
        await trio.sleep(2 * FULL_POLL_S)
        assert received.http.full
        assert not received.poll_end()
        if clean:
            await client.aclose()
        else:
            transport = client.transport_stream
            assert isinstance(transport, TCPStream)
            transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close_nowait()
        # At once for who asks, and soon for who waits.
        assert received.poll_end()
    assert received.http.take_head() == GET
    await server.aclose()


async def test_whoever_was_cancelled_does_not_hear_of_the_end() -> None:
    client, server = memory_stream_pair()
    received = Received(server, ServerHTTP())
    await client.aclose()
    assert not await received.receive()
    with trio.CancelScope() as scope:
        scope.cancel()
        await received.wait_end()
    assert scope.cancelled_caught
