from __future__ import annotations

import pytest
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from proxy.exchange.http_server import EARLY_BYTES_MAX, ServerHTTP
from proxy.exchange.received import Received
from proxy.message.body import BODY_BYTES_MAX
from tests.proxy.exchange.legs import tls_pair

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


async def test_a_client_that_sends_more_than_is_kept_counts_as_gone() -> None:
    """Its end would not be seen behind bytes that are not read."""
    client, server = tls_pair()
    received = Received(server, ServerHTTP())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(received.wait_end)
        await client.send_all(GET + b"x" * (EARLY_BYTES_MAX - len(GET) - 1))
        await wait_all_tasks_blocked()
        assert not received.poll_end()
        await client.send_all(b"x" * 1_000_000)
    assert received.poll_end()
    assert received.http.full
    assert not received.http.ended
    kept = len(received.http.held)
    assert kept < EARLY_BYTES_MAX + BODY_BYTES_MAX
    await received.wait_end()
    assert len(received.http.held) == kept
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
