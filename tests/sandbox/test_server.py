"""The HTTP server over a stream in memory; the client is h11 in its other role, or raw bytes."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import h11
import pytest
import trio
import trustme
from trio.testing import MockClock, memory_stream_pair

from sandbox import server
from sandbox.server import (
    Answer,
    Connection,
    Exchange,
    Handler,
    Response,
    Send,
    Streamed,
    Upgrade,
    UpgradeRefused,
)
from sandbox.status import BODY_BYTES_MAX, GroupResource, not_found


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[trio.abc.HalfCloseableStream]:
    """A client's end of a connection to a server with this handler."""
    client, ours = memory_stream_pair()

    async def serve(task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        try:
            await Connection(ours, handler, "client").serve()
        except server.ClientGone:
            pass
        finally:
            await ours.aclose()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        yield client
        await client.aclose()
        nursery.cancel_scope.cancel()


class Client:
    """Sends raw requests and reads answers."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._http = h11.Connection(h11.CLIENT)

    async def ask(
        self, method: str, target: str, *headers: tuple[str, str], body: bytes = b""
    ) -> tuple[int, bytes]:
        """Send a whole request, and return the answer's status and body."""
        self._http.send(h11.Request(method=method, target=target, headers=[("Host", "x"), *headers]))
        lines = [f"{method} {target} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in headers)]
        if body:
            self._http.send(h11.Data(data=body))
        self._http.send(h11.EndOfMessage())
        await self.stream.send_all("\r\n".join([*lines, "", ""]).encode() + body)
        return await self.answer()

    async def answer(self) -> tuple[int, bytes]:
        head = await self.event()
        assert isinstance(head, h11.Response)
        body = b""
        while isinstance(event := await self.event(), h11.Data):
            body += bytes(event.data)
        assert isinstance(event, h11.EndOfMessage)
        if self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        return head.status_code, body

    async def event(self) -> h11.Event:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(bytes(await self.stream.receive_some(65536)))
        assert isinstance(event, h11.Event)
        return event


async def echo(exchange: Exchange) -> Answer:
    return Response(200, await exchange.read_body() or exchange.request.target.encode())


async def everything(stream: trio.abc.Stream) -> bytes:
    data = b""
    while chunk := await stream.receive_some(65536):
        data += chunk
    return data


async def test_requests_follow_one_another_on_a_connection() -> None:
    async with served(echo) as stream:
        client = Client(stream)
        assert await client.ask("GET", "/a?b=c") == (200, b"/a?b=c")
        assert await client.ask("POST", "/", ("Content-Length", "3"), body=b"abc") == (200, b"abc")
        assert await client.ask("HEAD", "/long") == (200, b"")
        assert await client.ask("GET", "/d") == (200, b"/d")


async def test_a_request_is_read_as_the_api_server_reads_it() -> None:
    seen = []

    async def handler(exchange: Exchange) -> Answer:
        seen.append(exchange.request)
        return Response(200, b"")

    async with served(handler) as stream:
        await Client(stream).ask("GET", "/a%2Fb?x=1&x=2&y", ("Accept", "one"), ("Accept", "two"))
    [request] = seen
    assert (request.path, request.query) == ("/a/b", {"x": ["1", "2"], "y": [""]})
    assert (request.header(b"accept"), request.header_values(b"accept")) == ("one", ["one", "two"])
    assert request.flag("y")
    assert request.option("x") == "1"
    assert not request.wants_upgrade


@pytest.mark.parametrize(
    ("query", "read"),
    [
        # Go's net/url drops a pair with a semicolon or a broken escape, and reads the rest.
        ("watch=0;", {}),
        ("watch=1;x=2&limit=5", {"limit": ["5"]}),
        ("watch=%zz&watch=1", {"watch": ["1"]}),
        ("watch=1%", {}),
        ("%zz=1&=2&a=", {"": ["2"], "a": [""]}),
        ("a=%3B&b+c=d+e&&", {"a": [";"], "b c": ["d e"]}),
        ("w%61tch=%31", {"watch": ["1"]}),
    ],
)
async def test_a_query_is_read_as_go_reads_it(query: str, read: dict[str, list[str]]) -> None:
    seen = []

    async def handler(exchange: Exchange) -> Answer:
        seen.append(exchange.request)
        return Response(200, b"")

    async with served(handler) as stream:
        await Client(stream).ask("GET", f"/api/v1/pods?{query}")
    assert seen[0].query == read


async def test_an_error_is_a_status_and_a_bug_a_500() -> None:
    async def handler(exchange: Exchange) -> Answer:
        if exchange.request.path == "/bug":
            raise ZeroDivisionError("oops")
        raise not_found(GroupResource("", "pods"), "p")

    async with served(handler) as stream:
        client = Client(stream)
        status, body = await client.ask("GET", "/p")
        assert (status, b'"message":"pods \\"p\\" not found"' in body) == (404, True)
        assert (await client.ask("GET", "/bug"))[0] == 500
        assert (await client.ask("GET", "/p"))[0] == 404


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
async def test_what_must_not_be_guessed_at_is_refused(head: bytes) -> None:
    async with served(echo) as stream:
        await stream.send_all(head)
        await stream.send_eof()
        assert (await everything(stream)).startswith(b"HTTP/1.1 400 Bad Request\r\n")


async def test_a_head_beyond_a_mebibyte_is_refused() -> None:
    async with served(echo) as stream:
        async with trio.open_nursery() as nursery:
            head = (
                b"GET / HTTP/1.1\r\nHost: a\r\nX: "
                + b"x" * (server.HEAD_BYTES_MAX + server.READ_BYTES)
                + b"\r\n\r\n"
            )
            nursery.start_soon(stream.send_all, head)
            data = bytes(await stream.receive_some(100))
            nursery.cancel_scope.cancel()
        assert data.startswith(b"HTTP/1.1 431 ")


async def test_a_body_that_is_too_large_is_refused_and_the_connection_ended(
    autojump_clock: MockClock,
) -> None:
    for framing in (f"Content-Length: {BODY_BYTES_MAX + 1}", "Transfer-Encoding: chunked"):
        async with served(echo) as stream:
            await stream.send_all(f"POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n".encode())
            async with trio.open_nursery() as nursery:
                if "chunked" in framing:
                    body = b"400000\r\n" + b"x" * 0x400000 + b"\r\n0\r\n\r\n"
                    nursery.start_soon(stream.send_all, body)
                data = await everything(stream)
                nursery.cancel_scope.cancel()
            assert data.startswith(b"HTTP/1.1 413 ")
            assert b"Connection: close" in data


async def test_an_early_answer_ends_the_connection(autojump_clock: MockClock) -> None:
    async def handler(exchange: Exchange) -> Answer:
        return Response(401, b"no")

    async with served(handler) as stream:
        await stream.send_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nonly this")
        before = trio.current_time()
        data = await everything(stream)
        # The server keeps reading for a while, or closing would reset the connection and lose the answer.
        assert trio.current_time() - before == pytest.approx(server.DRAIN_S)
    assert data.startswith(b"HTTP/1.1 401 ")
    assert b"Connection: close" in data


async def test_a_body_that_came_whole_is_skipped() -> None:
    async def handler(exchange: Exchange) -> Answer:
        return Response(200, b"did not look")

    async with served(handler) as stream:
        client = Client(stream)
        for _ in range(2):
            answer = await client.ask("POST", "/", ("Content-Length", "3"), body=b"abc")
            assert answer == (200, b"did not look")


async def test_who_waits_for_100_continue_gets_it_when_the_body_is_wanted() -> None:
    async with served(echo) as stream:
        await stream.send_all(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
        assert bytes(await stream.receive_some(100)).startswith(b"HTTP/1.1 100 ")
        await stream.send_all(b"ok")
        assert bytes(await stream.receive_some(1000)).endswith(b"ok")


async def test_a_streamed_answer_is_flushed_piece_by_piece_and_ends_clean() -> None:
    more = trio.Event()

    async def handler(exchange: Exchange) -> Answer:
        async def produce(send: Send) -> None:
            await send(b"one")
            await more.wait()
            await send(b"two")

        return Streamed(produce)

    async with served(handler) as stream:
        client = Client(stream)
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        client._http.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
        client._http.send(h11.EndOfMessage())
        assert isinstance(await client.event(), h11.Response)
        first = await client.event()
        assert isinstance(first, h11.Data)
        assert bytes(first.data) == b"one"
        more.set()
        second = await client.event()
        assert isinstance(second, h11.Data)
        assert isinstance(await client.event(), h11.EndOfMessage)
        client._http.start_next_cycle()
        # The connection can be reused, also for pipelined requests.
        more.set()
        assert await client.ask("GET", "/") == (200, b"onetwo")


async def test_a_client_that_hangs_up_ends_its_stream() -> None:
    ended = trio.Event()

    async def handler(exchange: Exchange) -> Answer:
        async def produce(send: Send) -> None:
            try:
                await trio.sleep_forever()
            finally:
                ended.set()

        return Streamed(produce)

    async with served(handler) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await stream.receive_some(1000)
        await stream.aclose()
        await ended.wait()


async def test_a_stream_that_fails_has_no_clean_end() -> None:
    async def handler(exchange: Exchange) -> Answer:
        async def produce(send: Send) -> None:
            await send(b"one")
            raise server.ClientGone

        return Streamed(produce)

    async with served(handler) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        data = await everything(stream)
    assert data.endswith(b"3\r\none\r\n")


UPGRADE = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n"


async def test_an_upgrade_takes_the_connection_with_what_came_already() -> None:
    async def handler(exchange: Exchange) -> Answer:
        assert exchange.request.wants_upgrade

        async def serve(stream: trio.abc.Stream, leftover: bytes) -> None:
            await stream.send_all(b"got " + leftover)

        return Upgrade(serve)

    async with served(handler) as stream:
        await stream.send_all(UPGRADE + b"early")
        assert await everything(stream) == b"got early"


async def test_a_refused_upgrade_is_answered_and_ends_the_connection(autojump_clock: MockClock) -> None:
    async def handler(exchange: Exchange) -> Answer:
        async def serve(stream: trio.abc.Stream, leftover: bytes) -> None:
            raise UpgradeRefused(Response(403, b"no", "text/plain"))

        return Upgrade(serve)

    async with served(handler) as stream:
        await stream.send_all(UPGRADE)
        data = await everything(stream)
    assert data.startswith(b"HTTP/1.1 403 ")
    assert b"Connection: close" in data
    assert b"Content-Length: 2" in data


async def test_an_idle_connection_is_closed(autojump_clock: MockClock) -> None:
    async with served(echo) as stream:
        client = Client(stream)
        await client.ask("GET", "/")
        before = trio.current_time()
        assert await everything(stream) == b""
        assert trio.current_time() - before == pytest.approx(server.IDLE_S)


async def test_a_client_that_is_gone_before_it_is_accepted_ends_nothing() -> None:
    authority = trustme.CA()
    context, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(trusting)

    async def refuse(exchange: Exchange) -> Answer:
        raise AssertionError("nobody asks")

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as gone:
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_connections, listeners, context, refuse)
        with trio.fail_after(5):
            stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=trusting)
            await stream.do_handshake()
            await trio.aclose_forcefully(stream)
        nursery.cancel_scope.cancel()
