"""A client on a socket and a relay, with one call of a hub between them that ports carry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

from proxy.exchange.deadlines import Deadlines
from proxy.exchange.next_pass import NextPass
from proxy.exchange.server import ServerConnection
from tests.proxy.hub.calls.test_calls import Bench, relay_of
from tests.tunnel.net.test_tcp import tcp_pair
from tests.tunnel.net.test_tls import handshake
from tunnel import Stream
from tunnel.net.connect import TLSStream
from tunnel.net.readiness import Readiness


@attrs.define
class Talk:
    """A client and the relay's end of its call."""

    client: TLSStream
    server: TLSStream
    """The hub's end of the client's connection."""
    relay: Stream

    async def say(self, data: bytes, sent: bytes | None = None) -> None:
        """Have bytes of the relay arrive at the client; `sent` is their form without framing."""
        await self.relay.send_all(data if sent is None else sent)
        received = b""
        while not received.endswith(data):
            received += await self.client.receive_some()

    async def ask(self, data: bytes, heard: bytes | None = None) -> None:
        """Have bytes of the client arrive at the relay; `heard` is their form without framing."""
        await self.client.send_all(data)
        received = b""
        while received != (data if heard is None else heard):
            received += await self.relay.receive_some()

    async def wait_reset(self) -> None:
        reset = trio.Event()
        self.relay.on_reset(reset.set)
        with trio.fail_after(5):
            await reset.wait()


@asynccontextmanager
async def talking(bench: Bench, request: bytes) -> AsyncIterator[Talk]:
    client, server = await handshake(await tcp_pair())
    readiness, passes, deadlines = Readiness(), NextPass(), Deadlines()
    connection = ServerConnection(server, deadlines, server, readiness, passes)
    done = trio.Event()

    async def serve() -> None:
        head = await connection.next_request()
        assert head is not None
        await bench.calls.handle(connection, head, "192.0.2.7", authenticated=lambda _: None)
        await connection.aclose()
        done.set()

    async with relay_of(bench) as relay, trio.open_nursery() as nursery:
        for run in (readiness.run, passes.run, deadlines.run, serve):
            nursery.start_soon(run)
        await client.send_all(request)
        stream = await relay.accept()
        yield Talk(client, server, stream)
        with trio.fail_after(5):
            await done.wait()
        await trio.aclose_forcefully(client)
        stream.close_nowait()
        nursery.cancel_scope.cancel()
