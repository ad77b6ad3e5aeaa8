"""What both roles of HTTP/1.1 share: what a connection holds of memory, and the raw stream after a 101."""

from __future__ import annotations

from collections.abc import Sized

import trio

from proxy.message.body import BODY_BYTES_MAX
from tunnel.net.fairness import SMALL_PIECE_BYTES, fairness
from tunnel.net.tls import TLSStream
from tunnel.stream import Stream

# What a connection with TLS takes of memory though nothing is under way on it. OpenSSL has 28 KiB of that as
# a server and 35 as a client; the rest is what serves it, in Python.
CONNECTION_BYTES = 40 * 1024
# What is taken in at once of a client's connection where others wait for it: 0.8 ms, if each TLS record has a
# byte. What is longer is a body, and has a task.
CLIENT_BYTES_AT_ONCE = 16 * 1024


def held_bytes(tls: TLSStream, received: Sized, *, framed: bool) -> int:
    """What a connection takes of memory: itself, what was `received` and not taken, and what is not sent.

    What is `framed` in chunks is there as it was before that as well, as long as it is not sent.
    """
    unsent = tls.held_up_bytes
    unframed = min(unsent, BODY_BYTES_MAX) if framed else 0
    return CONNECTION_BYTES + len(received) + unsent + unframed


class RawStream:
    """A connection after a 101: the bytes that were read too far come first, then the stream's own.

    It does not own the stream; whoever handed it out closes that, under those who wait here as well: then
    each method raises trio.BrokenResourceError, as when the peer is lost.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        first: bytes = b"",
        *,
        ended: bool = False,
        tls: TLSStream | None = None,
    ) -> None:
        """`tls` is what says the end, where the stream is TLS or a wrapper of ours around that."""
        self._stream = stream
        self._tls = tls
        self._first = first
        self._ended = ended
        # Those whom a tunnel's frames wake have been admitted by it.
        self._turns = None if isinstance(stream, Stream) else fairness()

    @property
    def can_half_close(self) -> bool:
        """Whether the transport knows half-close: TCP and the tunnel do, TLS does not."""
        return isinstance(self._stream, trio.abc.HalfCloseableStream)

    async def receive_some(self) -> bytes:
        """Return bytes as soon as there are any; b"" at a clean end."""
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
        """Send all of it; cancelled, an unknown part."""
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
                assert self._tls is not None, "what has no half-close is TLS"
                await self._tls.send_close_notify()
        except trio.ClosedResourceError as exc:
            raise trio.BrokenResourceError("the connection was cut from here") from exc
