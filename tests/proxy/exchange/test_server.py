from __future__ import annotations

import h11
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from proxy.exchange import http_server
from proxy.exchange.deadlines import IDLE_S, Deadlines
from proxy.exchange.http_connection import FramingFault
from proxy.exchange.http_server import ServerHTTP
from proxy.exchange.server import HEAD_S, LINGER_S, ServerConnection
from proxy.message.body import CHUNKS_AT_ONCE_MAX, ChunkedBody
from proxy.message.failure import InboundBroken, StreamCode
from proxy.message.head import HEAD_BYTES_MAX, LONG_HEAD_BYTES, RequestHead, ResponseHead
from proxy.message.status import status_response
from proxy.message.strict import BadRequest
from tests.fakes.ambiguous import ATTACKS
from tests.proxy.exchange.legs import answer_ok, read_all, read_until, tls_pair
from tests.tunnel.certificates import contexts
from tests.tunnel.passes import counted_passes
from tunnel.net.connect import wrap_client, wrap_server
from tunnel.net.fairness import TASKS_PER_PASS
from tunnel.net.tls import TLSStream

GET = b"GET /api HTTP/1.1\r\nHost: a\r\n\r\n"
CROWDED = b"POST /api HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 8000
EXPECTING = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"


async def body_of(connection: ServerConnection) -> bytes:
    data = b""
    while part := await connection.receive_body():
        data += part
    return data


@pytest.fixture
def pair():
    client, server = memory_stream_pair()
    return client, ServerConnection(server)


async def test_requests_follow_each_other_on_one_connection(pair):
    client, connection = pair
    await client.send_all(
        GET + b"POST /b HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nx-a:2 \r\nContent-Length: 3\r\n\r\nabc" + GET
    )
    first = await connection.next_request()
    assert first == RequestHead.of(b"GET", b"/api", ((b"host", b"a"),))
    assert connection.raw_head == GET
    await answer_ok(connection, b"one")
    second = await connection.next_request()
    assert second is not None
    assert second.headers[1:3] == ((b"x-a", b"1"), (b"x-a", b"2"))
    assert await body_of(connection) == b"abc"
    await answer_ok(connection, b"two")
    assert await connection.next_request() == first
    await answer_ok(connection)
    await client.send_eof()
    assert await connection.next_request() is None
    data, clean = await read_all(client)
    assert clean
    assert data.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert b"connection: close" not in data.lower()


@pytest.mark.parametrize("name", ATTACKS)
async def test_a_request_that_can_be_read_in_two_ways_gets_a_400_and_the_connection_ends(name):
    client, server = memory_stream_pair()
    connection = ServerConnection(server)
    raw, _ = ATTACKS[name]
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            with pytest.raises(BadRequest) as caught:
                await connection.next_request()
            head, body = status_response(caught.value.status, "", caught.value.message)
            await connection.answer(head, body)
            # Whatever followed is not read as a request.
            assert await connection.next_request() is None

        nursery.start_soon(serve)
        # In one piece, with a body that is a request to whoever sees the first one end too early.
        await client.send_all(raw + b"0\r\n\r\n" + GET)
        await client.send_eof()
        data, clean = await read_all(client)
    assert clean
    assert data.startswith(b"HTTP/1.1 400 ")
    assert data.count(b"HTTP/1.1") == 1
    assert b"connection: close" in data.lower()


@given(st.lists(st.integers(1, 60), max_size=30))
def test_however_the_bytes_are_cut_the_requests_are_the_same(sizes):
    stream = (
        GET
        + b"PUT /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"3;ext=1\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"
        + b"POST /y HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
        + GET
    )

    async def run() -> list[tuple[bytes, bytes]]:
        client, server = memory_stream_pair()
        connection = ServerConnection(server)
        seen = []

        async def send() -> None:
            at = 0
            for size in [*sizes, len(stream)]:
                if data := stream[at : at + size]:
                    await client.send_all(data)
                    await wait_all_tasks_blocked()
                at += size
            await client.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while (request := await connection.next_request()) is not None:
                seen.append((request.target, await body_of(connection)))
                await answer_ok(connection)
        await client.aclose()
        return seen

    assert trio.run(run) == [(b"/api", b""), (b"/x", b"abcdefg"), (b"/y", b"hello"), (b"/api", b"")]


