"""A tunnel as one would write it first, with the packages that Hawse is made of.

    python -m benchmarks.plain hub FOLDER
    python -m benchmarks.plain relay FOLDER HUB_PORT UPSTREAM_HOST UPSTREAM_PORT UPSTREAM_CA

FOLDER has server.pem, server.key and ca.pem. The relay dials the hub with trio-websocket over TLS. The hub
parses the requests of its clients with h11 and opens a stream in the tunnel for each. The relay runs a task
for each stream and sends the request with h11 over a pooled connection to the upstream. TLS is trio's
SSLStream on all three legs. Each frame is a WebSocket message, and each stream has a memory channel at either
end. A window for each stream and direction bounds the channels, so a stalled reader delays no other stream.

There are no tokens, no policy, no records, no upgrades and no reconnects. A request is sent whole before its
answer is read, and a client that leaves is noticed at the next write. The program imports nothing of Hawse,
so its figures change with the interpreter and the packages alone.
"""

from __future__ import annotations

import json
import math
import resource
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from enum import IntEnum
from functools import partial
from pathlib import Path
from struct import Struct
from typing import Any, Final

import h11
import trio
import trio_websocket

RECEIVE_BYTES: Final = 64 * 1024
# A body's frames of at most RECEIVE_BYTES that are sent before the other end has taken half of them.
WINDOW_FRAMES: Final = 32
# Idle connections to the upstream that the relay keeps.
IDLE_MAX: Final = 128
# The stream's number and the frame's kind.
HEADER: Final = Struct(">IB")
TLS = trio.SSLStream[trio.SocketStream]


class Kind(IntEnum):
    """The kinds of frames."""

    REQUEST = 1
    RESPONSE = 2
    DATA = 3
    END = 4
    CREDIT = 5
    RESET = 6


class StreamReset(Exception):
    """The other end has reset the stream, has sent the wrong frame, or is gone."""


FAILURES: Final = (StreamReset, h11.ProtocolError, trio.BrokenResourceError, OSError)


