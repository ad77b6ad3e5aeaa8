from __future__ import annotations

import gc
import socket
from weakref import WeakKeyDictionary

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from proxy.exchange import client
from proxy.exchange.client import ClientConnection
from proxy.exchange.http_client import INTERIM_MAX
from proxy.exchange.http_connection import CROWDED_BYTES_MAX
from proxy.message.failure import OutboundBroken, Processed, StreamCode
from proxy.message.head import ANSWER_HEAD_BYTES_MAX, HEAD_BYTES_MAX, RequestHead, ResponseHead
from tests.proxy.exchange.legs import tls_pair
from tests.tunnel.stream_pairs import handshake, tcp_pair

HOST = (b"host", b"api")
GET = RequestHead.of(b"GET", b"/api/v1/pods", (HOST,))
HEAD = RequestHead.of(b"HEAD", b"/api", (HOST,))
POST = RequestHead.of(b"POST", b"/api", (HOST, (b"content-length", b"6")))
UPGRADE = RequestHead.of(b"GET", b"/exec", (HOST, (b"connection", b"Upgrade"), (b"upgrade", b"websocket")))


async def body_of(connection: ClientConnection) -> bytes:
    data = b""
    while part := await connection.receive_body():
        data += part
    return data


async def exchange(
    raw: bytes, request: RequestHead = GET, *, ended: bool = False
) -> tuple[ResponseHead, bytes, ClientConnection]:
    """Send one request to a server that answers with `raw`."""
    server, stream = memory_stream_pair()
    connection = ClientConnection(stream)
    await connection.send_request(request)
    await server.receive_some()
    await server.send_all(raw)
    if ended:
        await server.send_eof()
    try:
        head = await connection.receive_head()
        return head, await body_of(connection), connection
    finally:
        await server.aclose()


async def failing(raw: bytes, request: RequestHead = GET, *, ended: bool = False) -> OutboundBroken:
    with pytest.raises(OutboundBroken) as caught:
        await exchange(raw, request, ended=ended)
    return caught.value


async def test_others_run_while_answers_of_tiny_chunks_are_taken_apart():
    chunks = 100_000
    taken = 0
    passes = []

    async def read(connection: ClientConnection) -> None:
        nonlocal taken
        while part := await connection.receive_body():
            taken += len(part)

    async def watch() -> None:
        while taken < 4 * chunks:
            before = taken
            await trio.lowlevel.checkpoint()
            passes.append(taken - before)

    connections = []
    for _ in range(4):
        server, stream = memory_stream_pair()
        connections.append(connection := ClientConnection(stream))
        await connection.send_request(GET)
        await server.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await connection.receive_head()
        await server.send_all(b"1\r\na\r\n" * chunks + b"0\r\n\r\n")
    async with trio.open_nursery() as nursery:
        for connection in connections:
            nursery.start_soon(read, connection)
        nursery.start_soon(watch)
    # The first piece of each comes as it is.
    assert sum(many > CROWDED_BYTES_MAX for many in passes) <= 2
    assert len(passes) > 100


async def test_a_request_leaves_in_one_write_and_the_connection_is_used_again():
    stream, server = tls_pair()
    connection = ClientConnection(stream)
    for _ in range(2):
        await connection.send_request(GET)
        assert await server.receive_some() == b"GET /api/v1/pods HTTP/1.1\r\nhost: api\r\n\r\n"
        assert not connection.end_exchange()
        await server.send_all(b'HTTP/1.1 200 OK\r\nContent-Length: 3\r\nETag: "1"\r\n\r\nabc')
        head = await connection.receive_head()
        assert head == ResponseHead.of(200, b"OK", ((b"content-length", b"3"), (b"etag", b'"1"')))
        assert await connection.receive_body() == b"abc"
        assert await connection.receive_body() == b""
        assert connection.end_exchange()
    assert len(stream.sends) == 2
    await server.aclose()
    await stream.aclose()