async def test_trailers_are_dropped_and_end_the_connection(pair):
    client, connection = pair
    await client.send_all(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"1\r\na\r\n0\r\nImpersonate-User: root\r\n\r\n" + GET
    )
    request = await connection.next_request()
    assert request is not None
    assert await body_of(connection) == b"a"
    assert b"impersonate-user" not in dict(request.headers)
    await answer_ok(connection)
    assert await connection.next_request() is None
    assert b"connection: close" in (await read_all(client))[0].lower()


async def test_a_broken_chunk_is_the_clients_fault(pair):
    client, connection = pair
    await client.send_all(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n"
    )
    await connection.next_request()
    with pytest.raises(InboundBroken) as caught:
        await body_of(connection)
    assert caught.value.failure.code is StreamCode.PROTOCOL
    await answer_ok(connection)
    await client.send_eof()
    assert await connection.next_request() is None
    assert b"connection: close" in (await read_all(client))[0].lower()


async def test_others_run_while_bodies_of_tiny_chunks_are_taken_apart():
    taken = 0
    passes = []

    async def read(connection: ServerConnection) -> None:
        nonlocal taken
        await connection.next_request()
        while part := await connection.receive_body():
            taken += len(part)

    async def watch() -> None:
        while taken < 4 * 8000:
            before = taken
            await trio.lowlevel.checkpoint()
            passes.append(taken - before)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            client, server = memory_stream_pair()
            await client.send_all(CROWDED + b"0\r\n\r\n")
            nursery.start_soon(read, ServerConnection(server))
        nursery.start_soon(watch)
    # The first piece of each comes whenever it comes; then it is one in a pass, of which two may show as one.
    assert sum(many > 2 * CHUNKS_AT_ONCE_MAX for many in passes) <= 4
    assert max(passes) <= 4 * CHUNKS_AT_ONCE_MAX


@pytest.mark.parametrize(("head_bytes", "most"), [(LONG_HEAD_BYTES + 1, 1), (100, TASKS_PER_PASS)])
async def test_of_heads_that_many_send_at_once_some_are_read_in_a_pass(
    head_bytes, most, monkeypatch, mock_clock
):
    begin = ServerHTTP.begin_request

    def counting(http: ServerHTTP, raw: bytes) -> RequestHead:
        passes.note()
        return begin(http, raw)

    monkeypatch.setattr(ServerHTTP, "begin_request", counting)
    head = b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % (b"a" * head_bytes)
    servers = []
    for _ in range(3 * TASKS_PER_PASS):
        client, server = memory_stream_pair()
        await client.send_all(head)
        servers.append(server)
    with counted_passes() as passes:
        async with trio.open_nursery() as nursery:
            for server in servers:
                nursery.start_soon(ServerConnection(server).next_request)
    assert passes.noted.total() == len(servers)
    assert passes.most == most


async def test_the_end_of_a_refused_body_of_tiny_chunks_is_not_looked_for(pair, autojump_clock, monkeypatch):
    client, connection = pair
    fed = 0
    feed = ChunkedBody.feed

    def counted(body: ChunkedBody, data: bytes) -> bytes:
        nonlocal fed
        got = feed(body, data)
        fed += len(got)
        return got

    monkeypatch.setattr(ChunkedBody, "feed", counted)
    await client.send_all(CROWDED)
    await connection.next_request()
    await answer_ok(connection)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.aclose)
        for _ in range(4):
            await client.send_all(b"1\r\na\r\n" * 8000)
        nursery.start_soon(client.send_eof)
    assert 0 < fed <= 4 * CHUNKS_AT_ONCE_MAX
    assert b"Connection: close" in (await read_all(client))[0]


