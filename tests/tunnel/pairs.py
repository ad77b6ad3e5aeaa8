"""Two sessions joined in memory: what most tests of the shell begin with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import trio

from tests.tunnel.protocol.joined import frames_of
from tests.tunnel.trio_stream import TrioStream, accept
from tunnel import (
    Memory,
    Role,
    Session,
    Settings,
    Transport,
    TransportClosed,
    memory_transport_pair,
    open_session,
)


@attrs.frozen
class Pair:
    listener: Session
    dialer: Session
    wire: Unplugged
    """The listener's transport."""
    cut: Callable[[], None]
    """Ends both transports at once, as a lost network does."""
    context: int
    """A context that the listener has announced."""

    def open_stream(self, head: bytes = b"", *, eof: bool = False) -> TrioStream:
        return TrioStream(self.listener.open_stream(head, context=self.context, eof=eof))

    async def streams(self) -> tuple[TrioStream, TrioStream]:
        """A stream's two ends: the opener's and the acceptor's."""
        opened = self.open_stream()
        return opened, await accept(self.dialer)


@asynccontextmanager
async def open_pair(
    settings: Settings | None = None, *, memory: Memory | None = None, messages_max: int = 16
) -> AsyncIterator[Pair]:
    """A listener (as the hub is) and a dialer (as the relay is), greeted."""
    here, there = memory_transport_pair(messages_max=messages_max)
    wire = Unplugged(here)
    done = trio.Event()
    tell, told = trio.open_memory_channel[Session](1)

    async def dial() -> None:
        async with open_session(there, Role.DIALER, settings=settings, memory=memory) as session:
            await tell.send(session)
            await done.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial)
        async with open_session(wire, Role.LISTENER, settings=settings, memory=memory) as listener:
            dialer = await told.receive()
            yield Pair(listener, dialer, wire, here.cut, listener.add_context(1, b"token"))
        done.set()


class Unplugged(Transport):
    """Carries what another transport carries, until it is unplugged: then nothing moves, and neither side is
    told."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.peer_name = inner.peer_name
        self.sent: list[bytes] = []
        self.unplugged = False
        self.stuck = False
        """It takes nothing more."""
        self.closed_with: tuple[int, str] | None = None
        self._broken = False
        self._receiving = trio.CancelScope()

    async def send(self, message: bytes) -> None:
        self.sent.append(message)
        if self.stuck:
            await trio.sleep_forever()
        elif self.unplugged:
            await trio.lowlevel.checkpoint()
        else:
            await self.inner.send(message)

    def send_nowait(self, message: bytes) -> bool:
        if self.stuck or self.unplugged or not self.inner.send_nowait(message):
            # `finish` sends it.
            return super().send_nowait(message)
        self.sent.append(message)
        return True

    async def receive(self) -> bytes:
        while True:
            ended = None
            message = b""
            self._receiving = trio.CancelScope()
            try:
                with self._receiving:
                    message = await self.inner.receive()
            except TransportClosed as exc:
                ended = exc
            if self._broken:
                raise TransportClosed(None, "the connection was reset")
            if self.unplugged and ended is not None:
                await trio.sleep_forever()
            elif ended is not None:
                raise ended
            elif not self.unplugged:
                self.last_received_s = self.inner.last_received_s
                return message

    def break_here(self) -> None:
        """Fail at this end; the other one does not learn of it."""
        self.unplugged = self._broken = True
        self._receiving.cancel()

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        self.closed_with = self.closed_with or (code, reason)
        if self.unplugged:
            await trio.lowlevel.checkpoint()
        else:
            await self.inner.aclose(code, reason)


async def echo(stream: TrioStream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)
    await stream.send_eof()


async def read_all(stream: TrioStream) -> bytes:
    received = bytearray()
    while data := await stream.receive_some():
        received += data
    return bytes(received)


async def receive_frames_to_the_end(
    transport: Transport,
) -> tuple[list[tuple[int, int, int, bytes]], TransportClosed]:
    """All frames up to the end of the transport, and that end."""
    received = []
    while True:
        try:
            received += frames_of(await transport.receive())
        except TransportClosed as exc:
            return received, exc
