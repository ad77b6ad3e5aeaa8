"""The server's SPDY streams, against a client of frames."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from sandbox import spdy
from sandbox.inbox import INBOX_BYTES_MAX
from sandbox.spdystreams import SpdyConnection, SpdyStream
from tests.sandbox.clients import SpdyClient


@asynccontextmanager
async def connected(
    accept: Callable[[SpdyStream], bool] | None = None,
) -> AsyncIterator[tuple[SpdyClient, SpdyConnection, list[SpdyStream]]]:
    client, server = memory_stream_pair()
    connection = SpdyConnection(server)
    streams: list[SpdyStream] = []

    def accept_all(stream: SpdyStream) -> bool:
        streams.append(stream)
        return True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run, accept or accept_all)
        yield SpdyClient(client), connection, streams
        await client.aclose()


async def test_an_accepted_stream_carries_bytes_both_ways_and_half_closes() -> None:
    async with connected() as (client, _, streams):
        number = await client.open(streamtype="data", port="80")
        await client.send(number, b"ping")
        await client.send(number, b"", fin=True)
        await client.receive_until(lambda: number in client.replied)
        (stream,) = streams
        assert stream.headers == {"streamtype": "data", "port": "80"}
        assert [await stream.receive_some(), await stream.receive_some()] == [b"ping", b""]
        await stream.send_all(b"pong")
        await stream.send_eof()
        await client.receive_until(lambda: number in client.ended)
        assert client.data[number] == b"pong"


async def test_a_refused_stream_is_reset() -> None:
    async with connected(lambda stream: False) as (client, _, _):
        number = await client.open(streamtype="nonsense")
        await client.receive_until(lambda: bool(client.reset))
        assert client.reset == {number: spdy.CANCEL}
        assert client.replied == set()


@pytest.mark.parametrize("stream_id", [2, 1])
async def test_a_stream_number_that_is_even_or_used_is_a_protocol_error(stream_id: int) -> None:
    async with connected() as (client, _, streams):
        await client.open(streamtype="error")
        await client.stream.send_all(client.codec.syn_stream(stream_id, {}))
        await client.receive_until(lambda: bool(client.reset))
        assert client.reset == {stream_id: spdy.PROTOCOL_ERROR}
        assert len(streams) == 1


async def test_a_ping_comes_back_and_an_answer_to_ours_does_not() -> None:
    async with connected() as (client, _, _):
        await client.stream.send_all(spdy.ping(2) + spdy.ping(7))
        await client.receive_until(lambda: bool(client.pings))
        assert client.pings == [7]


async def test_a_reset_by_the_client_ends_both_halves() -> None:
    async with connected() as (client, _, streams):
        number = await client.open(streamtype="data")
        await client.receive_until(lambda: bool(client.replied))
        await client.stream.send_all(spdy.rst_stream(number, spdy.CANCEL))
        assert await streams[0].receive_some() == b""
        with pytest.raises(trio.BrokenResourceError):
            await streams[0].send_all(b"x")


async def test_data_for_unknown_streams_is_ignored() -> None:
    async with connected() as (client, _, _):
        await client.send(99, b"nobody")
        await client.stream.send_all(spdy.ping(1))
        await client.receive_until(lambda: bool(client.pings))
        assert client.reset == {}


async def test_goaway_and_the_end_of_the_connection_end_every_stream() -> None:
    async with connected() as (client, _, streams):
        await client.open(streamtype="data")
        await client.receive_until(lambda: bool(client.replied))
        await client.stream.send_all(spdy.goaway(0))
        assert await streams[0].receive_some() == b""


async def test_what_is_no_spdy_ends_the_connection() -> None:
    async with connected() as (client, _, streams):
        await client.open(streamtype="data")
        await client.stream.send_all(b"\xff" * 8)
        await client.receive_until(lambda: bool(client.replied))
        assert await streams[0].receive_some() == b""


async def test_closing_resets_what_is_open_and_says_goaway() -> None:
    async with connected() as (client, connection, streams):
        first, second = await client.open(streamtype="a"), await client.open(streamtype="b")
        await client.receive_until(lambda: len(client.replied) == 2)
        await streams[0].send_eof()
        await connection.close()
        await client.receive_until(lambda: client.gone_away)
        assert client.ended == {first}
        assert client.reset == {second: spdy.CANCEL}


async def test_closing_frees_a_reader_that_waits_for_a_consumer() -> None:
    async with connected() as (client, connection, _):
        number = await client.open(streamtype="stdin")
        await client.send(number, b"x" * (2 * INBOX_BYTES_MAX))
        await client.receive_until(lambda: bool(client.replied))
        await wait_all_tasks_blocked()
        await connection.close()
        await client.stream.send_all(spdy.ping(1))
        await client.receive_until(lambda: bool(client.pings))


async def test_sending_after_the_connection_is_lost_says_so() -> None:
    client, server = memory_stream_pair()
    connection = SpdyConnection(server)
    await client.aclose()
    await connection.run(lambda stream: True)
    with pytest.raises(trio.BrokenResourceError):
        await connection.send(spdy.ping(2))
    await connection.close()
