"""Common to both roles of HTTP/1.1: the memory of a connection, and the raw stream after a 101."""

from __future__ import annotations

from collections.abc import Sized

import trio

from proxy.message.body import BODY_BYTES_MAX
from tunnel.net.fairness import SMALL_PIECE_BYTES, fairness
from tunnel.net.tls import TLSStream
from tunnel.stream import Stream

# The memory of an idle TLS connection. OpenSSL takes 28 KiB of it as a server and 35 as a client. The rest
# are the Python objects.
CONNECTION_BYTES = 40 * 1024
# The largest read of a client's connection while others wait: 0.8 ms, if each TLS record has one byte. A
# longer message is a body, and has a task.
CLIENT_BYTES_AT_ONCE = 16 * 1024


def held_bytes(tls: TLSStream, received: Sized, *, framed: bool) -> int:
    """The memory of a connection: itself, the bytes `received` and not taken, and the unsent bytes.

    A body `framed` in chunks is counted twice while it is unsent: the unframed copy exists as well.
    """
    unsent = tls.held_up_bytes
    unframed = min(unsent, BODY_BYTES_MAX) if framed else 0
    return CONNECTION_BYTES + len(received) + unsent + unframed


class RawStream:
    """A connection after a 101: first the bytes read beyond the head, then the stream's own.

    It does not own the stream. The code that created it may close the stream while tasks wait here. Each
    method then raises trio.BrokenResourceError, as when the peer is lost.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        first: bytes = b"",
        *,
        ended: bool = False,
        tls: TLSStream | None = None,
    ) -> None:
        """`tls` sends the end, if the stream is TLS or a wrapper around it."""
        self._stream = stream
        self._tls = tls
        self._first = first
        self._ended = ended
        # The tunnel has already admitted tasks that its frames wake.
        self._turns = None if isinstance(stream, Stream) else fairness()

    @property
    def can_half_close(self) -> bool:
        """Whether the transport has half-close: TCP and the tunnel do, TLS does not."""
        return isinstance(self._stream, trio.abc.HalfCloseableStream)

    async def receive_some(self) -> bytes:
        """Return bytes as soon as any arrive; b"" at a clean end."""
        if self._first:
            await trio.lowlevel.checkpoint()
            first, self._first = self._first, b""
            return first
        if self._ended:
            await trio.lowlevel.checkpoint()
            return b""
        try:
            data = await self._stream.receive_some()
        except trio.ClosedResourceError as exc:
            raise trio.BrokenResourceError("the connection was cut from here") from exc
        self._ended = not data
        if self._turns is not None and len(data) <= SMALL_PIECE_BYTES and not self._turns.admits():
            self._first = bytes(data)
            await self._turns.wait()
            self._first = b""
        return bytes(data)

    async def send_all(self, data: bytes) -> None:
        """Send all of it. A cancelled call has sent an unknown part."""
        try:
            await self._stream.send_all(data)
        except trio.ClosedResourceError as exc:
            raise trio.BrokenResourceError("the connection was cut from here") from exc

    async def send_eof(self) -> None:
        """End our direction. See ByteStream."""
        try:
            if isinstance(self._stream, trio.abc.HalfCloseableStream):
                await self._stream.send_eof()
            else:
                assert self._tls is not None, "a stream without half-close is TLS"
                await self._tls.send_close_notify()
        except trio.ClosedResourceError as exc:
            raise trio.BrokenResourceError("the connection was cut from here") from exc
