"""Stream pairs for both kinds of legs: plain ones that can half-close, and ones that behave as TLS does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import trio
from trio.testing import MemoryReceiveStream, memory_stream_pair

from proxy.exchange.deadlines import Deadlines
from proxy.exchange.server import ServerConnection
from proxy.message.head import ResponseHead
from tunnel.net.tls import TLSStream


class TLSLeg(trio.abc.Stream):
    """One end of a pair without half-close, whose end is authenticated.

    A clean close reads as b"" at the peer, a forced one as BrokenResourceError.
    """

    def __init__(self, inner: trio.abc.Stream) -> None:
        self.inner = inner
        self.peer: TLSLeg | None = None
        self.said_goodbye = False
        self.sends: list[bytes] = []
        self.bytes_received = 0
        self.stalled = False
        """The peer does not read: sends wait for ever."""
        self.room_bytes = 1 << 30
        """So many bytes are taken without a wait."""
        self.broken = False
        """The peer is gone; only a send reports it."""
        self.sends_at_once = 0
        self._held = b""

    @property
    def as_tls(self) -> TLSStream:
        """The leg as the type that `send_nowait` callers take."""
        return cast(TLSStream, self)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.broken:
            raise trio.BrokenResourceError
        if self.stalled:
            await trio.sleep_forever()
        data, self._held = self._held + bytes(data), b""
        await self.inner.send_all(data)
        self.sends.append(data)

    def send_nowait(self, data: bytes) -> bool:
        """See TLSStream."""
        assert not self._held, "nothing is sent behind what is held, but by send_all"
        if self.broken:
            raise trio.BrokenResourceError
        taken = 0 if self.stalled else self.room_bytes
        self._held = data[taken:]
        if data[:taken]:
            assert self.peer is not None
            far = self.peer.inner
            assert isinstance(far, trio.StapledStream)
            assert isinstance(far.receive_stream, MemoryReceiveStream)
            try:
                far.receive_stream.put_data(data[:taken])
            except trio.ClosedResourceError as exc:
                raise trio.BrokenResourceError from exc
            self.sends.append(data[:taken])
        self.sends_at_once += 1
        return not self._held

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = await self.inner.receive_some(max_bytes)
        if not data and self.peer is not None and not self.peer.said_goodbye:
            raise trio.BrokenResourceError("the connection ended without a close_notify")
        self.bytes_received += len(data)
        return bytes(data)

    async def send_close_notify(self) -> None:
        """See TLSStream."""
        self.said_goodbye = True
        assert isinstance(self.inner, trio.StapledStream)
        await self.inner.send_eof()

    async def aclose(self) -> None:
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            self.said_goodbye = True
        finally:
            await self.inner.aclose()


def tls_pair() -> tuple[TLSLeg, TLSLeg]:
    """Return two ends of one TLS-like connection."""
    left, right = (TLSLeg(inner) for inner in memory_stream_pair())
    left.peer, right.peer = right, left
    return left, right


async def read_all(stream: trio.abc.ReceiveStream) -> tuple[bytes, bool]:
    """Read until the end; returns the bytes and whether the end was clean."""
    data = b""
    try:
        while part := await stream.receive_some():
            data += part
    except trio.BrokenResourceError:
        return data, False
    return data, True


async def read_until(stream: trio.abc.ReceiveStream, mark: bytes) -> bytes:
    """Read until the bytes read end with `mark`."""
    data = b""
    while not data.endswith(mark):
        part = await stream.receive_some()
        assert part, f"the stream ended after {data!r}"
        data += part
    return data


async def answer_ok(connection: ServerConnection, body: bytes = b"") -> None:
    """Send a plain 200."""
    await connection.answer(ResponseHead.of(200, b"OK", ((b"content-length", b"%d" % len(body)),)), body)


@asynccontextmanager
async def swept() -> AsyncIterator[Deadlines]:
    deadlines = Deadlines()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        yield deadlines
        nursery.cancel_scope.cancel()
