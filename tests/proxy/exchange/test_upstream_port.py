"""What the upstream's port does by itself; see tests/proxy/relay/test_ports.py for its histories."""

from __future__ import annotations

import socket
from typing import cast

import pytest
import trio
import trio.testing

from proxy.exchange.client import ClientConnection
from proxy.exchange.engine import SHARE_BYTES, Exchange
from proxy.exchange.http_connection import CROWDED_BYTES_MAX
from proxy.exchange.http_state import DONE
from proxy.exchange.pool import Connections
from proxy.exchange.upstream_port import UpstreamPort
from proxy.message.failure import Failure
from proxy.message.head import RequestHead, ResponseHead
from tests.proxy.exchange.fake_ports import FakePort
from tests.tunnel.stream_pairs import handshake, tcp_pair
from tunnel.net.readiness import Readiness

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


@pytest.mark.parametrize("then", ["the server closes it", "it carries a long head"])
async def test_a_connection_whose_client_reads_slowly_is_watched_afterwards(then: str) -> None:
    ours, theirs = await handshake(await tcp_pair())
    ours.transport_stream.socket.setsockopt(  # type: ignore[attr-defined]
        socket.SOL_SOCKET, socket.SO_SNDBUF, 4096
    )

    async def dial() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    readiness = Readiness()
    connections = Connections(dial, "the server", readiness)
    port = UpstreamPort(connections, RequestHead.of(b"GET", b"/", UPGRADE[:1]), long=False)
    client, done = FakePort(), list[Failure | None]()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(readiness.run)
            exchange = Exchange(client, port, done.append, bodiless=True)
            assert await port.dial()
            exchange.start()
            await theirs.receive_some()
            await theirs.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 40\r\n\r\n" + bytes(20))
            await trio.testing.wait_all_tasks_blocked(0.001)
            # The client has no room, so the rest waits in the socket, and is read when the port resumes.
            await theirs.send_all(bytes(20))
            await trio.testing.wait_all_tasks_blocked(0.001)
            assert not done
            client.drain()
            client.drain()
            assert done == [None]
            assert connections.idle_count == 1
            if then == "the server closes it":
                await theirs.aclose()
                await trio.testing.wait_all_tasks_blocked(0.001)
                assert connections.idle_count == 0
            else:
                # The kernel does not take this head at once.
                head = RequestHead.of(b"GET", b"/", (*UPGRADE[:1], (b"x", b"y" * 300_000)))
                port = UpstreamPort(connections, head, long=False)
                assert port.take_kept()
                Exchange(FakePort(drains_at_once=True), port, done.append, bodiless=True).start()
                received = b""
                while not received.endswith(b"\r\n\r\n"):
                    received += await theirs.receive_some()
                await theirs.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                await trio.testing.wait_all_tasks_blocked(0.001)
                assert done == [None, None]
            nursery.cancel_scope.cancel()
    await connections.aclose()
    await trio.aclose_forcefully(theirs)


@pytest.mark.parametrize("spliced", [False, True])
async def test_a_server_as_fast_as_its_client_gets_a_share_of_each_pass(
    spliced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = await handshake(await tcp_pair())

    async def dial() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    readiness = Readiness()
    fields = UPGRADE if spliced else UPGRADE[:1]
    port = UpstreamPort(Connections(dial, "x", readiness), RequestHead.of(b"GET", b"/", fields), long=False)
    client = FakePort(drains_at_once=True)
    exchange = Exchange(client, port, lambda _: None, bodiless=not spliced, upgrade=spliced)
    assert await port.dial()
    exchange.start()
    connection = port.connection
    assert connection is not None
    head = b"101 S\r\nconnection: Upgrade\r\nupgrade: websocket" if spliced else b"200 OK"
    connection.http.feed(b"HTTP/1.1 %b\r\n\r\n" % head)
    # Without this, an endless answer would never end.
    reads = iter([bytes(100_000)] * 1000)
    monkeypatch.setattr(ClientConnection, "_receive_nowait", lambda self: next(reads, b""))
    await theirs.send_all(b"x")
    for passes in (1, 2, 3):
        assert connection.watch is not None
        connection.watch.call()
        assert 0 < len(client.out) <= passes * (SHARE_BYTES + 100_000)
        assert connection.watch.listening
    port.close()
    await trio.aclose_forcefully(theirs)