class Stream:
    """One exchange in the tunnel."""

    def __init__(self, tunnel: Tunnel, number: int) -> None:
        self._tunnel = tunnel
        self._number = number
        # The window of the sender bounds the channel.
        self._arrived, self._frames = trio.open_memory_channel[tuple[Kind, bytes]](math.inf)
        self._credit = trio.Semaphore(WINDOW_FRAMES)
        self._taken = 0
        self.scope = trio.CancelScope()
        """The exchange runs in it. A reset cancels it."""

    async def send_head(self, kind: Kind, head: list[object], headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Send the head of a request or an answer."""
        lines = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
        await self._tunnel.send(self._number, kind, json.dumps([head, lines]).encode())

    async def receive_head(self, kind: Kind) -> tuple[list[Any], list[tuple[bytes, bytes]]]:
        received, payload = await self._frames.receive()
        if received is not kind:
            raise StreamReset(f"{received.name} came, not {kind.name}")
        head, lines = json.loads(payload)
        return head, [(name.encode("latin-1"), value.encode("latin-1")) for name, value in lines]

    async def send_data(self, data: bytes) -> None:
        """Send a part of a body, once the window allows it."""
        await self._credit.acquire()
        await self._tunnel.send(self._number, Kind.DATA, data)

    async def send_end(self) -> None:
        await self._tunnel.send(self._number, Kind.END)

    async def receive_data(self) -> bytes:
        """Return the next part of a body; empty at its end."""
        kind, payload = await self._frames.receive()
        self._taken += 1
        if self._taken == WINDOW_FRAMES // 2:
            self._taken = 0
            await self._tunnel.send(self._number, Kind.CREDIT)
        return b"" if kind is Kind.END else payload

    def deliver(self, kind: Kind, payload: bytes) -> None:
        """Take a frame that the tunnel has received."""
        if kind is Kind.RESET:
            self.scope.cancel()
        elif kind is Kind.CREDIT:
            for _ in range(WINDOW_FRAMES // 2):
                self._credit.release()
        else:
            self._arrived.send_nowait((kind, payload))


class Tunnel:
    """A WebSocket and the streams in it."""

    def __init__(
        self,
        websocket: trio_websocket.WebSocketConnection,
        serve: Callable[[Stream], Awaitable[None]] | None = None,
    ) -> None:
        self._websocket = websocket
        self._serve = serve
        self._streams: dict[int, Stream] = {}
        self._last_number = 0

    @asynccontextmanager
    async def open_stream(self) -> AsyncIterator[Stream]:
        """Open a stream for the block; raises StreamReset where the other end resets it."""
        self._last_number += 1
        async with self._exchange(self._last_number, self._new_stream(self._last_number)) as stream:
            yield stream

    def _new_stream(self, number: int) -> Stream:
        stream = self._streams[number] = Stream(self, number)
        return stream

    @asynccontextmanager
    async def _exchange(self, number: int, stream: Stream) -> AsyncIterator[Stream]:
        failed: Exception | None = None
        try:
            with stream.scope:
                yield stream
            if stream.scope.cancelled_caught:
                raise StreamReset("the other end has reset the stream")
        except FAILURES as error:
            failed = error
        finally:
            del self._streams[number]
        if failed is not None:
            with suppress(StreamReset):
                await self.send(number, Kind.RESET)
            raise failed

    async def send(self, number: int, kind: Kind, payload: bytes = b"") -> None:
        """Send a frame as a message of its own."""
        try:
            # A cancelled send would leave half a message in the WebSocket, and break it for all streams.
            with trio.CancelScope(shield=True):
                await self._websocket.send_message(HEADER.pack(number, kind) + payload)
        except trio_websocket.ConnectionClosed:
            raise StreamReset("the tunnel is closed") from None

    async def run(self) -> None:
        """Give each frame to its stream until the WebSocket is closed. Each REQUEST starts a task."""
        async with trio.open_nursery() as nursery:
            with suppress(trio_websocket.ConnectionClosed):
                while True:
                    message = await self._websocket.get_message()
                    assert isinstance(message, bytes)
                    number, kind = HEADER.unpack_from(message)
                    if kind == Kind.REQUEST:
                        nursery.start_soon(self._handle, number, self._new_stream(number))
                    # The last frames of a stream that has ended here are dropped.
                    if (stream := self._streams.get(number)) is not None:
                        stream.deliver(Kind(kind), message[HEADER.size :])
            for stream in self._streams.values():
                stream.scope.cancel()

    async def _handle(self, number: int, stream: Stream) -> None:
        assert self._serve is not None, "a hub receives no requests from its relay"
        try:
            async with self._exchange(number, stream):
                await self._serve(stream)
        except FAILURES as error:
            report(error)


class Leg:
    """An HTTP/1.1 connection over TLS."""

    def __init__(self, stream: TLS, role: type[h11.CLIENT | h11.SERVER]) -> None:
        self.stream = stream
        self.connection = h11.Connection(role)

    async def next_event(self) -> h11.Event:
        while True:
            event = self.connection.next_event()
            if event is h11.NEED_DATA:
                if self.connection.they_are_waiting_for_100_continue:
                    await self.send(h11.InformationalResponse(status_code=100, headers=[]))
                self.connection.receive_data(bytes(await self.stream.receive_some(RECEIVE_BYTES)))
            else:
                assert isinstance(event, h11.Event), "an exchange begins when the one before is over"
                return event

    async def send(self, event: h11.Event) -> None:
        if data := self.connection.send(event):
            await self.stream.send_all(data)

    async def send_body(self, stream: Stream) -> None:
        """Send the body that the stream brings."""
        while data := await stream.receive_data():
            await self.send(h11.Data(data=data))
        await self.send(h11.EndOfMessage())

    async def receive_body(self, stream: Stream) -> None:
        """Receive a body and send it in the stream."""
        while isinstance(event := await self.next_event(), h11.Data):
            await stream.send_data(bytes(event.data))
        await stream.send_end()

    def is_reusable(self) -> bool:
        return self.connection.our_state is h11.DONE and self.connection.their_state is h11.DONE


async def serve_client(tunnel: Tunnel, client: TLS) -> None:
    """Serve the requests of a client of the hub, until it closes its connection."""
    leg = Leg(client, h11.SERVER)
    async with client:
        try:
            while isinstance(request := await leg.next_event(), h11.Request):
                async with tunnel.open_stream() as stream:
                    head: list[object] = [request.method.decode(), request.target.decode()]
                    await stream.send_head(Kind.REQUEST, head, request.headers)
                    await leg.receive_body(stream)
                    (status, reason), headers = await stream.receive_head(Kind.RESPONSE)
                    await leg.send(h11.Response(status_code=status, reason=reason, headers=headers))
                    await leg.send_body(stream)
                if not leg.is_reusable():
                    return
                leg.connection.start_next_cycle()
        except FAILURES as error:
            report(error)


class Upstream:
    """The upstream's address, and the relay's idle connections to it."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        self._dial = partial(trio.open_ssl_over_tcp_stream, host, port, ssl_context=context)
        self._idle: list[Leg] = []

    async def serve(self, stream: Stream) -> None:
        """Send a stream's request, and its answer in the stream."""
        (method, target), headers = await stream.receive_head(Kind.REQUEST)
        leg = self._idle.pop() if self._idle else Leg(await self._dial(), h11.CLIENT)
        try:
            await leg.send(h11.Request(method=method, target=target, headers=headers))
            await leg.send_body(stream)
            while isinstance(response := await leg.next_event(), h11.InformationalResponse):
                pass
            if not isinstance(response, h11.Response):
                raise StreamReset("the upstream has closed the connection")
            head: list[object] = [response.status_code, response.reason.decode("latin-1")]
            await stream.send_head(Kind.RESPONSE, head, response.headers)
            await leg.receive_body(stream)
        finally:
            if leg.is_reusable() and len(self._idle) < IDLE_MAX:
                leg.connection.start_next_cycle()
                self._idle.append(leg)
            else:
                await trio.aclose_forcefully(leg.stream)


def report(error: Exception) -> None:
    print(f"an exchange failed: {error!r}", file=sys.stderr, flush=True)


async def run_hub(folder: Path) -> None:
    """Accept one relay, print the port for it, then the port for clients, and serve them."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")

    async def serve_relay(request: trio_websocket.WebSocketRequest) -> None:
        tunnel = Tunnel(await request.accept())
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=1024)
        over_tls = [trio.SSLListener(listener, context) for listener in listeners]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, partial(serve_client, tunnel), over_tls)
            print("serving", listeners[0].socket.getsockname()[1], flush=True)
            await tunnel.run()
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        serve = partial(
            trio_websocket.serve_websocket,
            serve_relay,
            "127.0.0.1",
            0,
            context,
            receive_buffer_size=RECEIVE_BYTES,
        )
        server = await nursery.start(serve)
        print("listening", server.port, flush=True)


async def run_relay(folder: Path, hub_port: int, host: str, port: int, ca: Path) -> None:
    """Dial the hub and serve its requests until the tunnel is closed."""
    upstream = Upstream(host, port, ssl.create_default_context(cafile=ca))
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    async with trio_websocket.open_websocket(
        "127.0.0.1", hub_port, "/", use_ssl=context, receive_buffer_size=RECEIVE_BYTES
    ) as websocket:
        await Tunnel(websocket, upstream.serve).run()


def main() -> None:
    # A watch is a descriptor in either process. The usual limit is 1,024 of them.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    role, folder, *rest = sys.argv[1:]
    if role == "hub":
        trio.run(run_hub, Path(folder))
    else:
        hub_port, host, port, ca = rest
        trio.run(run_relay, Path(folder), int(hub_port), host, int(port), Path(ca))


if __name__ == "__main__":
    main()
