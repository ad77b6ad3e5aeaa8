"""Exchanges that take their time, of clients that may leave, over real sockets and TLS."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing

from proxy.exchange.client import ClientConnection
from proxy.exchange.deadlines import QUIET_S, Deadlines
from proxy.exchange.forward import forward
from proxy.exchange.http_server import EARLY_BYTES_MAX
from proxy.exchange.server import ServerConnection
from proxy.exchange.wire import CLIENT_BYTES_AT_ONCE
from proxy.message.failure import Failure, StreamCode
from proxy.message.head import RequestHead, ResponseHead
from tests.tunnel.stream_pairs import handshake, tcp_pair
from tunnel.net.connect import tls_socket
from tunnel.net.readiness import Readiness
from tunnel.net.tls import TLSStream

GET = b"GET /one HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\n\r\n"
WITHOUT_TOKEN = b"GET /one HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /one HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"
OTHER = b"GET /two HTTP/1.1\r\nHost: a\r\n\r\n"
BEGUN = ResponseHead.of(200, b"OK", ((b"transfer-encoding", b"chunked"),))
NOTHING = ResponseHead.of(204)
# Well behind the time at which an exchange is looked at.
A_WHILE_S = 4 * QUIET_S


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


@attrs.frozen
class Served:
    client: TLSStream
    server: TLSStream
    connection: ServerConnection
    readiness: Readiness


@asynccontextmanager
async def serving(*, watched: bool = True) -> AsyncIterator[Served]:
    """A client and its connection; `watched` says how it is noticed that one leaves."""
    async with trio.open_nursery() as nursery:
        client, server = await handshake(await tcp_pair())
        deadlines, readiness = Deadlines(), Readiness()
        nursery.start_soon(deadlines.run)
        nursery.start_soon(readiness.run)
        connection = ServerConnection(server, deadlines, readiness=readiness if watched else None)
        try:
            yield Served(client, server, connection, readiness)
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await connection.cut()
                await trio.aclose_forcefully(client)


@asynccontextmanager
async def attended(*, watched: bool = True) -> AsyncIterator[Bench]:
    """A connection whose answer has begun, and takes its time; `watched` is without a task."""
    async with serving(watched=watched) as served:
        client, connection = served.client, served.connection
        await client.send_all(GET)
        request = await connection.next_request()
        assert request is not None
        request.fields.note = "who has sent it"
        bench = Bench(client, served.server, connection, request, served.readiness)
        await connection.send_head(BEGUN)
        await client.receive_some()
        connection.watch(bench.hear)
        tasks = trio.lowlevel.current_statistics().tasks_living
        await trio.sleep(A_WHILE_S)
        assert trio.lowlevel.current_statistics().tasks_living == tasks + (not watched)
        yield bench


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("cleanly", [True, False])
async def test_a_client_that_leaves_is_noticed(
    watched: bool, cleanly: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with attended(watched=watched) as bench:
        if cleanly:
            await bench.client.aclose()
        else:
            await trio.aclose_forcefully(bench.client)
        assert (await bench.left()).code is StreamCode.CANCEL
        await bench.connection.unwatch()
        assert len(bench.gone) == 1


@pytest.mark.parametrize("watched", [True, False])
async def test_what_it_asks_meanwhile_is_answered_afterwards(
    watched: bool, autojump_clock: trio.testing.MockClock
) -> None:
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
async def test_what_it_sends_meanwhile_is_bounded(
    watched: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with attended(watched=watched) as bench:
        with trio.move_on_after(A_WHILE_S):
            for _ in range(400):
                await bench.client.send_all(bytes(16 * 1024))
        assert EARLY_BYTES_MAX <= len(bench.connection.http) <= EARLY_BYTES_MAX + 192 * 1024
        await bench.connection.unwatch()
        assert not bench.gone


@pytest.mark.parametrize("watched", [True, False])
async def test_nobody_hears_of_a_client_that_leaves_after_the_exchange(
    watched: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with attended(watched=watched) as bench:
        await bench.connection.unwatch()
        await trio.aclose_forcefully(bench.client)
        await trio.sleep(A_WHILE_S)
        assert not bench.gone


async def test_an_exchange_that_ends_waits_for_who_was_told(autojump_clock: trio.testing.MockClock) -> None:
    told, left = trio.Event(), trio.Event()

    async def take_time(_: Failure) -> None:
        told.set()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            left.set()

    async with serving() as served:
        client, connection = served.client, served.connection
        await client.send_all(GET)
        assert await connection.next_request() is not None
        connection.watch(take_time)
        await trio.aclose_forcefully(client)
        await told.wait()
        with trio.CancelScope() as scope:
            scope.cancel()
            await connection.unwatch()
        assert left.is_set()


async def test_a_request_that_takes_its_time_holds_no_token(autojump_clock: trio.testing.MockClock) -> None:
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


async def test_an_exchange_that_ends_as_its_client_leaves_need_not_hear_of_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with attended() as bench:
        # Noticed, and the task for it not begun yet.
        attendance = bench.connection._attendance
        assert attendance is not None
        assert attendance._watch is not None
        await trio.aclose_forcefully(bench.client)
        for _ in range(1000):
            if attendance._watch is None:
                break
            await trio.lowlevel.checkpoint()
        await bench.connection.unwatch()
        await trio.sleep(A_WHILE_S)
        assert len(bench.gone) <= 1


async def test_a_connection_that_is_cut_is_watched_no_more(autojump_clock: trio.testing.MockClock) -> None:
    async with attended() as bench:
        descriptor = descriptor_of(bench.server)
        await bench.connection.cut()
        await bench.connection.unwatch()
        # Whoever gets the same number next may have it watched.
        near, far = socket.socketpair()
        with near, far:
            assert descriptor in {near.fileno(), far.fileno()}
            bench.readiness.watch(descriptor, lambda: None).end()
        assert not bench.gone


async def test_a_client_that_is_heard_by_a_fault_of_ours_goes_as_if_it_had_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    def fail(_: TLSStream, at_once: int) -> bytes:
        # No more, or the records of one client would keep all others waiting.
        assert at_once == CLIENT_BYTES_AT_ONCE
        raise KeyError("ours")

    async with attended() as bench:
        monkeypatch.setattr(TLSStream, "receive_nowait", fail)
        await bench.client.send_all(OTHER)
        assert (await bench.left()).code is StreamCode.CANCEL
        await bench.connection.unwatch()
    assert "KeyError: 'ours'" in caplog.text


@pytest.mark.parametrize("settled", [True, False])
async def test_nobody_attends_to_a_connection_that_was_cut(
    settled: bool, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    """Before it was looked at; its socket is closed by then, or somebody else's."""
    async with serving() as served:
        client, connection = served.client, served.connection
        await client.send_all(GET)
        assert await connection.next_request() is not None
        connection.watch(nobody)
        await connection.cut()
        if settled:
            await connection.unwatch()
        await trio.sleep(A_WHILE_S)
    assert not caplog.records


