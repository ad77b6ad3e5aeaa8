"""Clients for tests, by tasks: an exchange over a stream of the tunnel or over HTTPS, and raw bytes."""

from __future__ import annotations

from collections.abc import Callable

import trio

from proxy.exchange.client import ClientConnection
from proxy.exchange.http_state import DONE
from proxy.message.failure import Failure, OutboundBroken, StreamCode
from proxy.message.head import ResponseHead
from tests.tunnel.trio_stream import TrioStream
from tunnel import StreamReset
from tunnel.net.tls import TLSStream


class RawBytes:
    """A connection after a 101: the bytes that came with the 101, and then the stream's own."""

    def __init__(self, stream: TLSStream | TrioStream, first: bytes = b"") -> None:
        self._stream = stream
        self._first = first

    async def receive_some(self) -> bytes:
        """Return bytes as soon as any arrive; b"" at a clean end."""
        first, self._first = self._first, b""
        return first or bytes(await self._stream.receive_some())

    async def send_all(self, data: bytes) -> None:
        """Send bytes."""
        await self._stream.send_all(data)

    async def send_eof(self) -> None:
        """End our direction."""
        if isinstance(self._stream, TrioStream):
            await self._stream.send_eof()
        else:
            await self._stream.send_close_notify()


class HTTPClient(ClientConnection):
    """A connection that also sends bodies, and raw bytes after a 101."""

    async def send_body(self, data: bytes) -> None:
        """Send bytes of the request's body."""
        await self._write(self.http.send_body(data))

    async def end_body(self) -> None:
        """Send the end of the request's body."""
        if self.http.outgoing is not DONE:
            await self._write(self.http.send_body(b"", end=True))

    def upgraded(self) -> RawBytes:
        """Return the raw stream after a 101."""
        assert isinstance(self.stream, TLSStream)
        return RawBytes(self.stream, self.http.take_rest())


class TunnelClient:
    """The hub's end of a stream, opened with the request's head."""

    def __init__(self, stream: TrioStream) -> None:
        self._stream = stream

    async def send_body(self, data: bytes) -> None:
        """Send bytes of the request's body. Raises OutboundBroken."""
        try:
            await self._stream.send_all(data)
        except StreamReset as reset:
            raise _broken(reset) from reset

    async def end_body(self) -> None:
        """Send the end of the request's body. Raises OutboundBroken."""
        try:
            await self._stream.send_eof()
        except StreamReset as reset:
            raise _broken(reset) from reset

    async def receive_head(self) -> ResponseHead:
        """Return the answer's head. Raises OutboundBroken."""
        try:
            return ResponseHead.decode(await self._stream.receive_head())
        except StreamReset as reset:
            raise _broken(reset) from reset

    async def receive_body(self) -> bytes:
        """Return body bytes; b"" at the clean end. Raises OutboundBroken."""
        try:
            return await self._stream.receive_some()
        except StreamReset as reset:
            raise _broken(reset) from reset

    def upgraded(self) -> RawBytes:
        """Return the raw stream after a 101."""
        return RawBytes(self._stream)

    def leave(self) -> None:
        """RESET the stream, as the hub does once its client is gone."""
        self._stream.reset(StreamCode.CANCEL)

    async def aclose(self) -> None:
        """Leave the stream; what has not ended in both directions gets a RESET."""
        await self._stream.aclose()


def _broken(reset: StreamReset) -> OutboundBroken:
    return OutboundBroken(Failure(reset.code, reset.processed, reset.reason))


def read_arrived(client: TLSStream, take: Callable[[bytes], None]) -> str:
    """Take the pieces that have arrived; return how the connection ended: "clean", "cut" or not ("")."""
    while True:
        try:
            data = client.receive_nowait()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return "cut"
        if data is None:
            return ""
        if not data:
            return "clean"
        take(data)