@pytest.mark.parametrize("framing", [b"Content-Length: 10", b"Transfer-Encoding: chunked"])
async def test_a_client_that_leaves_within_its_body_is_gone(pair, framing):
    client, connection = pair
    await client.send_all(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n3\r\nabc")
    await client.send_eof()
    await connection.next_request()
    with pytest.raises(InboundBroken) as caught:
        await body_of(connection)
    assert caught.value.failure.code is StreamCode.CANCEL
    await connection.aclose()
    await client.aclose()


# -- deadlines ----------------------------------------------------------------------------------------------


async def test_an_idle_connection_outlives_gos_90_seconds(pair, autojump_clock):
    client, connection = pair
    await client.send_all(GET)
    await connection.next_request()
    await answer_ok(connection)
    began = trio.current_time()
    assert await connection.next_request() is None
    assert trio.current_time() - began == pytest.approx(IDLE_S)
    assert IDLE_S > 90
    await client.aclose()


@pytest.mark.parametrize(("first", "silence"), [(True, 20), (False, 100)])
async def test_a_head_has_to_be_whole_in_time(pair, autojump_clock, first, silence):
    client, connection = pair
    if not first:
        await client.send_all(GET)
        await connection.next_request()
        await answer_ok(connection)
    async with trio.open_nursery() as nursery:

        async def drip() -> None:
            await trio.sleep(silence)
            for byte in GET:
                await client.send_all(bytes([byte]))
                await trio.sleep(5)

        nursery.start_soon(drip)
        with pytest.raises(BadRequest) as caught:
            await connection.next_request()
        assert caught.value.status == 408
        assert trio.current_time() == pytest.approx(silence + HEAD_S)
        nursery.cancel_scope.cancel()
    await connection.cut()
    await client.aclose()


async def test_a_connection_that_says_nothing_is_not_kept_for_long(pair, autojump_clock):
    client, connection = pair
    assert await connection.next_request() is None
    assert trio.current_time() == pytest.approx(HEAD_S)
    await client.aclose()


async def test_an_exchange_has_no_deadline(pair, autojump_clock):
    client, connection = pair
    await client.send_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\na")
    await connection.next_request()
    assert await connection.receive_body() == b"a"
    await trio.sleep(4 * 3600)
    await client.send_all(b"b")
    assert await connection.receive_body() == b"b"
    await answer_ok(connection)
    await connection.aclose()
    await client.aclose()


# -- sizes --------------------------------------------------------------------------------------------------


async def test_large_heads_are_served_up_to_the_limit(pair):
    client, connection = pair
    async with trio.open_nursery() as nursery:
        target = b"/api/v1/exec?command=" + b"x" * 60_000
        nursery.start_soon(
            client.send_all, b"GET " + target + b" HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 64_000 + b"\r\n\r\n"
        )
        request = await connection.next_request()
        assert request is not None
        assert request.target == target
        await answer_ok(connection)
        await read_until(client, b"\r\n\r\n")
        nursery.start_soon(
            client.send_all, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * HEAD_BYTES_MAX + b"\r\n\r\n"
        )
        with pytest.raises(BadRequest) as caught:
            await connection.next_request()
        assert caught.value.status == 431
        head, body = status_response(431, "", caught.value.message)
        await connection.answer(head, body)
        assert (await read_until(client, body)).startswith(b"HTTP/1.1 431 ")
        await client.aclose()
        await connection.aclose()


# -- Expect and early answers -------------------------------------------------------------------------------


async def test_a_100_is_sent_when_the_body_is_wanted_and_not_before(pair):
    client, connection = pair
    await client.send_all(EXPECTING)
    await connection.next_request()
    async with trio.open_nursery() as nursery:
        received: list[bytes] = []

        async def receive() -> None:
            received.append(await connection.receive_body())

        nursery.start_soon(receive)
        assert await read_until(client, b"\r\n\r\n") == b"HTTP/1.1 100 \r\n\r\n"
        await client.send_all(b"abc")
    assert received == [b"abc"]
    assert await connection.receive_body() == b""
    await answer_ok(connection)
    assert b"connection" not in await read_until(client, b"\r\n\r\n")
    await client.send_all(GET)
    assert await connection.next_request() is not None
    await connection.aclose()
    await client.aclose()


@pytest.mark.parametrize("answered", [False, True])
async def test_a_100_is_sent_once_and_never_behind_an_answer(pair, autojump_clock, answered):
    client, connection = pair
    await client.send_all(EXPECTING)
    await connection.next_request()
    if answered:
        await connection.send_head(ResponseHead.of(200, b"OK"), b"part")
    for _ in range(2):
        with trio.move_on_after(1) as waits:
            await connection.receive_body()
        assert waits.cancelled_caught
    await connection.cut()
    assert (await read_all(client))[0].count(b"HTTP/1.1 100 ") == (0 if answered else 1)


async def test_an_answer_waits_until_the_100_is_out(pair, autojump_clock):
    client, connection = pair
    await client.send_all(EXPECTING)
    await connection.next_request()
    out = trio.Event()
    sender = connection._stream.send_stream
    pump = sender.send_all_hook

    async def pump_and_wait() -> None:
        await pump()
        await out.wait()

    sender.send_all_hook = pump_and_wait
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.receive_body)
            await wait_all_tasks_blocked()
            nursery.start_soon(answer_ok, connection)
            await wait_all_tasks_blocked()
            assert await client.receive_some() == b"HTTP/1.1 100 \r\n\r\n"
            out.set()
            await client.send_all(b"abc")
    assert (await client.receive_some()).startswith(b"HTTP/1.1 200 ")
    await connection.cut()
    await client.aclose()