@pytest.mark.parametrize(
    ("request_head", "raw", "body"),
    [
        (
            GET,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
            b"abcde",
        ),
        (HEAD, b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", b""),
        (GET, b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", b""),
        (
            GET,
            b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"",
        ),
    ],
)
async def test_clean_answers_leave_a_usable_connection(request_head, raw, body):
    head, received, connection = await exchange(raw, request_head)
    assert received == body
    assert head.header(b"link") is None
    assert connection.end_exchange()
    await connection.aclose()


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",  # an answer without a request
    ],
)
async def test_a_connection_in_doubt_is_not_used_again(raw):
    _, body, connection = await exchange(raw)
    assert body == b""
    assert not connection.end_exchange()
    await connection.aclose()


async def test_a_connection_whose_tls_holds_more_is_not_used_again(monkeypatch):
    ours = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"
    # As a read ends that brought many records, of a size for which that is just there.
    monkeypatch.setattr(client, "BODY_BYTES_MAX", len(ours))
    stream, server = await handshake(memory_stream_pair())
    connection = ClientConnection(stream)
    await connection.send_request(GET)
    await server.send_all(ours + ours)
    assert (await connection.receive_head()).status == 200
    assert await body_of(connection) == b"a"
    assert not connection.end_exchange()
    await connection.aclose()


async def test_a_body_that_ends_with_the_connection_is_whole_only_at_a_clean_end():
    _, body, connection = await exchange(b"HTTP/1.1 200 OK\r\n\r\nabc", ended=True)
    assert body == b"abc"
    assert not connection.end_exchange()
    await connection.aclose()
    stream, server = tls_pair()
    connection = ClientConnection(stream)
    await connection.send_request(GET)
    await server.send_all(b"HTTP/1.1 200 OK\r\n\r\nabc")
    await connection.receive_head()
    await trio.aclose_forcefully(server)
    assert await connection.receive_body() == b"abc"
    with pytest.raises(OutboundBroken) as caught:
        await connection.receive_body()
    assert caught.value.failure.code is StreamCode.UPSTREAM_RESET
    assert caught.value.failure.processed is Processed.YES
    await connection.aclose()


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n",
        b"\x15\x03\x01",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * (INTERIM_MAX + 1),
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * HEAD_BYTES_MAX + b"\r\n\r\n",
    ],
)
async def test_an_answer_that_can_be_read_in_two_ways_is_broken(raw):
    failure = (await failing(raw)).failure
    assert failure.code is StreamCode.PROTOCOL
    assert failure.processed is Processed.MAYBE


async def test_a_head_that_our_own_lines_make_too_large_is_not_sent():
    stream, server = tls_pair()
    connection = ClientConnection(stream)
    request = RequestHead.of(b"GET", b"/", ((b"a", b"x" * HEAD_BYTES_MAX),))
    with pytest.raises(OutboundBroken, match="is the limit") as caught:
        await connection.send_request(request)
    failure = caught.value.failure
    assert (failure.code, failure.processed) == (StreamCode.TOO_LARGE, Processed.NO)
    assert stream.sends == []
    await server.aclose()
    await stream.aclose()


async def test_a_head_that_outgrows_its_limit_is_not_waited_for(autojump_clock):
    server, stream = memory_stream_pair()
    connection = ClientConnection(stream)
    await connection.send_request(GET)
    await server.send_all(b"HTTP/1.1 200 OK\r\nA: " + b"x" * ANSWER_HEAD_BYTES_MAX)
    with trio.fail_after(5), pytest.raises(OutboundBroken) as caught:
        await connection.receive_head()
    assert caught.value.failure.code is StreamCode.PROTOCOL


async def test_large_heads_of_answers_pass():
    head, _, connection = await exchange(
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nA: " + b"x" * 60_000 + b"\r\n\r\n"
    )
    assert len(head.header(b"a") or b"") == 60_000
    await connection.aclose()


LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("raw", "code", "processed"),
    [
        (b"", StreamCode.UPSTREAM_RESET, Processed.MAYBE),
        (b"HTTP/1.1 200 OK\r\nA: b", StreamCode.UPSTREAM_RESET, Processed.MAYBE),
        (LENGTH + b"abc", StreamCode.UPSTREAM_RESET, Processed.YES),
        (CHUNKED + b"3\r\nabc\r\n", StreamCode.UPSTREAM_RESET, Processed.YES),
        (CHUNKED + b"xyz\r\n", StreamCode.PROTOCOL, Processed.YES),
        (CHUNKED + b"1\r\nabc\r\n", StreamCode.PROTOCOL, Processed.YES),
    ],
)
async def test_a_cut_answer_says_so_and_whether_the_request_was_seen(raw, code, processed):
    failure = (await failing(raw, ended=True)).failure
    assert (failure.code, failure.processed) == (code, processed)


