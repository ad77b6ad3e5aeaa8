"""Stream pairs for both kinds of legs: plain ones that can half-close, and ones that behave as TLS does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from trio.testing import memory_stream_pair

from proxy.exchange.deadlines import Deadlines
from proxy.exchange.server import ServerConnection
from proxy.message.head import ResponseHead


class TLSLeg(trio.abc.Stream):
    """One end of a pair without half-close, whose end is authenticated.

    A clean close reads as b"" at the peer, a forced one as BrokenResourceError.
    """

    def __init__(self, inner: trio.abc.Stream) -> None:
        self.inner = inner
        self.peer: TLSLeg | None = None
        self.said_goodbye = False
        self.sends: list[bytes] = []
        self.stalled = False
        """The peer does not read: sends wait for ever."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.stalled:
            await trio.sleep_forever()
        await self.inner.send_all(data)
        self.sends.append(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = await self.inner.receive_some(max_bytes)
        if not data and self.peer is not None and not self.peer.said_goodbye:
            raise trio.BrokenResourceError("the connection ended without a close_notify")
        return bytes(data)

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
