"""What a head must look like before h11 may see it. Pure.

h11 follows the tolerant side of RFC 9112: it takes Content-Length beside Transfer-Encoding, equal repeated
lengths, bare LF, folded lines and targets without a slash. Each is harmless alone and an attack behind or in
front of a reader that takes it otherwise, so whatever can be read in two ways is refused here and never
repaired. What passes, h11 reads to the same head (a differential test holds the two together): the regular
expressions below accept a part of h11's grammar and nothing beside it.
"""

from __future__ import annotations

import re

from proxy.head import CONTENT_LENGTH, HEAD_BYTES_MAX, HEADER_COUNT_MAX, TARGET, TOKEN, VALUE

_FIELDS = rb"((?:" + TOKEN + rb"++:" + VALUE + rb"\r\n)*+)\r\n"
_REQUEST = re.compile(TOKEN + rb"{1,64}+ " + TARGET + rb" HTTP/1\.1\r\n" + _FIELDS)
_RESPONSE = re.compile(rb"HTTP/1\.[01] [1-9][0-9]{2}(?: " + VALUE + rb")?\r\n" + _FIELDS)
# The headers of which a second line, or a loose value, changes where a message ends or who is meant.
_WATCHED = re.compile(
    rb"\n(host|content-length|transfer-encoding|expect|upgrade):[\t ]*+([^\r]*)", re.IGNORECASE
)
_HOST = re.compile(rb"(?:[A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_END = b"\r\n\r\n"


class BadRequest(Exception):
    """A request that is refused before anybody reads what it asks; the connection ends with the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class BadResponse(Exception):
    """An answer that is refused, because two readers could see two different ones."""


class HeadScanner:
    """Collects received bytes and cuts whole heads off their front.

    What cannot become a head is refused as soon as it shows, so that a peer that speaks something else (a
    TLS hello on a plain port, a bare LF) gets its answer now and not after the deadline for a head.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._searched = 0

    def __len__(self) -> int:
        return len(self._data)

    def feed(self, data: bytes | bytearray) -> None:
        """Add received bytes."""
        self._data += data

    def take_head(self) -> bytes | None:
        """Return the next head with its blank line, None while it is not whole; raises BadRequest."""
        end = self._data.find(_END, max(0, self._searched - 3))
        if end < 0:
            self._refuse_early()
            self._searched = len(self._data)
            return None
        end += len(_END)
        if end > HEAD_BYTES_MAX:
            raise _too_large()
        head = bytes(self._data[:end])
        del self._data[:end]
        self._searched = 0
        return head

    def take_rest(self, limit: int | None = None) -> bytes:
        """Return what is there, at most `limit` bytes: the body's, or those of an upgraded stream."""
        rest = bytes(self._data if limit is None else self._data[:limit])
        del self._data[: len(rest)]
        self._searched = 0
        return rest

    def _refuse_early(self) -> None:
        if len(self._data) > HEAD_BYTES_MAX:
            raise _too_large()
        if self._data and not 0x21 <= self._data[0] <= 0x7E:
            raise BadRequest(400, "these bytes are no HTTP/1.1")
        if _BARE_LF.search(self._data, max(0, self._searched - 1)):
            raise BadRequest(400, "a line ends without a carriage return")


def check_request_head(raw: bytes) -> None:
    """Refuse every request head that can be read in two ways; raises BadRequest."""
    match = _REQUEST.fullmatch(raw)
    if match is None:
        raise _explain(raw)
    if raw.count(b"\n") - 2 > HEADER_COUNT_MAX:
        raise BadRequest(431, f"the request has more than {HEADER_COUNT_MAX} headers")
    watched = _watched(raw)
    hosts = watched.get(b"host", [])
    if len(hosts) != 1:
        raise BadRequest(400, f"the request has {len(hosts) or 'no'} Host headers, it must have one")
    if _HOST.fullmatch(hosts[0]) is None:
        raise BadRequest(400, "the Host header is not a host name with an optional port")
    _check_framing(watched)
    if any(value.lower() != b"100-continue" for value in watched.get(b"expect", [])):
        raise BadRequest(417, "the only expectation that can be met is 100-continue")
    if len(watched.get(b"upgrade", [])) > 1:
        raise BadRequest(400, "the request has more than one Upgrade header")


def check_response_head(raw: bytes) -> None:
    """Refuse every response head that can be read in two ways; raises BadResponse."""
    if _RESPONSE.fullmatch(raw) is None:
        raise BadResponse("the head of the answer is malformed")
    if raw.count(b"\n") - 2 > HEADER_COUNT_MAX:
        raise BadResponse(f"the answer has more than {HEADER_COUNT_MAX} headers")
    try:
        _check_framing(_watched(raw))
    except BadRequest as exc:
        raise BadResponse(exc.message) from exc


def _watched(raw: bytes) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for name, value in _WATCHED.findall(raw):
        found.setdefault(name.lower(), []).append(value.rstrip(b"\t "))
    return found


def _check_framing(watched: dict[bytes, list[bytes]]) -> None:
    lengths = watched.get(b"content-length", [])
    codings = watched.get(b"transfer-encoding", [])
    if lengths and codings:
        raise BadRequest(400, "Content-Length and Transfer-Encoding exclude each other")
    if len(lengths) > 1:
        raise BadRequest(400, "Content-Length is given more than once")
    if lengths and CONTENT_LENGTH.fullmatch(lengths[0]) is None:
        raise BadRequest(400, "Content-Length is not a plain number")
    # Byte for byte: "Chunked" and "chunked, identity" are just what readers differ over.
    if codings and codings != [b"chunked"]:
        raise BadRequest(400, "the only Transfer-Encoding served is chunked, given once")


def _too_large() -> BadRequest:
    return BadRequest(431, f"the head is larger than {HEAD_BYTES_MAX} bytes")


def _explain(raw: bytes) -> BadRequest:
    """Say what is wrong with a head that the grammar refused; off the hot path."""
    if b"\x00" in raw:
        return BadRequest(400, "the head holds a NUL byte")
    if _BARE_LF.search(raw):
        return BadRequest(400, "a line ends without a carriage return")
    if raw.count(b"\r") != raw.count(b"\n"):
        return BadRequest(400, "the head holds a carriage return that ends no line")
    line, *fields = raw.removesuffix(_END).split(b"\r\n")
    parts = line.split(b" ")
    if len(parts) != 3 or re.fullmatch(TOKEN + rb"{1,64}", parts[0]) is None:
        return BadRequest(400, "the request line is malformed")
    if not parts[2].startswith(b"HTTP/"):
        return BadRequest(400, "the request line is malformed")
    if parts[2] != b"HTTP/1.1":
        return BadRequest(505, "only HTTP/1.1 is served")
    if re.fullmatch(TARGET, parts[1]) is None:
        return BadRequest(
            400, "the request target is not a plain path: it must begin with '/' and hold no '#'"
        )
    for field in fields:
        if field[:1] in {b" ", b"\t"}:
            return BadRequest(400, "a header is folded over several lines")
        if re.match(TOKEN + rb"+[\t ]+:", field):
            return BadRequest(400, "a header's name is followed by a blank")
        if re.fullmatch(TOKEN + rb"+:" + VALUE, field) is None:
            return BadRequest(400, "a header is malformed")
    return BadRequest(400, "the head is malformed")
