"""A connection over a real socket whose task is parked, and requests that begin without it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from proxy.exchange.deadlines import Deadlines
from proxy.exchange.engine import Exchange
from proxy.exchange.next_pass import NextPass
from proxy.exchange.parked_connection import Begun, ParkedConnection
from proxy.exchange.server import ServerConnection
from proxy.message.failure import Failure
from proxy.message.head import RequestHead, ResponseHead
from tests.proxy.exchange.fake_ports import GONE, Upstream
from tests.tunnel.stream_pairs import handshake, tcp_pair
from tunnel.net.readiness import Readiness
from tunnel.net.tls import TLSStream
from tunnel.net.waker import Waker

NOT_WHOLE = b"GET /one HTTP/1.1\r\nHost: a\r\n"
GET = NOT_WHOLE + b"\r\n"
OTHER = b"GET /two HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /one HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\n"
CHUNKED = b"POST /one HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"GET /one HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
# Of the socket's send buffer, so that a client that does not read is noticed soon.
BUFFER_BYTES = 64 * 1024


def ok(body: bytes) -> ResponseHead:
    return ResponseHead.of(200, b"OK", ((b"content-length", b"%d" % len(body)),))


@attrs.define(eq=False)
class Asked:
    """A request that was begun, and its end (Begun)."""

    connection: ServerConnection
    head: RequestHead
    on_start: Callable[[Asked], None]
    upstream: Upstream = attrs.Factory(lambda: Upstream(drains_at_once=True))
    exchange: Exchange | None = None
    failure: Failure | None = None
    ends: list[str] = attrs.Factory(list)
    """How it has ended: exactly one of "complete", "given up" and "carried on"."""
    peer: str = "relay"

    @property
    def given_up(self) -> bool:
        return "given up" in self.ends

    @property
    def complete(self) -> bool:
        return "complete" in self.ends

    def start(self) -> None:
        self.on_start(self)

    def forward(self) -> None:
        """Begin the exchange with the upstream, as the hub does once a write's intent is recorded."""
        connection, fields = self.connection, self.head.fields
        port = self.parked.port
        upgrade = fields.upgrade is not None
        port.begin()
        self.exchange = Exchange(
            port,
            self.upstream,
            self._done,
            bodiless=fields.body_length == 0 and not upgrade,
            upgrade=upgrade,
        )
        if connection.http.ended:
            port.attend()
        self.exchange.start()

    def _done(self, failure: Failure | None) -> None:
        if failure is None:
            self.ends.append("complete")
            self.parked.complete()
        else:
            self.failure = failure
            self.parked.hand_over()

    async def carry_on(self) -> None:
        """Answer the client, if it has no part of an answer yet."""
        self.ends.append("carried on")
        waker = Waker("one task waits for the cut")
        self.connection.on_port_cut = waker.unpark
        while self.parked.port.cutting:
            await waker.park()
        if self.exchange is None or not self.exchange.status:
            await self.connection.answer(ResponseHead.of(502), b"failed")

    def give_up(self) -> None:
        if self.exchange is not None:
            self.exchange.end(GONE)
        self.ends.append("given up")

    @property
    def parked(self) -> ParkedConnection:
        parked = self.connection.parked
        assert parked is not None
        return parked

    def answer(self, data: bytes = b"yes") -> None:
        self.upstream.say(data, True, 200)


@attrs.define(eq=False)
class Bench:
    client: TLSStream
    server: TLSStream
    connection: ServerConnection
    readiness: Readiness
    passes: NextPass
    nursery: trio.Nursery
    willing: bool = True
    fault: Exception | None = None
    on_start: Callable[[Asked], None] = Asked.forward
    begun: list[Asked] = attrs.Factory(list)
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    """Around the task, where only that is to be cancelled."""
    _news: trio.Event = attrs.Factory(trio.Event)
    _returned: list[object] = attrs.Factory(list)
    """What the task got from `next_request`, and no test has looked at."""

    def begin(self, connection: ServerConnection, head: RequestHead) -> Begun | None:
        assert connection is self.connection
        if self.fault is not None:
            raise self.fault
        if not self.willing:
            return None
        self.begun.append(Asked(connection, head, self.on_start))
        self._news.set()
        return self.begun[-1]

    async def wait(self) -> None:
        """The task of the connection, for one request."""
        try:
            with trio.CancelScope() as self.scope:
                self._returned.append(await self.connection.next_request())
        except Exception as exc:
            self._returned.append(exc)
        self._news.set()

    def park(self) -> None:
        self.nursery.start_soon(self.wait)

    @property
    def parked(self) -> bool:
        return not self._returned

    @property
    def watched(self) -> bool:
        """Whether its socket is watched."""
        return bool(self.readiness._watches)

    async def ask(self, data: bytes = GET) -> Asked:
        """Send a request, and see it begun."""
        begun = len(self.begun)
        await self.client.send_all(data)
        with trio.fail_after(2):
            while len(self.begun) == begun:
                await self._hear()
        return self.begun[-1]

    async def heard(self, size: int) -> bytes:
        data = b""
        with trio.fail_after(2):
            while len(data) < size:
                data += await self.client.receive_some()
        return data

    async def heard_answer(self, end: bytes = LAST_CHUNK) -> bytes:
        data = b""
        with trio.fail_after(2):
            while not data.endswith(end):
                data += await self.client.receive_some()
        return data

    async def came_back(self) -> object:
        """What the task got from `next_request`."""
        with trio.fail_after(2):
            while not self._returned:
                await self._hear()
        return self._returned.pop()

    async def _hear(self) -> None:
        await self._news.wait()
        self._news = trio.Event()


@asynccontextmanager
async def parking(deadlines: Deadlines | None = None) -> AsyncIterator[Bench]:
    """A connection whose first request was answered by its task, and that waits for the second one."""
    near, far = await tcp_pair()
    far.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    async with trio.open_nursery() as nursery:
        client, server = await handshake((near, far))
        readiness, passes = Readiness(), NextPass()
        nursery.start_soon(readiness.run)
        nursery.start_soon(passes.run)
        connection = ServerConnection(server, deadlines, readiness=readiness, passes=passes)
        bench = Bench(client, server, connection, readiness, passes, nursery)
        await client.send_all(b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await connection.next_request() is not None
        await connection.answer(ok(b"1"), b"1")
        await bench.heard(1)
        connection.peer = "agent"
        connection.serve_parked(server, bench.begin)
        bench.park()
        await wait_all_tasks_blocked()
        try:
            yield bench
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await connection.cut()
                await trio.aclose_forcefully(client)
                await wait_all_tasks_blocked()
            assert not bench.watched
            assert all(len(asked.ends) <= 1 for asked in bench.begun)
