"""The console's connections: by TLS, and plain on loopback."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from proxy.hub.admin.asgi import Receive, Scope, Send
from proxy.hub.console import front as front_module
from proxy.hub.console.front import ConsoleFront
from proxy.hub.console.gate import KNOWN_PERSON
from proxy.hub.console.people import Person
from proxy.hub.home.certificate import Certificate
from proxy.hub.home.config import HubConfig
from proxy.hub.home.datadir import DataDir
from proxy.listener.client_address import Admitter
from proxy.listener.unauthenticated import PENDING_S, UnauthenticatedLimits
from tunnel.net.connect import client_context, wrap_client
from tunnel.net.loglimit import LogLimit

HEADERS = ((b"content-security-policy", b"default-src 'none'"),)


async def page(scope: Scope, receive: Receive, send: Send) -> None:
    """`/as/NAME` is a request of that person, `/stream` one that is answered without an end."""
    name, path = "", scope["path"]
    if path.startswith("/as/"):
        _, _, name, path = f"{path}/".split("/", 3)
        scope["state"][KNOWN_PERSON](Person(f"session-{name}", name, "viewer", "", 0.0, "token", "hash"))
    if path.startswith("stream"):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await trio.sleep_forever()
    if path == "/slow":
        await trio.sleep_forever()
    body = f"{scope['scheme']} {scope['client'][0]}".encode()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]}
    )
    await send({"type": "http.response.body", "body": body})


@attrs.frozen
class Port:
    number: int
    front: ConsoleFront

    async def open(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.number)


@asynccontextmanager
async def serving(certificate: Certificate | None = None) -> AsyncIterator[Port]:
    admitter = Admitter(UnauthenticatedLimits(), LogLimit(logging.getLogger("test")))
    front = ConsoleFront(app=page, headers=HEADERS, certificate=certificate, admitter=admitter)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(front.run)
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, front.handle_client, [listener])
        yield Port(listener.socket.getsockname()[1], front)
        nursery.cancel_scope.cancel()
    assert front.admitter.limits.connections == 0
    assert front.connections.count == 0


async def ask(stream: trio.abc.Stream, path: str, fields: str = "") -> bytes:
    await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\n".encode())
    return await stream.receive_some()


async def read_all(stream: trio.SocketStream) -> bytes:
    found = b""
    with suppress(trio.BrokenResourceError):
        async for data in stream:
            found += data
    return found


async def test_it_speaks_tls_with_the_hubs_certificate(tmp_path: Path) -> None:
    certificate = Certificate.open(HubConfig(data_dir=tmp_path), DataDir.open(tmp_path), time.time)
    assert certificate.ca_pem is not None
    async with serving(certificate) as port:
        stream = await wrap_client(
            await port.open(), client_context(certificate.ca_pem), server_hostname="localhost"
        )
        assert b"https 127.0.0.1" in await ask(stream, "/")
        await stream.aclose()


async def test_it_speaks_plain_http_without_a_certificate() -> None:
    async with serving() as port:
        stream = await port.open()
        assert b"http 127.0.0.1" in await ask(stream, "/")
        assert b"http 127.0.0.1" in await ask(stream, "/")
        await stream.aclose()


@pytest.mark.parametrize(
    "fields", ["Connection: upgrade\r\nUpgrade: websocket\r\n", "Content-Length: 9999999\r\n", "no field\r\n"]
)
async def test_answers_without_a_page_have_the_headers_too(fields: str) -> None:
    async with serving() as port:
        stream = await port.open()
        reply = await ask(stream, "/", fields)
        assert reply.startswith(b"HTTP/1.1 4")
        assert b"content-security-policy: default-src 'none'\r\n" in reply
        assert b"cache-control: no-store\r\n" in reply
        await stream.aclose()


async def test_a_connection_counts_as_unauthenticated_until_it_shows_a_person() -> None:
    async with serving() as port:
        limits, stream = port.front.admitter.limits, await port.open()
        await ask(stream, "/")
        assert (limits.connections, port.front.connections.count) == (1, 0)
        await ask(stream, "/as/ada")
        assert (limits.connections, port.front.connections.count) == (0, 1)
        # Another person may sign in by the same connection.
        await ask(stream, "/as/ben")
        assert port.front.connections.count == 1
        await stream.aclose()


async def test_a_stranger_has_some_time_for_a_request_and_a_person_any(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as port:
        person, stranger = await port.open(), await port.open()
        assert b"200 OK" in await ask(person, "/as/ada/stream")
        await stranger.send_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        began = trio.current_time()
        assert await stranger.receive_some() == b""
        assert trio.current_time() - began == pytest.approx(PENDING_S, abs=1)
        with trio.move_on_after(10 * PENDING_S) as more:
            while await person.receive_some():
                pass
        assert more.cancelled_caught
        for stream in (person, stranger):
            await trio.aclose_forcefully(stream)


async def test_a_person_has_some_connections_and_the_oldest_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_module, "CONNECTIONS_PER_PERSON_MAX", 2)
    async with serving() as port:
        streams = [await port.open() for _ in range(4)]
        for stream, name in zip(streams, ["ada", "ben", "ada", "ada"], strict=True):
            assert b"200 OK" in await ask(stream, f"/as/{name}")
        assert await streams[0].receive_some() == b""
        for stream, name in zip(streams[1:], ["ben", "ada", "ada"], strict=True):
            assert b"200 OK" in await ask(stream, f"/as/{name}")
        for stream in streams:
            await trio.aclose_forcefully(stream)


async def test_the_connections_of_a_session_end_with_it() -> None:
    async with serving() as port:
        streams = [await port.open() for _ in range(2)]
        for stream, name in zip(streams, ["ada", "ben"], strict=True):
            await ask(stream, f"/as/{name}/stream")
        port.front.connections.end_all_but({"session-ben"})
        # Cut: a stream without its end is no whole answer.
        rest = await read_all(streams[0])
        assert b"0\r\n\r\n" not in rest
        await wait_all_tasks_blocked()
        assert port.front.connections.count == 1
        for stream in streams:
            await trio.aclose_forcefully(stream)