async def test_a_refusal_instead_of_the_100_ends_the_connection(pair):
    client, connection = pair
    await client.send_all(EXPECTING)
    await connection.next_request()
    await connection.answer(*status_response(401, "Unauthorized", "no"))
    data = await read_until(client, b"}")
    assert data.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in data.lower()
    await client.aclose()
    assert await connection.next_request() is None


async def test_a_refusal_after_a_small_body_keeps_the_connection(pair):
    client, connection = pair
    await client.send_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" + GET)
    await connection.next_request()
    await connection.answer(*status_response(403, "Forbidden", "no"))
    assert b"connection: close" not in (await read_until(client, b"}")).lower()
    request = await connection.next_request()
    assert request is not None
    assert request.target == b"/api"
    await connection.aclose()
    await client.aclose()


async def test_an_answer_that_begins_takes_no_body_from_its_reader_and_is_the_last(pair):
    client, connection = pair
    await client.send_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc")
    await connection.next_request()
    assert await connection.receive_body() == b"abc"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.wait_disconnect)
        await client.send_all(b"def" + GET)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await connection.send_head(ResponseHead.of(200, b"OK"), b"early")
    assert await connection.receive_body() == b"def"
    await connection.send_body(b"", end=True)
    await client.send_eof()
    # It has said so, though the body has come to its end meanwhile.
    assert await connection.next_request() is None
    assert b"\r\nConnection: close\r\n" in (await read_all(client))[0]