async def test_a_connection_whose_upgrade_was_refused_is_never_used_again():
    _, body, connection = await exchange(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno", UPGRADE)
    assert body == b"no"
    assert not connection.end_exchange()
    await connection.aclose()


async def test_a_cancelled_wait_loses_nothing_and_a_cancelled_send_is_noticed(autojump_clock):
    stream, server = tls_pair()
    connection = ClientConnection(stream)
    await connection.send_request(GET)
    await server.send_all(b"HTTP/1.1 200 OK\r\nContent-Le")
    with trio.move_on_after(1):
        await connection.receive_head()
    await server.send_all(b"ngth: 3\r\n\r\na")
    assert (await connection.receive_head()).status == 200
    assert await connection.receive_body() == b"a"
    with trio.move_on_after(1):
        await connection.receive_body()
    await server.send_all(b"bc")
    assert await connection.receive_body() == b"bc"
    assert connection.end_exchange()
    await connection.aclose()
    await server.aclose()

    stream, server = tls_pair()
    connection = ClientConnection(stream)
    stream.stalled = True
    with trio.move_on_after(1):
        await connection.send_request(GET)
    # The answer may be to a part of the request, so the next one does not follow on this connection.
    await server.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert (await connection.receive_head()).status == 200
    assert await connection.receive_body() == b""
    assert not connection.end_exchange()
    await connection.aclose()
    await server.aclose()


async def test_a_server_that_is_gone_is_an_upstream_reset():
    stream, server = tls_pair()
    connection = ClientConnection(stream)
    await server.aclose()
    with pytest.raises(OutboundBroken) as caught:
        await connection.send_request(GET)
    assert caught.value.failure.code is StreamCode.UPSTREAM_RESET
    await connection.aclose()


@given(st.lists(st.integers(1, 40), max_size=20), st.booleans())
def test_however_the_bytes_are_cut_the_answer_is_the_same(sizes, chunked):
    raw = b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n" + (
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5;a=b\r\ndefgh\r\n0\r\nTrailer: x\r\n\r\n"
        if chunked
        else b"Content-Length: 8\r\n\r\nabcdefgh"
    )

    async def run() -> tuple[int, bytes]:
        server, stream = memory_stream_pair()
        connection = ClientConnection(stream)
        await connection.send_request(GET)

        async def send() -> None:
            at = 0
            for size in [*sizes, len(raw)]:
                if data := raw[at : at + size]:
                    await server.send_all(data)
                    await wait_all_tasks_blocked()
                at += size

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            head = await connection.receive_head()
            body = await body_of(connection)
        await connection.aclose()
        await server.aclose()
        return head.status, body

    assert trio.run(run) == (200, b"abcdefgh")


def test_facts_about_a_connection_end_with_it() -> None:
    told: WeakKeyDictionary[ClientConnection, str] = WeakKeyDictionary()
    connection = ClientConnection(memory_stream_pair()[0])
    told[connection] = "a key"
    del connection
    gc.collect()
    assert not told


@given(st.binary(max_size=120), st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n"]))
def test_arbitrary_bytes_are_an_answer_or_a_failure(data, prefix):
    async def run() -> None:
        server, stream = memory_stream_pair()
        connection = ClientConnection(stream)
        await connection.send_request(GET)
        await server.send_all(prefix + data)
        await server.aclose()
        try:
            await connection.receive_head()
            await body_of(connection)
        except OutboundBroken:
            assert not connection.end_exchange()
        await connection.aclose()

    trio.run(run)


async def test_a_request_that_cannot_be_sent_breaks_also_where_something_was_said_before():
    stream, server = await handshake(await tcp_pair())
    connection = ClientConnection(stream)
    await server.send_all(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
    await wait_all_tasks_blocked()
    stream.transport_stream.socket.shutdown(socket.SHUT_WR)
    with pytest.raises(OutboundBroken) as caught:
        connection.send_nowait(connection.http.send_request(GET))
    assert caught.value.failure.code is StreamCode.UPSTREAM_RESET
    await connection.aclose()
    await trio.aclose_forcefully(server)
