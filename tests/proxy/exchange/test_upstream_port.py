"""What the upstream's port does by itself; see tests/proxy/relay/test_ports.py for its histories."""

from __future__ import annotations

import socket
from typing import cast

import pytest
import trio
import trio.testing

from proxy.exchange.client import ClientConnection
from proxy.exchange.engine import Exchange
from proxy.exchange.http_connection import CROWDED_BYTES_MAX
from proxy.exchange.http_state import DONE
from proxy.exchange.pool import Connections
from proxy.exchange.upstream_port import SHARE_BYTES, UpstreamPort
from proxy.message.failure import Failure
from proxy.message.head import RequestHead, ResponseHead
from tests.proxy.exchange.fake_ports import FakePort
from tests.tunnel.stream_pairs import handshake, tcp_pair
from tunnel.net.readiness import Readiness
from tunnel.net.tls import RECEIVE_BYTES_MAX

UPGRADE = ((b"host", b"x"), (b"connection", b"Upgrade"), (b"upgrade", b"websocket"))


@pytest.mark.parametrize("spliced", [False, True])
def test_bytes_that_the_server_takes_no_more_are_counted_on_a_raw_stream(spliced: bool) -> None:
    port = UpstreamPort(
        cast(Connections, None),
        RequestHead.of(b"GET", b"/exec", UPGRADE if spliced else UPGRADE[:1]),
        long=False,
    )
    client, over = FakePort(drains_at_once=True), list[Failure | None]()
    exchange = Exchange(client, port, over.append, upgrade=spliced)
    exchange.start()
    if spliced:
        exchange.answer_head(ResponseHead.of(101))
    # It has no connection any more. Only a raw stream is still read, so that the client's end is noticed.
    assert port.write(b"abc", False) is spliced
    assert port.write(b"de", False) is spliced
    assert port.bytes_dropped == (5 if spliced else 0)
    assert over == []


async def test_fewer_bytes_are_read_at_once_of_an_answer_in_tiny_chunks() -> None:
    ours, theirs = await handshake(await tcp_pair())
    connection = ClientConnection(ours)
    sizes: list[int] = []
    await connection.send_request(RequestHead.of(b"GET", b"/", UPGRADE[:1]))
    await theirs.send_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    await connection.receive_head()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(theirs.send_all, b"1\r\nx\r\n" * 40_000 + b"0\r\n\r\n")
        while connection.http.incoming is not DONE:
            await trio.lowlevel.wait_readable(ours.transport_stream.socket)  # type: ignore[attr-defined]
            size = 0
            piece = connection.take_in_body_nowait()
            while piece:
                size += len(piece)
                piece = connection.http.receive_body()
            sizes.append(size)
    assert sum(sizes) == 40_000
    # Not before the first of them is it known.
    assert max(sizes[1:]) <= CROWDED_BYTES_MAX
    await trio.aclose_forcefully(ours)
    await trio.aclose_forcefully(theirs)


async def test_an_answer_arrives_although_the_server_takes_no_more_of_the_request() -> None:
    ours, theirs = await handshake(await tcp_pair())

    async def dial() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    readiness = Readiness()
    connections = Connections(dial, "the server", readiness)
    head = RequestHead.of(b"POST", b"/", (UPGRADE[0], (b"content-length", b"1000")))
    port = UpstreamPort(connections, head, long=False)
    client, done = FakePort(drains_at_once=True), list[Failure | None]()
    exchange = Exchange(client, port, done.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        assert await port.dial()
        exchange.start()
        client.say(b"part", False)
        ours.transport_stream.socket.shutdown(socket.SHUT_WR)  # type: ignore[attr-defined]
        client.say(b"more", False)
        assert done == []
        await theirs.send_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        await trio.testing.wait_all_tasks_blocked(0.001)
        assert (client.heads, bytes(client.out), client.out_end) == ([413], b"no", True)
        assert client.stopped
        assert done == [None]
        assert connections.idle_count == 0
        nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(theirs)


@pytest.mark.parametrize("spliced", [False, True])
async def test_a_share_is_delivered_at_once_to_a_client_that_always_has_room(spliced: bool) -> None:
    ours, theirs = await handshake(await tcp_pair())
    for each, buffers in ((ours, socket.SO_RCVBUF), (theirs, socket.SO_SNDBUF)):
        each.transport_stream.socket.setsockopt(socket.SOL_SOCKET, buffers, 4 * SHARE_BYTES)  # type: ignore[attr-defined]

    async def dial() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    connections = Connections(dial, "the server", Readiness())
    port = UpstreamPort(
        connections, RequestHead.of(b"GET", b"/", UPGRADE if spliced else UPGRADE[:1]), long=True
    )
    client, done = FakePort(drains_at_once=True), list[Failure | None]()
    exchange = Exchange(client, port, done.append, bodiless=not spliced, upgrade=spliced)
    assert await port.dial()
    exchange.start()
    size = 3 * SHARE_BYTES
    switch = b"101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n"
    head = switch if spliced else b"200 OK\r\ncontent-length: %d\r\n\r\n" % size
    assert theirs.send_nowait(b"HTTP/1.1 " + head)
    connection = port.connection
    assert connection is not None
    assert connection.watch is not None
    connection.watch.call()
    # As much as the kernel takes has arrived before the first delivery.
    theirs.send_nowait(bytes(size))
    while len(client.out) < size:
        taken = len(client.out)
        connection.watch.call()
        assert len(client.out) - taken < SHARE_BYTES + RECEIVE_BYTES_MAX
        theirs.send_nowait(b"")
    assert done == ([] if spliced else [None])
    port.close()
    await connections.aclose()
    await trio.aclose_forcefully(theirs)


async def test_a_connection_that_is_kept_after_a_paused_answer_is_dropped_once_the_server_closes_it() -> None:
    ours, theirs = await handshake(await tcp_pair())

    async def dial() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    readiness = Readiness()
    connections = Connections(dial, "the server", readiness)
    port = UpstreamPort(connections, RequestHead.of(b"GET", b"/", UPGRADE[:1]), long=False)
    client, done = FakePort(drains_at_once=True), list[Failure | None]()
    exchange = Exchange(client, port, done.append, bodiless=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        assert await port.dial()
        exchange.start()
        await theirs.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbo")
        await trio.testing.wait_all_tasks_blocked(0.001)
        exchange.hold()
        await theirs.send_all(b"dy")
        await trio.testing.wait_all_tasks_blocked(0.001)
        exchange.release()
        assert (bytes(client.out), done, connections.idle_count) == (b"body", [None], 1)
        await trio.aclose_forcefully(theirs)
        await trio.testing.wait_all_tasks_blocked(0.001)
        assert connections.idle_count == 0
        nursery.cancel_scope.cancel()
