"""Reads one HTTP/1.1 answer, for commands that send one request and then close the connection.

http.client would load the parser of mail, which takes as long as TLS and this module together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import BinaryIO

# The hub's own limit of a request's head; its answers have a few hundred bytes.
HEAD_BYTES_MAX = 64 * 1024
# A hub, and a proxy before it, sends one or none.
INTERIM_ANSWERS_MAX = 8

_DIGITS = frozenset(b"0123456789")
_HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")


class HTTPError(OSError):
    """The peer does not speak HTTP/1.1, or the request can't be expressed in it."""


def read_answer(stream: BinaryIO, body_bytes_max: int) -> tuple[int, bytes]:
    """Return the status and at most so many bytes of the body. Raises HTTPError and the stream's OSError."""
    for _ in range(INTERIM_ANSWERS_MAX):
        status, length, chunked = _read_head(stream)
        if not 100 <= status < 200:
            break
    else:
        raise HTTPError("the server sent only interim answers")
    if status in {204, 304}:
        return status, b""
    if chunked:
        return status, _read_chunks(stream, body_bytes_max)
    if length is None:
        return status, stream.read(body_bytes_max)
    return status, _read_exactly(stream, min(length, body_bytes_max))


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
        size = _read_line(stream, HEAD_BYTES_MAX).partition(b";")[0].rstrip(b" \t")
        if not 1 <= len(size) <= 12 or not _HEX_DIGITS.issuperset(size):
            raise HTTPError("the server sent an invalid chunk")
        wanted = min(int(size, 16), bytes_max)
        parts.append(_read_exactly(stream, wanted))
        bytes_max -= wanted
        if not wanted or not bytes_max:
            # The rest and the trailers stay unread, as the connection carries no second answer.
            return b"".join(parts)
        if _read_line(stream, 2):
            raise HTTPError("the server sent an invalid chunk")


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
