"""Exchanges that take their time, of clients that may leave, over real sockets and TLS."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from proxy import deadlines as module
from proxy.deadlines import Deadlines
from proxy.exchange import Failure, StreamCode
from proxy.head import RequestHead, ResponseHead
from proxy.http import ServerConnection
from proxy.server import EARLY_BYTES_MAX
from tests.tunnel.test_tcp import tcp_pair
from tests.tunnel.test_tls import handshake
from tunnel.readiness import Readiness
from tunnel.tls import TLSStream

GET = b"GET /one HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\n\r\n"
WITHOUT_TOKEN = b"GET /one HTTP/1.1\r\nHost: a\r\n\r\n"
OTHER = b"GET /two HTTP/1.1\r\nHost: a\r\n\r\n"
BEGUN = ResponseHead(200, b"OK", ((b"transfer-encoding", b"chunked"),))
NOTHING = ResponseHead(204)
# Well behind the time at which an exchange is looked at.
A_WHILE_S = 0.1


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a little for long."""
    monkeypatch.setattr(module, "QUIET_S", 0.01)
    monkeypatch.setattr(module, "SWEEP_S", 0.01)


@attrs.define(eq=False)
class Bench:
    client: TLSStream
    server: TLSStream
    connection: ServerConnection
    request: RequestHead
    readiness: Readiness
    gone: list[Failure] = attrs.Factory(list)
    heard: trio.Event = attrs.Factory(trio.Event)

    async def hear(self, failure: Failure) -> None:
        self.gone.append(failure)
        self.heard.set()

    async def left(self) -> Failure:
        with trio.fail_after(2):
            await self.heard.wait()
        return self.gone[0]


@asynccontextmanager
async def attended(*, watched: bool = True) -> AsyncIterator[Bench]:
    """A connection whose answer has begun, and takes its time; `watched` is without a task."""
    async with trio.open_nursery() as nursery:
        client, server = await handshake(await tcp_pair())
        deadlines, readiness = Deadlines(), Readiness()
        nursery.start_soon(deadlines.run)
        nursery.start_soon(readiness.run)
        connection = ServerConnection(server, deadlines, readiness=readiness if watched else None)
        await client.send_all(GET)
        request = await connection.next_request()
        assert request is not None
        request.fields.note = "who has sent it"
        bench = Bench(client, server, connection, request, readiness)
        await connection.send_head(BEGUN)
        await client.receive_some()
        connection.watch(bench.hear)
        tasks = trio.lowlevel.current_statistics().tasks_living
        await trio.sleep(A_WHILE_S)
        assert trio.lowlevel.current_statistics().tasks_living == tasks + (not watched)
        try:
            yield bench
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await connection.cut()
                await trio.aclose_forcefully(client)


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("cleanly", [True, False])
async def test_a_client_that_leaves_is_noticed(watched: bool, cleanly: bool) -> None:
    async with attended(watched=watched) as bench:
        if cleanly:
            await bench.client.aclose()
        else:
            await trio.aclose_forcefully(bench.client)
        assert (await bench.left()).code is StreamCode.CANCEL
        await bench.connection.unwatch()
        assert len(bench.gone) == 1


@pytest.mark.parametrize("watched", [True, False])
async def test_what_it_asks_meanwhile_is_answered_afterwards(watched: bool) -> None:
    async with attended(watched=watched) as bench:
        await bench.client.send_all(OTHER)
        await trio.sleep(A_WHILE_S)
        await bench.connection.unwatch()
        await bench.connection.end()
        head = await bench.connection.next_request()
        assert head is not None
        assert head.target == b"/two"
        assert not bench.gone


@pytest.mark.parametrize("watched", [True, False])
async def test_what_it_sends_meanwhile_is_bounded(watched: bool) -> None:
    async with attended(watched=watched) as bench:
        with trio.move_on_after(A_WHILE_S):
            for _ in range(400):
                await bench.client.send_all(bytes(16 * 1024))
        assert EARLY_BYTES_MAX <= len(bench.connection._scanner) <= EARLY_BYTES_MAX + 192 * 1024
        await bench.connection.unwatch()
        assert not bench.gone


@pytest.mark.parametrize("watched", [True, False])
async def test_nobody_hears_of_a_client_that_leaves_after_the_exchange(watched: bool) -> None:
    async with attended(watched=watched) as bench:
        await bench.connection.unwatch()
        await trio.aclose_forcefully(bench.client)
        await trio.sleep(A_WHILE_S)
        assert not bench.gone


async def test_a_request_that_takes_its_time_holds_no_token() -> None:
    async with attended() as bench:
        fields = bench.request.fields
        assert fields.note is None
        with pytest.raises(AttributeError):
            object.__getattribute__(fields, "headers")
        assert fields.headers == ((b"host", b"a"),)
        # A next one that says all the same but the token is nobody's.
        await bench.client.send_all(WITHOUT_TOKEN + GET)
        await bench.connection.unwatch()
        await bench.connection.end()
        for token in (None, b"Bearer secret"):
            head = await bench.connection.next_request()
            assert head is not None
            assert head.header(b"authorization") == token
            assert head.fields.note is None
            await bench.connection.answer(NOTHING, b"")


async def test_an_exchange_that_ends_as_its_client_leaves_need_not_hear_of_it() -> None:
    async with attended() as bench:
        # Noticed, and the task for it not begun yet.
        await trio.aclose_forcefully(bench.client)
        for _ in range(1000):
            if bench.connection._client_watch is None:
                break
            await trio.lowlevel.checkpoint()
        await bench.connection.unwatch()
        await trio.sleep(A_WHILE_S)
        assert len(bench.gone) <= 1


async def test_a_connection_that_is_cut_is_watched_no_more() -> None:
    async with attended() as bench:
        descriptor = bench.server.transport_stream.socket.fileno()  # type: ignore[attr-defined]
        await bench.connection.cut()
        await bench.connection.unwatch()
        # Whoever gets the same number next may have it watched.
        near, far = socket.socketpair()
        with near, far:
            assert descriptor in {near.fileno(), far.fileno()}
            bench.readiness.watch(descriptor, lambda: None).end()
        assert not bench.gone
