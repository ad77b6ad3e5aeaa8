"""The server's end of a WebSocket, against wsproto as the client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import memory_stream_pair
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

from sandbox.websocket import BadHandshakeError, Piece, WebSocket, WebSocketStream, accept_handshake
from tests.sandbox.clients import WebSocketClient


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[WebSocketClient, WebSocket]]:
    client, server = memory_stream_pair()
    async with client, server:
        yield WebSocketClient(client), WebSocket(server)


def test_the_handshake_is_that_of_the_rfc() -> None:
    answer = accept_handshake([b"dGhlIHNhbXBsZSBub25jZQ=="], [b"13"], "v5.channel.k8s.io")
    assert answer == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
        b"Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
    )


@pytest.mark.parametrize(("keys", "versions"), [([], [b"13"]), ([b"a", b"b"], [b"13"]), ([b"a"], [b"8"])])
def test_another_handshake_is_refused(keys: list[bytes], versions: list[bytes]) -> None:
    with pytest.raises(BadHandshakeError):
        accept_handshake(keys, versions, None)


@given(
    st.lists(
        st.tuples(st.one_of(st.binary(max_size=70_000), st.text(max_size=50)), st.booleans()), max_size=5
    ),
    st.integers(1, 5000),
)
def test_messages_come_whole_in_any_chunks(messages: list[tuple[bytes | str, bool]], chunk: int) -> None:
    async def exchange() -> None:
        client = Connection(ConnectionType.CLIENT)
        wire = b""
        for message, split in messages:
            kind = TextMessage if isinstance(message, str) else BytesMessage
            if split:
                half = len(message) // 2
                wire += client.send(kind(message[:half], message_finished=False))  # type: ignore[arg-type]
                wire += client.send(kind(message[half:]))  # type: ignore[arg-type]
            else:
                wire += client.send(kind(message))  # type: ignore[arg-type]
        left, right = memory_stream_pair()
        pieces: list[Piece] = []

        async def send() -> None:
            for start in range(0, len(wire), chunk):
                await left.send_all(wire[start : start + chunk])
                await trio.lowlevel.checkpoint()
            await left.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            websocket = WebSocket(right)
            while batch := await websocket.receive():
                pieces += batch
        received: list[bytes] = []
        for piece in pieces:
            if piece.starts:
                received.append(b"")
            received[-1] += piece.data
        assert sum(piece.ends for piece in pieces) == len(messages)
        assert received == [m.encode() if isinstance(m, str) else m for m, _ in messages]

    trio.run(exchange)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
async def test_a_message_of_each_length_encoding_arrives(size: int) -> None:
    async with connected() as (client, websocket), trio.open_nursery() as nursery:
        nursery.start_soon(websocket.send, b"x" * size)
        assert await client.receive() == b"x" * size


async def test_pings_are_answered_in_the_middle_of_a_message() -> None:
    async with connected() as (client, websocket):
        await client.send(b"one ", finished=False)
        await client.send_event(Ping(b"are you there?"))
        await client.send(b"message")
        assert [piece.data for piece in await websocket.receive()] == [b"one ", b"message"]
        await websocket.send(b"x")
        assert await client.receive() == b"x"
        assert client.pongs == [b"are you there?"]


async def test_the_close_frame_is_returned_and_ends_both_directions() -> None:
    async with connected() as (client, websocket):
        await client.send_event(CloseConnection(1000))
        assert await websocket.receive() == []
        assert await client.receive() is None
        assert client.closed == 1000
        with pytest.raises(trio.BrokenResourceError):
            await websocket.send(b"x")
        await websocket.close()


async def test_a_lost_connection_is_the_end() -> None:
    async with connected() as (client, websocket):
        await client.stream.aclose()
        assert await websocket.receive() == []


async def test_an_unmasked_frame_is_a_protocol_error() -> None:
    async with connected() as (client, websocket):
        await client.stream.send_all(b"\x82\x01x")
        assert await websocket.receive() == []
        assert await client.receive() is None
        assert client.closed == 1002


async def test_what_came_with_the_handshake_is_read_first() -> None:
    client, server = memory_stream_pair()
    first = Connection(ConnectionType.CLIENT).send(BytesMessage(b"early"))
    async with client, server:
        websocket = WebSocket(server, first)
        assert [piece.data for piece in await websocket.receive()] == [b"early"]


async def test_a_stream_over_it_joins_the_messages_and_closes_with_1000() -> None:
    async with connected() as (client, websocket):
        stream = WebSocketStream(websocket)
        await client.send(b"")
        await client.send(b"ab")
        await client.send(b"cd")
        assert await stream.receive_some() == b"abcd"
        await stream.send_all(b"answer")
        assert await client.receive() == b"answer"
        await stream.aclose()
        assert await client.receive() is None
        assert client.closed == 1000
