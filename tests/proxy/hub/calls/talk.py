"""A client of a hub, and the relay's end of its call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import attrs
import trio

from tests.proxy.hub.calls.bench import Bench, Served, relay_of
from tests.tunnel.trio_stream import TrioStream, accept
from tunnel.net.connect import TLSStream
from tunnel.stream import StreamReset

CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-accept: x\r\n\r\n"
)


def exec_request(bench: Bench) -> bytes:
    """An exec over WebSocket."""
    line = "GET /clusters/prod/api/v1/namespaces/dev/pods/p/exec?command=sh HTTP/1.1"
    plain = bench.request(line, "Upgrade: websocket", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13")
    return plain.replace(b"Connection: close", b"Connection: Upgrade")


@attrs.define(eq=False)
class Talk:
    """A client of a connection that is served until it ends."""

    served: Served
    received: bytearray = attrs.Factory(bytearray)
    """What `read` has received."""
    ended: trio.Event = attrs.Factory(trio.Event)
    """The hub has ended the connection, or it was closed."""
    _more: trio.Event = attrs.Factory(trio.Event)
    relay: TrioStream = attrs.field(init=False)
    """The relay's end of the call, in `talking`."""

    @property
    def client(self) -> TLSStream:
        return self.served.client

    @property
    def status(self) -> int:
        return int(self.received.split(b" ", 2)[1])

    async def read(self) -> None:
        """Receive until the end."""
        with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
            while data := await self.client.receive_some():
                self.received += data
                self._more.set()
                self._more = trio.Event()
        self.ended.set()

    async def has(self, data: bytes) -> None:
        """Wait until `read` has received this. Only an answer that has begun is cut when its call ends."""
        with trio.fail_after(30):
            while data not in self.received:
                await self._more.wait()

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
        """Wait until the hub has reset the relay's stream."""
        reset = trio.Event()
        self.relay.raw.on_reset(reset.set)
        with trio.fail_after(5):
            await reset.wait()


async def talk(bench: Bench, nursery: trio.Nursery, data: bytes) -> Talk:
    """Send a request on a connection of its own, which is served and read in the background."""

    async def serve(task_status: trio.TaskStatus[Talk]) -> None:
        async with bench.served() as served:
            made = Talk(served)
            await served.client.send_all(data)
            task_status.started(made)
            await made.read()
            await served.over.wait()

    made: Talk = await nursery.start(serve)
    return made


@asynccontextmanager
async def talking(bench: Bench, request: bytes) -> AsyncIterator[Talk]:
    """Send a request; the block has its client and its relay, and the connection ends with it."""
    async with relay_of(bench) as relay, bench.served() as served:
        made = Talk(served)
        await served.client.send_all(request)
        made.relay = await accept(relay)
        yield made
        with trio.fail_after(5):
            await served.over.wait()
        made.relay.close_nowait()


async def expect_reset(stream: TrioStream) -> StreamReset:
    """Receive until the stream is reset."""
    try:
        while True:
            await stream.receive_some()
    except StreamReset as reset:
        return reset
