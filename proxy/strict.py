"""What a head must look like, and what it says. Pure.

RFC 9112 has a tolerant side, and h11, the reference of this file, follows it: it takes Content-Length beside
Transfer-Encoding, equal repeated lengths, bare LF, folded lines and targets without a slash. Each is harmless
alone and an attack behind or in front of a reader that takes it otherwise, so whatever can be read in two
ways is refused here and never repaired. The regular expressions below accept a part of h11's grammar and
nothing beside it, and read it to the same head; differential tests hold the two together
(tests/proxy/test_strict.py, tests/fuzz), since h11 itself would cost 33 µs a head.
"""

from __future__ import annotations

import re

from proxy.head import (
    CONTENT_LENGTH,
    FRAMING_NAMES,
    HEAD_BYTES_MAX,
    HEADER_COUNT_MAX,
    TARGET,
    TOKEN,
    VALUE,
    Fields,
    Headers,
    RequestHead,
    ResponseHead,
)

_FIELDS = re.compile(rb"(?:" + TOKEN + rb"++:" + VALUE + rb"\r\n)*+\r\n")
_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb"{1,64}+) (" + TARGET + rb") HTTP/1\.1\r\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: (" + VALUE + rb"))?")
_FIELD_LINE = re.compile(rb"(" + TOKEN + rb"++):(" + VALUE + rb")")
# Only in a block that passed: there each line feed but the last has a header behind it, and so has the start.
_FIELD = re.compile(rb"([^:\r\n]++):([^\r]*+)\r\n")
_HOST = re.compile(rb"(?:[A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_END = b"\r\n\r\n"
# Of the answers on one connection: two dozen headers and what changes in some tens of answers, in 20 KiB.
LINES_KNOWN_MAX = 64
LINE_KNOWN_BYTES_MAX = 160


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

    __slots__ = ("_at", "_data", "_searched")

    def __init__(self) -> None:
        # A piece that was received, as it came, until a second one has to be added to it.
        self._data: bytes | bytearray = b""
        self._at = 0
        self._searched = 0

    def __len__(self) -> int:
        return len(self._data) - self._at

    def feed(self, data: bytes | bytearray) -> None:
        """Add received bytes."""
        if self._at:
            self._data = self._data[self._at :]
            self._at = 0
        if not self._data:
            self._data = data
        elif isinstance(self._data, bytearray):
            self._data += data
        else:
            self._data = bytearray(self._data) + data

    def put_back(self, data: bytes) -> None:
        """Put bytes that were taken too far in front of the others."""
        self._data = data + bytes(self._data[self._at :])
        self._at = self._searched = 0

    def take_head(self) -> bytes | None:
        """Return the next head with its blank line, None while it is not whole; raises BadRequest."""
        at = self._at
        end = self._data.find(_END, at + max(0, self._searched - 3))
        if end < 0:
            self._refuse_early()
            self._searched = len(self._data) - at
            return None
        end += len(_END)
        if end - at > HEAD_BYTES_MAX:
            raise _too_large()
        head = bytes(self._data[at:end])
        self._leave(end)
        return head

    def take_rest(self, limit: int = 1 << 62) -> bytes:
        """Return what is there, at most `limit` bytes: the body's, or those of an upgraded stream."""
        end = min(len(self._data), self._at + limit)
        rest = bytes(self._data[self._at : end])
        self._leave(end)
        return rest

    def _leave(self, end: int) -> None:
        self._searched = 0
        if end == len(self._data):
            self._data = b""
            self._at = 0
        else:
            self._at = end

    def _refuse_early(self) -> None:
        if len(self) > HEAD_BYTES_MAX:
            raise _too_large()
        if len(self) and not 0x21 <= self._data[self._at] <= 0x7E:
            raise BadRequest(400, "these bytes are no HTTP/1.1")
        if _BARE_LF.search(self._data, self._at + max(0, self._searched - 1)):
            raise BadRequest(400, "a line ends without a carriage return")


def read_request_head(raw: bytes, last: Fields | None = None) -> RequestHead:
    """Read a whole head; raises BadRequest for everything that can be read in two ways.

    `last` is what came out of the head before on the same connection: a client that sends the same headers
    again is understood by a comparison. It is kept by its connection and nowhere else, because a credential
    is in it.
    """
    line = _REQUEST_LINE.match(raw)
    if line is None:
        raise _explain(raw)
    method, target = line.groups()
    if method == b"CONNECT":
        # To some, a 2xx to it turns the connection into a tunnel, whatever its target looks like.
        raise BadRequest(400, "CONNECT is not served")
    block = raw[line.end() :]
    if last is not None and last.raw == block:
        return RequestHead(method, target, last)
    if _FIELDS.fullmatch(block) is None:
        raise _explain(raw)
    if block.count(b"\n") - 1 > HEADER_COUNT_MAX:
        raise BadRequest(431, f"the request has more than {HEADER_COUNT_MAX} headers")
    fields = Fields(_pairs(block), block)
    _check_request(fields.by_name)
    return RequestHead(method, target, fields)


def _check_request(by_name: dict[bytes, list[bytes]]) -> None:
    hosts = by_name.get(b"host", [])
    if len(hosts) != 1:
        raise BadRequest(400, f"the request has {len(hosts) or 'no'} Host headers, it must have one")
    if _HOST.fullmatch(hosts[0]) is None:
        raise BadRequest(400, "the Host header is not a host name with an optional port")
    _check_framing(by_name.get(b"content-length", []), by_name.get(b"transfer-encoding", []))
    if any(value.lower() != b"100-continue" for value in by_name.get(b"expect", [])):
        raise BadRequest(417, "the only expectation that can be met is 100-continue")
    if len(by_name.get(b"upgrade", [])) > 1:
        raise BadRequest(400, "the request has more than one Upgrade header")


def read_response_head(raw: bytes, known: dict[bytes, bytes] | None = None) -> tuple[ResponseHead, bool]:
    """Read a whole head of an answer, and whether it is of HTTP/1.1 and not 1.0.

    `known` holds lines of answers before on the same connection, and their canonical form: a server says
    nearly all of them every time. It is kept by its connection and nowhere else, as a credential may be in
    it. Raises BadResponse for everything that can be read in two ways.
    """
    if known is None:
        known = {}
    status_line, *fields = raw.removesuffix(_END).split(b"\r\n")
    match = _STATUS_LINE.fullmatch(status_line)
    if match is None or not raw.endswith(_END):
        raise BadResponse("the head of the answer is malformed")
    if len(fields) > HEADER_COUNT_MAX:
        raise BadResponse(f"the answer has more than {HEADER_COUNT_MAX} headers")
    framing: list[tuple[bytes, bytes]] = []
    # Canonical at once: it is what crosses the tunnel, and all that is asked of most answers.
    lines = [known.get(field) or _read_line(field, known, framing) for field in fields]
    version, status, reason = match.groups(b"")
    encoded = b"HTTP/1.1 %s %s\r\n%s\r\n" % (status, reason, b"".join(lines))
    if len(encoded) > HEAD_BYTES_MAX:
        raise BadResponse(f"the head of the answer is larger than {HEAD_BYTES_MAX} bytes")
    return ResponseHead.of_bytes(int(status), reason, _length(framing), encoded), version == b"1"


def _length(framing: list[tuple[bytes, bytes]]) -> int | None:
    """Return how long the body is by the lines that say it; None when its end will tell."""
    if len(framing) == 1:
        name, value = framing[0]
        if name == b"content-length" and CONTENT_LENGTH.fullmatch(value) is not None:
            return int(value)
    try:
        _check_framing(
            [value for name, value in framing if name == b"content-length"],
            [value for name, value in framing if name == b"transfer-encoding"],
        )
    except BadRequest as exc:
        raise BadResponse(exc.message) from exc
    return None


def _read_line(field: bytes, known: dict[bytes, bytes], framing: list[tuple[bytes, bytes]]) -> bytes:
    """Return a line of an answer in canonical form; it is known from now on, or it is one of the framing."""
    match = _FIELD_LINE.fullmatch(field)
    if match is None:
        raise BadResponse("the head of the answer is malformed")
    name, value = match[1].lower(), match[2].strip(b" \t")
    canonical = b"%s: %s\r\n" % (name, value)
    if name in FRAMING_NAMES:
        framing.append((name, value))
    elif len(field) <= LINE_KNOWN_BYTES_MAX:
        if len(known) >= LINES_KNOWN_MAX:
            known.clear()
        known[field] = canonical
    return canonical


def _pairs(block: bytes) -> Headers:
    """The headers of lines that the grammar has let pass."""
    return tuple([(name.lower(), value.strip(b" \t")) for name, value in _FIELD.findall(block)])


def _check_framing(lengths: list[bytes], codings: list[bytes]) -> None:
    """Refuse what leaves it open where the body ends; see `proxy.head.check_framing`."""
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
