from __future__ import annotations

import os

import trio

from proxy.exchange.server import ServerConnection
from proxy.hub.calls.replayable_body import HELD_BYTES_MAX, HeldBody
from proxy.message.head import ResponseHead
from tunnel.protocol.streams import SMALL_BYTES


async def posted(body: bytes) -> tuple[ServerConnection, trio.abc.Stream]:
    client, server = trio.testing.memory_stream_pair()
    connection = ServerConnection(server)
    head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body)
    await client.send_all(head + body)
    await connection.next_request()
    return connection, client


async def read(held: HeldBody) -> bytes:
    received = b""
    while data := await held.receive_body():
        received += data
    return received


async def test_a_small_body_can_be_read_again_and_again() -> None:
    body = bytes(range(256)) * 256
    assert len(body) == HELD_BYTES_MAX
    connection, _ = await posted(body)
    held = HeldBody(connection)
    for _ in range(3):
        assert await read(held) == body
        assert await held.receive_body() == b""
        assert held.whole
        held.rewind()
    await connection.cut()


async def test_what_was_read_before_comes_first_and_then_the_rest() -> None:
    client, server = trio.testing.memory_stream_pair()
    connection = ServerConnection(server)
    await client.send_all(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 8\r\n\r\nhalf")
    await connection.next_request()
    held = HeldBody(connection)
    assert await held.receive_body() == b"half"
    held.rewind()
    await client.send_all(b"rest")
    assert await read(held) == b"halfrest"
    held.rewind()
    assert await read(held) == b"halfrest"
    await connection.cut()


async def test_a_body_that_comes_byte_by_byte_costs_little_more_than_its_bytes() -> None:
    client, server = trio.testing.memory_stream_pair()
    connection = ServerConnection(server)
    await client.send_all(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    await connection.next_request()
    held = HeldBody(connection)
    body = os.urandom(5000)
    for at in range(len(body)):
        await client.send_all(b"1\r\n%c\r\n" % body[at])
        assert await held.receive_body() == body[at : at + 1]
    held.rewind()
    assert len(held._again) < 2 * len(body) / SMALL_BYTES + 1
    await client.send_all(b"0\r\n\r\n")
    assert await read(held) == body
    await connection.cut()


async def test_a_larger_body_passes_and_is_not_kept() -> None:
    body = bytes(HELD_BYTES_MAX + 1)
    connection, _ = await posted(body)
    held = HeldBody(connection)
    assert await read(held) == body
    assert not held.whole
    await connection.cut()


async def test_what_is_answered_is_not_sent_again() -> None:
    connection, client = await posted(b"body")
    held = HeldBody(connection)
    assert await read(held) == b"body"
    await held.send_head(ResponseHead.of(200, b"", ((b"content-length", b"2"),)), b"ok", end=True)
    assert not held.whole
    assert (await client.receive_some()).endswith(b"ok")
    await connection.cut()
