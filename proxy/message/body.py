"""Bodies in chunks, out of the bytes behind a head.

A body has one of three framings (RFC 9112 section 6.3). Two of them, by a length and up to the connection's
end, need no reader. Which one a message has is its connection's decision.

Chunks are read strictly: a size of one to eight hexadecimal digits and CRLF, no extensions, no trailers,
which is what everybody writes. h11 reads whatever else there is, from the first chunk of another form to the
body's end, and refuses what it refuses; so the strict form needs no opinion on it, but on how much of it may
come. What both read, they read alike (tests/proxy/message/test_body.py).
"""

from __future__ import annotations

import re

import h11

# What one call hands on at most, and what a stream of the tunnel takes at once. Larger pieces are fewer, and
# what they cost is a fifth of a large download; but while one is worked on, nobody else has his turn.
BODY_BYTES_MAX = 128 * 1024
# h11's own default for anything unfinished: a chunk's line, the trailers. 1 MiB of trailers, perhaps of a
# stranger, takes it half a second.
H11_BYTES_MAX = 16 * 1024
# It asks how much is unfinished only when it has read all that it was given.
_H11_PIECE_BYTES = 4096
# Each chunk takes it 4 µs, and 128 KiB can hold 16,000: so beyond the first H11_BYTES_MAX of framing there
# has to be this much data for each byte of it.
_DATA_PER_FRAMING = 4

# What is taken apart of a request's body in one go: each takes 0.6 µs, and 128 KiB can hold 22,000, which is
# as long as everybody else would wait.
CHUNKS_AT_ONCE_MAX = 512

_CRLF = b"\r\n"
# A size, and with it the line that ends the data of the chunk before.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8}+)\r\n")
_NEXT = re.compile(rb"\r\n([0-9A-Fa-f]{1,8}+)\r\n")
_NEXT_BEGUN = re.compile(rb"\r?+|\r\n(?:[0-9A-Fa-f]{1,8}+\r?+)?+")


class BodyError(Exception):
    """The framing of a body is broken."""


class ChunkedBody:
    """A body in chunks."""

    __slots__ = ("_at_once", "_excess", "_h11", "_left", "_unfinished", "reached", "rest", "trailers")

    def __init__(self, at_once: int | None = None) -> None:
        """`at_once` bounds the chunks that one call takes apart."""
        self._at_once = at_once
        # As if a chunk's data had just ended: so each size stands between two line ends, the first one too.
        self._unfinished = _CRLF
        self._left = 0
        self._h11: h11.Connection | None = None
        # The data that is missing beside what h11 has read of framing.
        self._excess = 0
        self.reached = False
        self.rest = b""
        self.trailers = False
        """Some followed the last chunk. They go no further: they could carry any header past the rules."""

    def feed(self, data: bytes) -> bytes:
        """Return the body's bytes among received ones; at the end sets `reached`, and `rest` behind it.

        What one call brings is returned as one piece: a log of short lines comes in many small chunks, and
        what they cost is the number of sends, not of bytes. Where the chunks are more than it takes at once,
        `rest` is to be fed again. Raises BodyError, and again from then on.
        """
        self.rest = b""
        if self._h11 is not None:
            return self._feed_h11(data)
        size, left = len(data), self._left
        if size <= left:
            # Within one chunk, where most bytes of a large body are.
            self._left = left - size
            return data
        if self._unfinished:
            if (
                self._unfinished == _CRLF
                and data.endswith(_CRLF)
                and (line := _SIZE.match(data)) is not None
                and size - 2 == (at := line.end()) + int(line[1], 16) > at
            ):
                # A chunk and no more, as an event of a watch and a line of a log come.
                return data[at:-2]
            data = self._unfinished + data
            size = len(data)
            self._unfinished = b""
        # Views, so that the one copy is the one that joins them.
        view = memoryview(data)
        parts: list[bytes | memoryview] = []
        at = 0
        match_next = _NEXT.match
        lines = self._at_once
        while True:
            end = at + left
            if end > size:
                parts.append(view[at:])
                self._left = end - size
                break
            if left:
                parts.append(view[at:end])
            line = match_next(data, end)
            if line is None:
                self._left = 0
                parts.append(self._without_size(data[end:]))
                break
            left = int(line[1], 16)
            at = line.end()
            if left == 0:
                self._left = 0
                parts.append(self._behind_last(data[end:], at - end))
                break
            if lines is not None:
                lines -= 1
                if not lines:
                    self._left = left
                    self.rest = data[at:]
                    break
        return b"".join(parts)

    def _without_size(self, data: bytes) -> bytes:
        """Go on where no size of the strict form stands, or not yet."""
        if _NEXT_BEGUN.fullmatch(data) is not None:
            self._unfinished = data
            return b""
        return self._turn_to_h11(data)

    def _behind_last(self, data: bytes, line: int) -> bytes:
        """Go on behind the last size, whose line of that length `data` begins with."""
        end = data[line : line + 2]
        if end == _CRLF:
            self.reached = True
            self.rest = data[line + 2 :]
        elif _CRLF.startswith(end):
            self._unfinished = data
        else:
            return self._turn_to_h11(data)
        return b""

    def _turn_to_h11(self, data: bytes) -> bytes:
        """Leave the rest of the body to h11; `data` begins with the line end behind a chunk."""
        if not data.startswith(_CRLF):
            raise self._broken()
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=H11_BYTES_MAX)
        self._h11.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        self._h11.next_event()
        return self._feed_h11(data[2:])

    def _feed_h11(self, data: bytes) -> bytes:
        assert self._h11 is not None, "asked of a body that h11 reads"
        parts: list[bytes] = []
        for at in range(0, len(data), _H11_PIECE_BYTES):
            if self._excess > H11_BYTES_MAX * _DATA_PER_FRAMING:
                raise BodyError(f"there is too little data beside {H11_BYTES_MAX} bytes of framing")
            piece = data[at : at + _H11_PIECE_BYTES]
            read = 0
            try:
                self._h11.receive_data(piece)
                while isinstance(event := self._h11.next_event(), h11.Data):
                    parts.append(bytes(event.data))
                    read += len(event.data)
            except h11.RemoteProtocolError as exc:
                raise BodyError("a chunk is malformed") from exc
            if isinstance(event, h11.EndOfMessage):
                self.reached = True
                self.rest = self._h11.trailing_data[0] + data[at + _H11_PIECE_BYTES :]
                self.trailers = bool(event.headers)
                break
            self._excess = max(0, self._excess + (len(piece) - read) * _DATA_PER_FRAMING - read)
        return b"".join(parts)

    def _broken(self) -> BodyError:
        # Nothing that is fed from here on can match.
        self._unfinished = b"!"
        return BodyError("a chunk is longer than its size says")
