"""The channels over a WebSocket: numbers, half-close, and what is ignored."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked
from wsproto.events import Ping

from sandbox.channels import ERROR, RESIZE, STDIN, STDOUT, Channels
from sandbox.inbox import INBOX_BYTES_MAX
from sandbox.websocket import WebSocket
from tests.sandbox.clients import WebSocketClient


@asynccontextmanager
async def connected(*, half_close: bool) -> AsyncIterator[tuple[WebSocketClient, Channels]]:
    client, server = memory_stream_pair()
    channels = Channels(WebSocket(server), inputs=(STDIN, RESIZE), half_close=half_close)
    async with client, server, trio.open_nursery() as nursery:
        nursery.start_soon(channels.run)
        yield WebSocketClient(client), channels
        nursery.cancel_scope.cancel()


async def test_the_first_byte_of_a_message_is_its_channel() -> None:
    async with connected(half_close=True) as (client, channels):
        await client.send(b"\x00to ", finished=False)
        await client.send(b"stdin")
        await client.send(b'\x04{"Width":80}')
        stdin, resize = channels.source(STDIN), channels.source(RESIZE)
        assert await stdin.receive_some() + await stdin.receive_some() == b"to stdin"
        assert await resize.receive_some() == b'{"Width":80}'
        await channels.sink(STDOUT).send_all(b"out")
        await channels.sink(ERROR).send_all(b"")
        assert [await client.receive(), await client.receive()] == [b"\x01out", b"\x03"]


async def test_empty_messages_and_other_channels_are_ignored() -> None:
    async with connected(half_close=True) as (client, channels):
        for message in (b"", b"\x01not an input", b"\x63no such channel", b"\x00ok"):
            await client.send(message)
        assert await channels.source(STDIN).receive_some() == b"ok"


async def test_a_half_close_ends_one_channel() -> None:
    async with connected(half_close=True) as (client, channels):
        await client.send(b"\x00last")
        await client.send(b"\xff\x00")
        await client.send(b"\x04{}")
        stdin = channels.source(STDIN)
        assert [await stdin.receive_some(), await stdin.receive_some()] == [b"last", b""]
        assert await channels.source(RESIZE).receive_some() == b"{}"


async def test_before_v5_the_half_close_is_a_channel_that_does_not_exist() -> None:
    async with connected(half_close=False) as (client, channels):
        await client.send(b"\xff\x00")
        await client.send(b"\x00still open")
        assert await channels.source(STDIN).receive_some() == b"still open"


@pytest.mark.parametrize("signal", [b"\xff", b"\xff\x00\x00", b"\xff\x07"])
async def test_a_malformed_half_close_ends_the_connection(signal: bytes) -> None:
    async with connected(half_close=True) as (client, channels):
        await client.send(signal)
        assert await channels.source(RESIZE).receive_some() == b""


async def test_the_end_of_the_client_ends_every_channel() -> None:
    async with connected(half_close=True) as (client, channels):
        await client.stream.aclose()
        assert await channels.source(STDIN).receive_some() == b""


async def test_discarding_lets_the_reader_go_on_to_the_close_frame() -> None:
    async with connected(half_close=True) as (client, channels):
        await client.send(b"\x00" + b"x" * (2 * INBOX_BYTES_MAX))
        await wait_all_tasks_blocked()
        channels.discard()
        await client.send_event(Ping(b"seen"))
        await wait_all_tasks_blocked()
        await channels.sink(STDOUT).send_all(b"")
        await client.receive()
        assert client.pongs == [b"seen"]