async def test_an_early_answer_is_not_lost_while_the_client_still_uploads(autojump_clock):
    """Over real TCP: closing with unread bytes would send a reset, which overtakes the answer."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    body = b"x" * 8_000_000
    async with trio.open_nursery() as nursery:

        async def serve(stream: trio.SocketStream) -> None:
            connection = ServerConnection(stream)
            await connection.next_request()
            await connection.receive_body()
            await connection.answer(*status_response(413, "RequestEntityTooLarge", "too large"))
            assert await connection.next_request() is None

        nursery.start_soon(trio.serve_listeners, serve, listeners)
        client = await trio.testing.open_stream_to_socket_listener(listeners[0])
        # This client looks for its answer only after it has sent everything.
        await client.send_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        data, clean = await read_all(client)
        assert clean
        assert data.startswith(b"HTTP/1.1 413 ")
        assert data.endswith(b"}")
        await client.aclose()
        nursery.cancel_scope.cancel()


async def test_over_tls_an_early_answer_arrives_and_a_cut_is_seen():
    """The same over real TLS, which has no half-close to say that the answer is complete."""
    client_context, server_context = contexts()
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    body = b"x" * 3_000_000
    async with trio.open_nursery() as nursery:

        async def serve(tcp: trio.SocketStream) -> None:
            stream = wrap_server(tcp, server_context)
            await stream.do_handshake()
            connection = ServerConnection(stream)
            request = await connection.next_request()
            assert request is not None
            if request.target == b"/early":
                await connection.receive_body()
                await connection.answer(*status_response(413, "RequestEntityTooLarge", "too large"))
                assert await connection.next_request() is None
            else:
                await connection.send_head(ResponseHead.of(200, b"OK"), b"part")
                await connection.cut()

        nursery.start_soon(trio.serve_listeners, serve, listeners)

        async def dial() -> TLSStream:
            tcp = await trio.testing.open_stream_to_socket_listener(listeners[0])
            return await wrap_client(tcp, client_context, server_hostname="localhost")

        client = await dial()
        await client.send_all(
            b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        began = trio.current_time()
        data, clean = await read_all(client)
        assert clean
        assert data.startswith(b"HTTP/1.1 413 ")
        assert data.endswith(b"}")
        assert trio.current_time() - began < LINGER_S, "the upload's end is noticed"
        await client.aclose()

        client = await dial()
        await client.send_all(b"GET /cut HTTP/1.1\r\nHost: a\r\n\r\n")
        data, clean = await read_all(client)
        assert data.endswith(b"4\r\npart\r\n")
        assert not clean
        await client.aclose()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("bytes_s", "waits_s"), [(0, LINGER_S), (30, 1)])
async def test_the_wait_for_an_upload_to_end_is_bounded(autojump_clock, monkeypatch, bytes_s, waits_s):
    monkeypatch.setattr(http_server, "LINGER_BYTES_MAX", 50)
    client, server = tls_pair()
    connection = ServerConnection(server)
    await client.send_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc")
    await connection.next_request()
    await connection.receive_body()
    await answer_ok(connection)

    async def upload() -> None:
        while bytes_s:
            await client.send_all(bytes(bytes_s))
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(upload)
        began = trio.current_time()
        assert await connection.next_request() is None
        # The second lot is over what it may be.
        assert trio.current_time() - began == pytest.approx(waits_s)
        nursery.cancel_scope.cancel()
    assert (await read_all(client))[1]
    await client.aclose()


async def test_a_client_that_still_uploads_sees_the_end_of_an_early_answer_at_once(pair, autojump_clock):
    client, connection = pair
    await client.send_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc")
    await connection.next_request()
    await connection.receive_body()
    await answer_ok(connection)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.next_request)
        began = trio.current_time()
        assert (await read_all(client))[1]
        assert trio.current_time() == began
        await client.aclose()


# -- answers ------------------------------------------------------------------------------------------------


def parsed(method: str, data: bytes) -> tuple[h11.Response, bytes]:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    response = connection.next_event()
    assert isinstance(response, h11.Response)
    body = b""
    while isinstance(event := connection.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert connection.trailing_data == (b"", False)
    return response, body


@pytest.mark.parametrize(
    ("method", "head", "expected"),
    [
        ("GET", ResponseHead.of(200, b"OK", ((b"content-length", b"3"),)), b"abc"),
        ("GET", ResponseHead.of(200, b"OK"), b"abc"),
        ("HEAD", ResponseHead.of(200, b"OK", ((b"content-length", b"3"),)), b""),
        ("HEAD", ResponseHead.of(200, b"OK"), b""),
        ("GET", ResponseHead.of(204, b"No Content"), b""),
        ("GET", ResponseHead.of(304, b"Not Modified", ((b"content-length", b"3"), (b"etag", b'"1"'))), b""),
    ],
)
async def test_bodies_are_framed_by_head_and_method(pair, method, head, expected):
    client, connection = pair
    await client.send_all(method.encode() + b" / HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
    await connection.next_request()
    await connection.send_head(head)
    await connection.send_body(b"abc")
    await connection.send_body(b"", end=True)
    request = await connection.next_request()
    assert request is not None, "the connection is still in step"
    await connection.cut()
    data, _ = await read_all(client)
    response, body = parsed(method, data)
    assert body == expected
    assert response.status_code == head.status


async def test_an_answer_without_bytes_is_whole_in_one_write(pair):
    client, connection = pair
    await client.send_all(GET)
    await connection.next_request()
    # How it is framed is said once, and not by whoever answers.
    await connection.send_head(ResponseHead.of(200, b"OK", ((b"transfer-encoding", b"chunked"),)), end=True)
    assert parsed("GET", await client.receive_some())[1] == b""
    await connection.aclose()
    await client.aclose()


async def test_an_answer_of_no_length_to_who_was_not_understood_ends_with_the_connection(pair):
    client, connection = pair
    await client.send_all(b"what\r\n\r\n")
    with pytest.raises(BadRequest):
        await connection.next_request()
    await connection.send_head(ResponseHead.of(400, b"Bad Request"), b"no ")
    await connection.send_body(b"request")
    await connection.send_body(b"", end=True)
    await client.send_eof()
    assert await connection.next_request() is None
    data = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nno request"
    assert await read_all(client) == (data, True)


@pytest.mark.parametrize(("body", "end"), [(b"abcd", False), (b"abcd", True), (b"ab", True)])
async def test_a_body_of_another_length_than_its_head_says_is_a_fault_and_not_sent(body, end):
    client, server = tls_pair()
    connection = ServerConnection(server)
    await client.send_all(GET)
    await connection.next_request()
    await connection.send_head(ResponseHead.of(200, b"OK", ((b"content-length", b"3"),)))
    with pytest.raises(FramingFault):
        await connection.send_body(body, end=end)
    await connection.aclose()
    data, clean = await read_all(client)
    assert data.endswith(b"content-length: 3\r\n\r\n")
    assert not clean
    await client.aclose()


async def test_each_piece_of_a_chunked_answer_leaves_at_once_and_in_one_write():
    client, server = tls_pair()
    connection = ServerConnection(server)
    await client.send_all(GET)
    await connection.next_request()
    await connection.send_head(ResponseHead.of(200, b"OK"), b"first")
    await connection.send_body(b"second")
    await connection.send_body(b"third", end=True)
    assert server.sends == [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n",
        b"6\r\nsecond\r\n",
        b"5\r\nthird\r\n0\r\n\r\n",
    ]
    await connection.aclose()
    await client.aclose()


@pytest.mark.parametrize(
    ("line", "sent", "last"),
    [
        (b"", b"", False),
        (b"x-a: b\r\n", b"x-a: b\r\n", False),
        (b"location: /here\r\n", b"location: /here\r\n", False),
        (b"connection: keep-alive\r\n", b"", False),
        (b"connection: x-b, Close\r\n", b"", True),
    ],
)
@pytest.mark.parametrize("decoded", [False, True])
async def test_what_an_answer_says_about_a_connection_is_said_afresh(pair, line, sent, last, decoded):
    client, connection = pair
    await client.send_all(GET)
    await connection.next_request()
    head = ResponseHead.decode(b"HTTP/1.1 200 OK\r\n" + line + b"content-length: 3\r\n\r\n")
    head = head if decoded else ResponseHead.of(head.status, head.reason, head.headers)
    await connection.answer(head, b"yes")
    ours = b"Connection: close\r\n" if last else b""
    expected = b"HTTP/1.1 200 OK\r\n" + sent + b"content-length: 3\r\n" + ours + b"\r\nyes"
    assert await read_until(client, b"yes") == expected
    await client.send_eof()
    assert await connection.next_request() is None
    assert (await read_all(client)) == (b"", True)


async def test_a_cut_never_looks_like_an_end():
    client, server = tls_pair()
    connection = ServerConnection(server)
    await client.send_all(GET)
    await connection.next_request()
    await connection.send_head(ResponseHead.of(200, b"OK"), b"part")
    await connection.cut()
    await connection.cut()
    data, clean = await read_all(client)
    assert not clean
    assert not data.endswith(b"0\r\n\r\n")
    with pytest.raises(InboundBroken):
        await connection.send_body(b"more")
    assert await connection.next_request() is None
    await client.aclose()


async def test_an_answer_that_was_not_finished_is_cut_by_aclose():
    for begun in (False, True):
        client, server = tls_pair()
        connection = ServerConnection(server)
        await client.send_all(GET)
        await connection.next_request()
        if begun:
            await connection.send_head(ResponseHead.of(200, b"OK"), b"part")
        await connection.aclose()
        assert not (await read_all(client))[1]
        await client.aclose()


@pytest.mark.parametrize("end", [False, True])
async def test_a_send_that_was_cancelled_leaves_only_a_cut(autojump_clock, end):
    client, server = tls_pair()
    connection = ServerConnection(server)
    await client.send_all(GET)
    await connection.next_request()
    server.stalled = True
    with trio.move_on_after(1) as scope:
        await connection.send_head(ResponseHead.of(200, b"OK"), b"part", end=end)
    assert scope.cancelled_caught
    with pytest.raises(InboundBroken):
        await connection.send_body(b"more")
    await connection.aclose()
    assert not (await read_all(client))[1]
    await client.aclose()


async def test_a_client_that_is_gone_is_told_from_a_bug():
    client, server = tls_pair()
    connection = ServerConnection(server)
    await client.send_all(GET)
    await connection.next_request()
    await client.aclose()
    with pytest.raises(InboundBroken) as caught:
        await answer_ok(connection)
    assert caught.value.failure.code is StreamCode.CANCEL
    await connection.aclose()


# -- leaving and upgrading ----------------------------------------------------------------------------------


UPGRADE = (
    b"POST /exec HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\r\n"
)
SWITCHING = ((b"connection", b"Upgrade"), (b"upgrade", b"SPDY/3.1"))
SWITCH = ResponseHead.of(101, b"Switching Protocols", SWITCHING)


async def test_bytes_after_a_refused_upgrade_are_the_next_request(pair):
    client, connection = pair
    await client.send_all(UPGRADE + GET)
    await connection.next_request()
    await connection.answer(*status_response(404, "NotFound", "no such pod"))
    request = await connection.next_request()
    assert request is not None
    assert (request.method, request.target) == (b"GET", b"/api")
    await connection.aclose()
    await client.aclose()


@pytest.mark.parametrize("framing", [b"Content-Length: 3", b"Transfer-Encoding: chunked"])
async def test_an_upgrade_with_a_body_is_a_400(pair, framing):
    client, connection = pair
    await client.send_all(
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: SPDY/3.1\r\n"
        + framing
        + b"\r\n\r\nabc"
    )
    with pytest.raises(BadRequest) as caught:
        await connection.next_request()
    assert caught.value.status == 400
    await connection.cut()
    await client.aclose()


async def test_an_upgraded_connection_that_nobody_ended_is_cut():
    client, server = tls_pair()
    connection = ServerConnection(server)
    await client.send_all(UPGRADE)
    await connection.next_request()
    await connection.send_head(SWITCH)
    await connection.aclose()
    assert not (await read_all(client))[1]
    await client.aclose()


async def test_a_detached_stream_is_somebody_elses():
    client, server = tls_pair()
    connection = ServerConnection(server)
    await client.send_all(UPGRADE + b"frames")
    await connection.next_request()
    assert connection.raw_head == UPGRADE
    assert connection.awaits_answer
    assert connection.detach() == (server, b"frames")
    assert not connection.awaits_answer
    assert await connection.next_request() is None
    await connection.cut()
    await connection.aclose()
    await client.send_all(b"x")
    assert await server.receive_some() == b"x"
    await server.aclose()
    await client.aclose()


@pytest.mark.parametrize("asks", [True, False])
async def test_an_answer_is_the_last_when_the_client_asks_for_that_or_the_server_stops(asks):
    client, server = memory_stream_pair()
    deadlines = Deadlines()
    deadlines.ending = not asks
    connection = ServerConnection(server, deadlines)
    line = b"Connection: close\r\n" if asks else b""
    await client.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n" + line + b"\r\n" + GET)
    await connection.next_request()
    await connection.send_head(ResponseHead.of(200, b"OK"), b"last", end=True)
    assert await connection.next_request() is None
    data, clean = await read_all(client)
    assert clean
    assert b"\r\nConnection: close\r\n" in data
    assert parsed("GET", data)[1] == b"last"


@given(st.binary(max_size=80), st.booleans())
def test_arbitrary_bytes_are_a_request_a_refusal_or_nothing(data, whole):
    async def run() -> None:
        client, server = memory_stream_pair()
        connection = ServerConnection(server)
        await client.send_all(data + (b"\r\n\r\n" if whole else b""))
        await client.send_eof()
        try:
            request = await connection.next_request()
        except BadRequest as exc:
            await connection.answer(*status_response(exc.status, "", exc.message))
            assert await connection.next_request() is None
            assert (await read_all(client))[1]
        else:
            assert request is None
        await client.aclose()

    trio.run(run)
