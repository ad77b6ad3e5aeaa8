"""Strict parsing of HTTP/1.1 heads. Pure.

RFC 9112 allows tolerance, and h11, the reference for this module, has it: it accepts Content-Length beside
Transfer-Encoding, equal repeated lengths, bare LF, folded lines and targets without a slash. Each is harmless
alone, and an attack when the next reader interprets it differently. So everything ambiguous is refused here
and never repaired. The patterns below accept a subset of h11's grammar, and parse it to the same head.
Differential tests compare the two (tests/proxy/message/test_strict.py, tests/fuzz). h11 itself would cost 33
µs per head.
"""

from __future__ import annotations

import re
from itertools import filterfalse

from proxy.message.head import (
    ANSWER_HEAD_BYTES_MAX,
    CONNECTION_BYTES_MAX,
    FRAMING_NAMES,
    HEAD_BYTES_MAX,
    HEADER_COUNT_MAX,
    LENGTH_DIGITS_MAX,
    TARGET,
    TOKEN,
    VALUE,
    Fields,
    HeadError,
    RequestHead,
    ResponseHead,
    check_connection,
)
from proxy.message.hops import HOP_LINES, needs_rewriting

_FIELDS = re.compile(rb"(?:" + TOKEN + rb"++:" + VALUE + rb"\r\n)*+\r\n")
_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb"{1,64}+) (" + TARGET + rb") HTTP/1\.1\r\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: (" + VALUE + rb"))?")
_FIELD_LINE = re.compile(rb"(" + TOKEN + rb"++):(" + VALUE + rb")")
_HOST = re.compile(rb"(?:[A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_CRLF = b"\r\n"
_END = _CRLF + _CRLF
# Cached lines per connection: two dozen headers, and those that change over some tens of answers, in 20 KiB.
LINES_KNOWN_MAX = 64
LINE_KNOWN_BYTES_MAX = 160

# The effects of a line, besides framing: it is one of HOP_LINES; it needs rewriting; it may end the
# connection.
_HOP = 1
_REWRITTEN = 2
MAY_CLOSE = 4
_Framing = tuple[bytes, bytes, int | None]
"""Name and value of a framing header, and the length if it is a plain number."""


class BadRequest(Exception):
    """The request is refused before it is interpreted; the connection ends after the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class BadResponse(Exception):
    """An answer is refused because it is ambiguous or malformed."""


class HeadScanner:
    """Collects received bytes and cuts whole heads off their front.

    Bytes that cannot become a head are refused at once. A peer that speaks another protocol (a TLS hello on a
    plain port, a bare LF) gets its answer now and not after the deadline for a head.
    """

    __slots__ = ("_bytes_max", "_search_from", "held")

    def __init__(self, bytes_max: int = HEAD_BYTES_MAX) -> None:
        """`bytes_max` bounds a head."""
        self._bytes_max = bytes_max
        self.held: bytes | bytearray = b""
        """The received piece itself, until a second one is appended to it; empty once all is taken. Other
        modules only test
        whether it is empty.
        """
        self._search_from = 0

    def __len__(self) -> int:
        return len(self.held)

    def feed(self, data: bytes | bytearray) -> None:
        """Add received bytes."""
        if not self.held:
            self.held = data
        elif isinstance(self.held, bytearray):
            self.held += data
        else:
            self.held = bytearray(self.held) + data

    def put_back(self, data: bytes) -> None:
        """Put bytes that were taken too early in front of the others."""
        self.held = data + bytes(self.held)
        self._search_from = 0

    def take_head(self) -> bytes | None:
        """Return the next head with its blank line, None while it is incomplete; raises BadRequest."""
        data = self.held
        end = data.find(_END, self._search_from)
        if end < 0:
            self._refuse_early()
            # The searched part may hold the beginning of the end.
            self._search_from = max(0, len(data) - 3)
            return None
        end += len(_END)
        if end > self._bytes_max:
            raise self._too_large()
        return self.take_rest(end)

    def take_rest(self, limit: int = 1 << 62) -> bytes:
        """Return the available bytes, at most `limit`: the body's, or those of an upgraded stream."""
        data = self.held
        # Slicing copies the remainder here, so that taking all of it later copies nothing.
        self.held = data[limit:]
        self._search_from = 0
        return bytes(data[:limit])

    def _refuse_early(self) -> None:
        data = self.held
        if len(data) > self._bytes_max:
            raise self._too_large()
        if data and not 0x21 <= data[0] <= 0x7E:
            raise BadRequest(400, "these bytes are no HTTP/1.1")
        start = self._search_from
        # Counting is cheap; a check behind each line feed takes 6 ms per MiB, even before authentication.
        if data.count(b"\n", start) != data.count(_CRLF, max(0, start - 1)):
            raise BadRequest(400, "a line ends without a carriage return")

    def _too_large(self) -> BadRequest:
        return BadRequest(431, f"the head is larger than {self._bytes_max} bytes")


def read_request_head(raw: bytes, last: Fields | None = None) -> RequestHead:
    """Parse a whole head; raises BadRequest for everything ambiguous.

    `last` is the `Fields` of the previous head on the same connection: if the same headers arrive again, one
    comparison replaces the parsing. It stays within its connection, since it holds a credential.
    """
    line = _REQUEST_LINE.match(raw)
    if line is None:
        raise _explain(raw)
    method, target = line.groups()
    if method == b"CONNECT":
        # Some intermediaries treat a 2xx to CONNECT as a tunnel, even to an odd target.
        raise BadRequest(400, "CONNECT is not served")
    block = raw[line.end() :]
    if last is not None and last.raw == block:
        return RequestHead(method, target, last)
    # Checked first: explaining the fault of each of 260,000 lines takes a quarter of a second.
    count = block.count(b"\n") - 1
    if count > HEADER_COUNT_MAX:
        raise BadRequest(431, f"the request has {count} headers, {HEADER_COUNT_MAX} is the limit")
    if _FIELDS.fullmatch(block) is None:
        raise _explain(raw)
    fields = Fields.of_block(block)
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
    if sum(map(len, by_name.get(b"connection", []))) > CONNECTION_BYTES_MAX:
        raise BadRequest(400, f"the Connection headers have more than {CONNECTION_BYTES_MAX} bytes")


class AnswerLines(dict[bytes, bytes]):
    """A cache of header lines in one connection's answers, each with its canonical form.

    A server repeats nearly all of its lines. Lines with an effect of their own (framing, rewriting) are kept
    in `_noted` instead, so that each occurrence calls `__missing__`. It stays within its connection, since
    lines may hold a credential.
    """

    __slots__ = ("_noted", "_status", "_status_line", "framing", "says")

    def __init__(self) -> None:
        # For each line its canonical form, and its effects.
        self._noted: dict[bytes, tuple[bytes, _Framing | None, int]] = {}
        self._status_line: bytes | None = None
        self._status = (0, b"", b"", False)
        # The effects collected for the current answer.
        self.framing: list[_Framing] = []
        self.says = 0

    def begin(self, status_line: bytes) -> tuple[int, bytes, bytes, bool]:
        """Begin an answer; return its status, its reason, its first line, and whether it is HTTP/1.1."""
        self.framing = []
        self.says = 0
        if status_line == self._status_line:
            return self._status
        match = _STATUS_LINE.fullmatch(status_line)
        if match is None:
            raise _malformed()
        version, status, reason = match.groups(b"")
        read = int(status), reason, b"HTTP/1.1 %s %s\r\n" % (status, reason), version == b"1"
        if len(status_line) <= LINE_KNOWN_BYTES_MAX:
            self._status_line, self._status = status_line, read
        return read

    def __missing__(self, field: bytes) -> bytes:
        canonical, framing, says = self._noted.get(field) or self._read(field)
        if framing is not None:
            self.framing.append(framing)
        self.says |= says
        return canonical

    def _read(self, field: bytes) -> tuple[bytes, _Framing | None, int]:
        """Parse an unknown line, and cache it."""
        match = _FIELD_LINE.fullmatch(field)
        if match is None:
            raise _malformed()
        name, value = match[1].lower(), match[2].strip(b" \t")
        canonical = b"%s: %s\r\n" % (name, value)
        framing, says = None, 0
        if name in FRAMING_NAMES:
            is_plain = name == b"content-length" and value.isdigit() and len(value) <= LENGTH_DIGITS_MAX
            framing = name, value, int(value) if is_plain else None
        if needs_rewriting(name):
            says = _HOP if canonical in HOP_LINES else _REWRITTEN
            if name == b"connection" and b"close" in value.lower():
                says |= MAY_CLOSE
        if len(self) + len(self._noted) >= LINES_KNOWN_MAX:
            self.clear()
            self._noted.clear()
        noted = canonical, framing, says
        if len(field) <= LINE_KNOWN_BYTES_MAX:
            if framing is None and not says:
                self[field] = canonical
            else:
                self._noted[field] = noted
        return noted


def read_response_head(raw: bytes, known: AnswerLines | None = None) -> tuple[ResponseHead, bool]:
    """Parse a whole head of an answer; return it, and whether it is HTTP/1.1 (not 1.0).

    `known` is the connection's cache. Raises BadResponse for everything ambiguous.
    """
    if known is None:
        known = AnswerLines()
    if not raw.endswith(_END):
        raise _malformed()
    # Lines above the limit are not split: it only matters that there are some.
    status_line, *fields, _, _ = raw.split(_CRLF, HEADER_COUNT_MAX + 3)
    status, reason, first, is_1_1 = known.begin(status_line)
    if len(fields) > HEADER_COUNT_MAX:
        raise BadResponse(f"the answer has more than {HEADER_COUNT_MAX} headers")
    # Canonical at once: these bytes cross the tunnel, and most answers need nothing else.
    lines = [first, *map(known.__getitem__, fields), b"\r\n"]
    encoded = b"".join(lines)
    if len(encoded) > ANSWER_HEAD_BYTES_MAX:
        raise BadResponse(f"the head of the answer is larger than {ANSWER_HEAD_BYTES_MAX} bytes")
    says = known.says
    passes: bytes | None = encoded
    if says & _REWRITTEN or status == 101:
        passes = None
        try:
            check_connection(encoded)
        except HeadError as exc:
            raise BadResponse(str(exc)) from exc
    elif says:
        passes = b"".join(filterfalse(HOP_LINES.__contains__, lines))
    return ResponseHead(status, reason, _length(known.framing), encoded, passes), is_1_1


def _length(framing: list[_Framing]) -> int | None:
    """Return the body's length by its framing lines; None if it is chunked, or ends with the connection."""
    if len(framing) == 1 and (length := framing[0][2]) is not None:
        return length
    try:
        _check_framing(
            [value for name, value, _ in framing if name == b"content-length"],
            [value for name, value, _ in framing if name == b"transfer-encoding"],
        )
    except BadRequest as exc:
        raise BadResponse(exc.message) from exc
    return None


def _malformed() -> BadResponse:
    return BadResponse("the head of the answer is malformed")


def _check_framing(lengths: list[bytes], codings: list[bytes]) -> None:
    """Refuse an ambiguous body length; see `proxy.message.head.check_framing`."""
    if lengths and codings:
        raise BadRequest(400, "Content-Length and Transfer-Encoding exclude each other")
    if len(lengths) > 1:
        raise BadRequest(400, "Content-Length is given more than once")
    if lengths and not (lengths[0].isdigit() and len(lengths[0]) <= LENGTH_DIGITS_MAX):
        raise BadRequest(400, "Content-Length is not a plain number")
    # Compared byte by byte: servers disagree about "Chunked" and "chunked, identity".
    if codings and codings != [b"chunked"]:
        raise BadRequest(400, "the only Transfer-Encoding served is chunked, given once")


def _explain(raw: bytes) -> BadRequest:
    """Explain why the grammar refused a head; off the hot path."""
    if b"\x00" in raw:
        return BadRequest(400, "the head holds a NUL byte")
    lines = raw.count(_CRLF)
    if raw.count(b"\n") != lines:
        return BadRequest(400, "a line ends without a carriage return")
    if raw.count(b"\r") != lines:
        return BadRequest(400, "the head holds a carriage return that ends no line")
    line, _, fields = raw.removesuffix(_END).partition(_CRLF)
    parts = line.split(b" ", 3)
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
    for field in fields.split(_CRLF):
        if _FIELD_LINE.fullmatch(field) is not None:
            continue
        if field[:1] in {b" ", b"\t"}:
            return BadRequest(400, "a header is folded over several lines")
        name, colon, _ = field.partition(b":")
        if colon and name[-1:] in {b" ", b"\t"}:
            return BadRequest(400, "a header's name is followed by a blank")
        return BadRequest(400, "a header is malformed")
    return BadRequest(400, "the head is malformed")
