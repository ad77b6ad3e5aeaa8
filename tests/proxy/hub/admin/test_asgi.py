from __future__ import annotations

import json
import logging
import random
from typing import Any

import pytest
import trio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from proxy.hub.admin.asgi import REQUEST_BODY_BYTES_MAX, Application, serve_connection
from tests.proxy.exchange.legs import read_all, tls_pair


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


async def echo(request: Request) -> Response:
    body = await request.body()
    return JSONResponse(
        {
            "path": request.url.path,
            "query": request.url.query,
            "body": body.decode("latin-1"),
            "method": request.method,
        }
    )


async def fail(request: Request) -> Response:
    raise RuntimeError("a bug")


async def stream(request: Request) -> Response:
    async def parts():
        for number in range(3):
            yield b"%d\n" % number
            await trio.sleep(1)

    return StreamingResponse(parts())


async def fail_late(request: Request) -> Response:
    async def parts():
        yield b"part"
        raise RuntimeError("a bug behind the head")

    return StreamingResponse(parts())


async def forever(request: Request) -> Response:
    async def parts():
        while True:
            yield b"tick\n"
            await trio.sleep(1)

    return StreamingResponse(parts())


async def pass_through(request: Request, call_next: Any) -> Response:
    return await call_next(request)


ROUTES = [
    Route("/hello", hello),
    Route("/echo/{rest:path}", echo, methods=["GET", "POST"]),
    Route("/fail", fail),
    Route("/stream", stream),
    Route("/fail-late", fail_late),
    Route("/forever", forever),
]
APP = Starlette(routes=ROUTES)
WRAPPED = Starlette(routes=ROUTES, middleware=[Middleware(BaseHTTPMiddleware, dispatch=pass_through)])

GET = b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n"


async def ask(raw: bytes, app: Application = APP) -> tuple[bytes, bool]:
    """Send bytes on one connection, and read all that comes."""
    client, server = tls_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connection, app, server)
        await client.send_all(raw)
        answer = await read_all(client)
        await client.aclose()
    return answer


CLOSE = b"Connection: close\r\n\r\n"


@pytest.mark.parametrize("app", [APP, WRAPPED])
async def test_an_application_answers_one_request_after_the_other(app):
    data, clean = await ask(GET + b"GET /hello HTTP/1.1\r\nHost: a\r\n" + CLOSE, app)
    assert clean
    assert data.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert data.endswith(b"\r\n\r\nhello")


@pytest.mark.parametrize("app", [APP, WRAPPED])
@pytest.mark.parametrize(
    "framed",
    [
        b"Content-Length: 3\r\n" + CLOSE + b"abc",
        b"Transfer-Encoding: chunked\r\n" + CLOSE + b"3\r\nabc\r\n0\r\n\r\n",
    ],
)
async def test_the_scope_is_decoded_once_and_the_body_whole(app, framed):
    data, _ = await ask(b"POST /echo/a%20b?x=%2F HTTP/1.1\r\nHost: a\r\n" + framed, app)
    assert json.loads(data.partition(b"\r\n\r\n")[2]) == {
        "path": "/echo/a b",
        "query": "x=%2F",
        "body": "abc",
        "method": "POST",
    }


async def test_the_raw_path_is_the_path_before_one_decode():
    scopes: list[dict[str, Any]] = []

    async def app(scope, receive, send) -> None:
        scopes.append(scope)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    client, server = memory_stream_pair()
    await client.send_all(b"HEAD /a%2Fb%20%C3%A4?q HTTP/1.1\r\nHost: h\r\nX-A: 1\r\n" + CLOSE)
    await serve_connection(app, server, scheme="http", client=("192.0.2.1", 5), server=("h", 80))
    scope = scopes[0]
    assert scope["path"] == "/a/b ä"
    assert scope["raw_path"] == b"/a%2Fb%20%C3%A4"
    assert scope["query_string"] == b"q"
    assert scope["method"] == "HEAD"
    assert (scope["scheme"], scope["client"], scope["server"]) == ("http", ("192.0.2.1", 5), ("h", 80))
    assert (b"x-a", b"1") in scope["headers"]
    assert (await read_all(client))[0].startswith(b"HTTP/1.1 204 No Content\r\n")
    await client.aclose()


@pytest.mark.parametrize("app", [APP, WRAPPED])
async def test_a_failing_application_is_a_500_and_the_connection_goes_on(app, caplog):
    with caplog.at_level(logging.ERROR, "proxy.hub.admin.asgi"):
        data, clean = await ask(
            b"GET /fail?secret=1 HTTP/1.1\r\nHost: a\r\n\r\nGET /hello HTTP/1.1\r\nHost: a\r\n" + CLOSE, app
        )
    assert clean
    assert data.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert data.endswith(b"hello")
    assert b"a bug" not in data
    assert "a bug" in caplog.text
    assert "secret" not in caplog.text


async def test_an_application_that_fails_late_is_cut(caplog):
    # (Behind Starlette's BaseHTTPMiddleware it would first claim that the answer is whole.)
    data, clean = await ask(b"GET /fail-late HTTP/1.1\r\nHost: a\r\n\r\n")
    assert not clean
    assert b"part" in data
    assert not data.endswith(b"0\r\n\r\n")


