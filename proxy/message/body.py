"""Reads chunked bodies from received bytes.

A body has one of three framings (RFC 9112 section 6.3). Two of them, by a length and up to the connection's
end, need no reader. The connection knows which framing a message has.

Chunks are read strictly: a size of one to eight hexadecimal digits and CRLF, no extensions, no trailers. All
common implementations write this form. From the first chunk of another form on, h11 reads the rest of the
body, and its verdict counts; only the amount of framing is bounded here. Both read the strict form alike
(tests/proxy/message/test_body.py).
"""

from __future__ import annotations

import re

import h11

# The most that one call returns, and that a tunnel stream takes at once. Larger pieces would save a fifth of
# the cost of a large download. But all other connections wait while one piece is processed.
BODY_BYTES_MAX = 128 * 1024
# h11's own default for incomplete elements: a chunk's line, the trailers. 1 MiB of trailers takes it half a
# second, and an unauthenticated client may send them.
H11_BYTES_MAX = 16 * 1024
# h11 checks its limit only after it has parsed all that it was given, so it gets small pieces.
_H11_PIECE_BYTES = 4096
# h11 takes 4 µs per chunk, and 128 KiB can hold 16,000 chunks. So after the first H11_BYTES_MAX bytes of
# framing, each byte of framing must come with this much data.
_DATA_PER_FRAMING = 4

# Chunks of a request's body that one call parses. Each takes 0.6 µs, and 128 KiB can hold 22,000: all other
# connections would wait that long.
CHUNKS_AT_ONCE_MAX = 512

_CRLF = b"\r\n"
# A chunk's size, and the same with the line end of the chunk before.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8}+)\r\n")
_NEXT = re.compile(rb"\r\n([0-9A-Fa-f]{1,8}+)\r\n")
_NEXT_BEGUN = re.compile(rb"\r?+|\r\n(?:[0-9A-Fa-f]{1,8}+\r?+)?+")


class BodyError(Exception):
    """A body's framing is malformed."""


class ChunkedBody:
    """A chunked body."""

    __slots__ = ("_at_once", "_excess", "_h11", "_left", "_unfinished", "reached", "rest", "trailers")

    def __init__(self, at_once: int | None = None) -> None:
        """`at_once` bounds the chunks that one call parses."""
        self._at_once = at_once
        # As if a chunk's data had just ended, so that the first size too has a line end on both sides.
        self._unfinished = _CRLF
        self._left = 0
        self._h11: h11.Connection | None = None
        # Data owed for the framing that h11 has read.
        self._excess = 0
        self.reached = False
        self.rest = b""
        self.trailers = False
        """Whether trailers followed the last chunk. They are dropped, since they could bypass the header
        rules.
        """

    def feed(self, data: bytes) -> bytes:
        """Return the body's bytes among received ones; at the end sets `reached`, and `rest` to the bytes
        after it.

        The data of one call is returned as one piece. A log of short lines arrives in many small chunks, and
        its cost is the number of sends, not of bytes. If there are more chunks than `at_once`, feed `rest`
        again. Raises BodyError, and again on each later call.
        """
        self.rest = b""
        if self._h11 is not None:
            return self._feed_h11(data)
        size, left = len(data), self._left
        if size <= left:
            # Within one chunk, as most bytes of a large body are.
            self._left = left - size
            return data
        if self._unfinished:
            if (
                self._unfinished == _CRLF
                and data.endswith(_CRLF)
                and (line := _SIZE.match(data)) is not None
                and size - 2 == (at := line.end()) + int(line[1], 16) > at
            ):
                # Exactly one chunk, as watch events and log lines usually arrive.
                return data[at:-2]
            data = self._unfinished + data
            size = len(data)
            self._unfinished = b""
        # Views, so that the bytes are copied only once, by the join.
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
        """Continue where there is no strict chunk size, or not a complete one yet."""
        if _NEXT_BEGUN.fullmatch(data) is not None:
            self._unfinished = data
            return b""
        return self._turn_to_h11(data)

    def _behind_last(self, data: bytes, line: int) -> bytes:
        """Continue after the last chunk's size line, whose length is `line`."""
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
        """Let h11 read the rest of the body; `data` begins with the line end after a chunk."""
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
        # No later input can match this.
        self._unfinished = b"!"
        return BodyError("a chunk is longer than its size says")
