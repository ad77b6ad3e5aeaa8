"""What both roles of HTTP/1.1 share: a body out of h11, and the raw stream that is left after a 101."""

from __future__ import annotations

import h11
import trio

from proxy.head import HEAD_BYTES_MAX

# What one call hands on at most. Bodies come in pieces of this size anyway (a TLS wakeup, a tunnel frame),
# and buffers of 128 KiB and more cost page faults.
BODY_BYTES_MAX = 64 * 1024
# h11's own bound for anything unfinished: a whole head, a chunk's line, the trailers.
H11_BYTES_MAX = HEAD_BYTES_MAX


class BodyEnd:
    """What is known of the end of a body that is being read."""

    __slots__ = ("reached", "trailers")

    def __init__(self) -> None:
        self.reached = False
        self.trailers = False


def pull_body(connection: h11.Connection, end: BodyEnd) -> bytes | None:
    """Return the body bytes that h11 has, joined; b"" at the end, None when more must be received.

    Everything that one receive brought goes on as one piece: a log of short lines comes in many small chunks,
    and what they cost is the number of sends, not of bytes. Raises h11.RemoteProtocolError.
    """
    if end.reached:
        return b""
    parts: list[bytes] = []
    size = 0
    while size < BODY_BYTES_MAX:
        event = connection.next_event()
        if isinstance(event, h11.Data):
            parts.append(event.data)
            size += len(event.data)
        elif isinstance(event, h11.EndOfMessage):
            end.reached = True
            # Trailers go no further (they could carry any header past the rules for heads).
            end.trailers = bool(event.headers)
            break
        else:
            break
    if parts:
        return b"".join(parts)
    return b"" if end.reached else None


class RawStream:
    """A connection after a 101: the bytes that were read too far come first, then the stream's own.

    It does not own the stream; whoever handed it out closes that.
    """

    def __init__(self, stream: trio.abc.Stream, first: bytes = b"", *, ended: bool = False) -> None:
        self._stream = stream
        self._first = first
        self._ended = ended

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
        data = await self._stream.receive_some()
        self._ended = not data
        return bytes(data)

    async def send_all(self, data: bytes) -> None:
        """Send all of it; cancelled, an unknown part."""
        await self._stream.send_all(data)

    async def send_eof(self) -> None:
        """End our direction, where `can_half_close`."""
        assert isinstance(self._stream, trio.abc.HalfCloseableStream), "asked of a stream without half-close"
        await self._stream.send_eof()