async def test_pieces_leave_as_they_come(autojump_clock):
    client, server = tls_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connection, APP, server)
        await client.send_all(b"GET /stream HTTP/1.1\r\nHost: a\r\n" + CLOSE)
        pieces = []
        while data := await client.receive_some():
            pieces.append((round(trio.current_time()), data))
            if data.endswith(b"0\r\n\r\n"):
                break
        assert [at for at, _ in pieces] == [0, 1, 2, 3]
        await client.aclose()


@pytest.mark.parametrize("app", [APP, WRAPPED])
async def test_a_client_that_leaves_ends_the_application(app, autojump_clock):
    client, server = tls_pair()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_connection, app, server)
            await client.send_all(b"GET /forever HTTP/1.1\r\nHost: a\r\n\r\n")
            await client.receive_some()
            await trio.sleep(5)
            await client.aclose()


@pytest.mark.parametrize("app", [APP, WRAPPED])
async def test_a_client_that_leaves_within_its_body_costs_no_traceback(app, autojump_clock, caplog):
    # Its kernel still takes an answer, as after a shutdown of one direction.
    client, server = memory_stream_pair()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_connection, app, server)
            await client.send_all(b"POST /echo/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na")
            await client.send_eof()
            assert (await client.receive_some()).startswith(b"HTTP/1.1 400 ")
            await client.aclose()
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nx", b"426"),
        (b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n", b"400"),
        (
            b"POST /echo/ HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (REQUEST_BODY_BYTES_MAX + 1),
            b"413",
        ),
        (
            b"POST /echo/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"10000\r\n%s\r\n" % (b"x" * 0x10000) * 17,
            b"413",
        ),
        (b"POST /echo/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcXX\r\n", b"400"),
        (b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
        (b"GET /nothing HTTP/1.1\r\nHost: a\r\n" + CLOSE, b"404"),
    ],
)
async def test_what_is_not_served_is_refused(raw, status, autojump_clock, caplog):
    for app in (APP, WRAPPED):
        data, _ = await ask(raw + b"GET", app) if status == b"426" else await ask(raw, app)
        assert data.startswith(b"HTTP/1.1 " + status), data[:100]
    assert "the application failed" not in caplog.text


def start(status: int = 200, headers: list[tuple[bytes, bytes]] | None = None) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers or []}


BODY = {"type": "http.response.body", "body": b"abc"}


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [start()],
        [BODY],
        [start(), start()],
        [start(101), BODY],
        [start(42), BODY],
        [start(headers=[(b"content-length", b"x")]), BODY],
        [start(headers=[(b"content-length", b"5")]), BODY],
        [start(headers=[(b"content-length", b"1")]), BODY],
        [start(headers=[(b"x-a", b"a\r\nx-b: c")]), BODY],
        [start(), {"type": "http.response.body", "body": b"abc", "more_body": True}],
        [{"type": "websocket.accept"}],
    ],
)
async def test_an_application_that_breaks_the_protocol_sends_no_whole_answer(messages, caplog):
    async def app(scope, receive, send) -> None:
        for message in messages:
            await send(message)

    data, clean = await ask(GET.replace(b"\r\n\r\n", b"\r\n" + CLOSE), app)
    assert data.startswith(b"HTTP/1.1 500 ") or not clean
    assert b"x-b" not in data
    assert "the application failed" in caplog.text


async def test_an_answer_behind_the_answer_is_an_error_of_the_application(caplog):
    async def app(scope, receive, send) -> None:
        for message in (start(headers=[(b"content-length", b"3")]), BODY, BODY):
            await send(message)

    data, _ = await ask(b"GET / HTTP/1.1\r\nHost: a\r\n" + CLOSE, app)
    assert data.endswith(b"abc")
    assert "out of order" in caplog.text


async def test_one_connections_fault_never_reaches_another(autojump_clock, caplog):
    """1,500 mutated requests, each on a connection of its own in one nursery, beside one that goes on."""
    seeds = [
        GET,
        b"POST /echo/x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        b"POST /echo/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n\x81",
        b"GET /fail HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /fail-late HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n",
    ]
    dice = random.Random(20261125)
    caplog.set_level(logging.CRITICAL)
    survivor, near = tls_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connection, WRAPPED, near)

        async def attack(raw: bytes, app: Application) -> None:
            client, server = memory_stream_pair()
            async with trio.open_nursery() as own:
                own.start_soon(serve_connection, app, server)
                await client.send_all(raw)
                await client.send_eof()
                await read_all(client)
                await client.aclose()

        for number in range(1500):
            raw = bytearray(dice.choice(seeds))
            for _ in range(dice.randint(1, 4)):
                at = dice.randrange(len(raw))
                kind = dice.randrange(4)
                if kind == 0:
                    raw[at] = dice.randrange(256)
                elif kind == 1:
                    del raw[at : at + dice.randint(1, 20)]
                elif kind == 2:
                    raw[at:at] = raw[dice.randrange(len(raw)) :][: dice.randint(1, 30)]
                else:
                    raw[at:at] = dice.choice(
                        [b"\r\n", b"\n", b"\x00", b": ", b"GET / HTTP/1.1\r\n", b"\xff" * 5]
                    )
                if not raw:
                    raw = bytearray(b"\r")
            nursery.start_soon(attack, bytes(raw), APP if number % 2 else WRAPPED)
            if number % 100 == 0:
                await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        await survivor.send_all(b"GET /hello HTTP/1.1\r\nHost: a\r\n" + CLOSE)
        data, clean = await read_all(survivor)
        assert clean
        assert data.endswith(b"hello")
        await survivor.aclose()
