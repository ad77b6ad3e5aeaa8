"""Reads one HTTP/1.1 answer, for commands that send one request and then close the connection.

http.client would load the parser of mail, which takes as long as TLS and this module together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

# The hub's own limit of a request's head; its answers have a few hundred bytes.
HEAD_BYTES_MAX = 64 * 1024
# Of a body that is read as it arrives.
PIECE_BYTES_MAX = 64 * 1024
# A hub, and a proxy before it, sends one or none.
INTERIM_ANSWERS_MAX = 8

_DIGITS = frozenset(b"0123456789")
_HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")


class HTTPError(OSError):
    """The peer does not speak HTTP/1.1, or the request can't be expressed in it."""


def read_answer(stream: BinaryIO, body_bytes_max: int) -> tuple[int, bytes]:
    """Return the status and at most so many bytes of the body. Raises HTTPError and the stream's OSError."""
    status, length, chunked = _read_final_head(stream)
    if status in {204, 304}:
        return status, b""
    if chunked:
        return status, _read_chunks(stream, body_bytes_max)
    if length is None:
        return status, stream.read(body_bytes_max)
    return status, _read_exactly(stream, min(length, body_bytes_max))


def begin_answer(stream: BinaryIO) -> tuple[int, Iterator[bytes]]:
    """Return the status, and the body's pieces as they arrive. Both raise as `read_answer`.

    A body without an end of its own is refused: its cut would look like its end.
    """
    status, length, chunked = _read_final_head(stream)
    if status in {204, 304}:
        return status, iter(())
    if chunked:
        return status, _chunks(stream)
    if length is None:
        raise HTTPError("the server sent a body without a length")
    return status, _pieces(stream, length)


def _read_final_head(stream: BinaryIO) -> tuple[int, int | None, bool]:
    for _ in range(INTERIM_ANSWERS_MAX):
        head = _read_head(stream)
        if not 100 <= head[0] < 200:
            return head
    raise HTTPError("the server sent only interim answers")


def _read_head(stream: BinaryIO) -> tuple[int, int | None, bool]:
    """Return the status, the body's length if it is stated, and whether the body is chunked."""
    left = HEAD_BYTES_MAX
    line = _read_line(stream, left)
    version, _, rest = line.partition(b" ")
    code = rest[:3]
    if (
        version not in {b"HTTP/1.1", b"HTTP/1.0"}
        or not (_is_number(code, 3) and int(code) >= 100)
        or rest[3:4] not in {b"", b" "}
    ):
        raise HTTPError("the server does not speak HTTP")
    length, chunked = None, False
    while True:
        left -= len(line) + 1
        line = _read_line(stream, left)
        if not line:
            break
        name, colon, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if not colon:
            raise HTTPError("the server sent a header without a colon")
        if name == b"content-length":
            if not _is_number(value, 15) or length not in {None, int(value)}:
                raise HTTPError("the server sent an invalid Content-Length")
            length = int(value)
        elif name == b"transfer-encoding":
            if value.lower() != b"chunked" or chunked:
                raise HTTPError("the server sent a transfer encoding other than chunked")
            chunked = True
    if chunked and length is not None:
        raise HTTPError("the server sent two lengths")
    return int(code), length, chunked


def _read_chunks(stream: BinaryIO, bytes_max: int) -> bytes:
    parts: list[bytes] = []
    while True:
        wanted = min(_chunk_size(stream), bytes_max)
        parts.append(_read_exactly(stream, wanted))
        bytes_max -= wanted
        if not wanted or not bytes_max:
            # The rest and the trailers stay unread, as the connection carries no second answer.
            return b"".join(parts)
        if _read_line(stream, 2):
            raise HTTPError("the server sent an invalid chunk")


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    while size := _chunk_size(stream):
        yield from _pieces(stream, size)
        if _read_line(stream, 2):
            raise HTTPError("the server sent an invalid chunk")


def _chunk_size(stream: BinaryIO) -> int:
    size = _read_line(stream, HEAD_BYTES_MAX).partition(b";")[0].rstrip(b" \t")
    if not 1 <= len(size) <= 12 or not _HEX_DIGITS.issuperset(size):
        raise HTTPError("the server sent an invalid chunk")
    return int(size, 16)


def _pieces(stream: BinaryIO, length: int) -> Iterator[bytes]:
    while length:
        piece = _read_exactly(stream, min(length, PIECE_BYTES_MAX))
        length -= len(piece)
        yield piece


def _read_line(stream: BinaryIO, bytes_max: int) -> bytes:
    line = stream.readline(max(bytes_max, 0))
    if not line.endswith(b"\n"):
        if len(line) < bytes_max:
            raise HTTPError("the connection was cut")
        raise HTTPError("the server sent a line that is too long")
    return line[:-1].removesuffix(b"\r")


def _read_exactly(stream: BinaryIO, length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise HTTPError("the connection was cut")
    return data


def _is_number(text: bytes, digits_max: int) -> bool:
    # bytes.isdigit takes ASCII digits only, but int() takes signs and underscores as well.
    return 1 <= len(text) <= digits_max and _DIGITS.issuperset(text)