async def test_who_begins_to_look_after_a_connection_that_was_cut_hears_of_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as served:
        client, connection = served.client, served.connection
        await client.send_all(GET)
        assert await connection.next_request() is not None
        await connection.cut()
        bench = Bench(client, served.server, connection, RequestHead.of(b"GET", b"/"), served.readiness)
        connection.watch(bench.hear)
        with trio.fail_after(A_WHILE_S):
            await bench.heard.wait()
        await connection.unwatch()


async def test_what_fails_by_a_fault_of_ours_beside_a_body_is_attended_no_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    def fail(_: ResponseHead) -> ResponseHead:
        raise KeyError("ours")

    async with serving() as served:
        client, connection = served.client, served.connection
        upstream, stream = trio.testing.memory_stream_pair()
        outbound = ClientConnection(stream)
        await client.send_all(POST)
        request = await connection.next_request()
        assert request is not None
        await outbound.send_request(request)

        async def answer() -> None:
            # By then the body was carried, and the client is looked after.
            await trio.testing.wait_all_tasks_blocked()
            await upstream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

        with pytest.RaisesGroup(pytest.RaisesGroup(KeyError)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer)
                await forward(connection, outbound, request, on_head=fail)
        await trio.sleep(A_WHILE_S)
        served.readiness.watch(descriptor_of(served.server), lambda: None).end()
        await outbound.aclose()
        await upstream.aclose()


def descriptor_of(stream: TLSStream) -> int:
    """Whoever else has it watched meanwhile is in the way of the next one."""
    socket = tls_socket(stream)
    assert socket is not None
    return socket.fileno()


async def nobody(_: Failure) -> None:
    raise AssertionError("nobody was to be told")
