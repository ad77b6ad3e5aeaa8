"""Request and response heads, and their canonical bytes between hub and relay.

A head is the first line and the headers. Names are kept in lower case, in their order and with their
repetitions, since Kubernetes needs both (one line per group, one line per subprotocol).

`encode` writes the canonical form: HTTP/1.1, names in lower case, one ": ", no blanks around a value.
`decode` accepts that form alone, so that decode(encode(h)) == h and encode(decode(b)) == b: the bytes have
one reading. Clients and API servers send other forms; `proxy.message.strict` reads those.

A client sends the same headers with each request of a connection, so the block of headers is parsed once.
`Fields` caches the results. A request's head is a first line, a few lines added by the proxy, and a `Fields`.
Answers differ in every head (an id, a date), so a `ResponseHead` keeps its bytes, and parses its headers only
on access.
"""

from __future__ import annotations

import re
from contextlib import suppress
from functools import lru_cache
from typing import Self

from proxy.message.hops import REWRITTEN, passing

Headers = tuple[tuple[bytes, bytes], ...]

# kube-apiserver's own limit (MaxHeaderBytes); kubectl sends targets of 60 KB for a long exec.
HEAD_BYTES_MAX = 1 << 20
# Parsing a head of this size takes a fifth of a millisecond. Each loop pass parses at most one longer request
# head.
LONG_HEAD_BYTES = 16 * 1024
# No client needs more in an answer: Envoy accepts 60 KiB, and most others 8 or 16. A relay, or a backend
# behind a proxy path, can send hundreds at once, and parsing, rewriting and forwarding 1 MiB takes 10 ms.
ANSWER_HEAD_BYTES_MAX = 64 * 1024
# A real request has about 20; Apache allows 100, haproxy 101, node 2,000. Without a bound, 1 MiB of headers
# of four bytes takes a second to parse.
HEADER_COUNT_MAX = 512
# The options in Connection headers, normally a handful. 1 MiB of them would block the event loop for 0.1 s,
# even before authentication.
CONNECTION_BYTES_MAX = 4096
# A relay's cache of header blocks: an agent has one or two, of about 500 bytes. They hold no credential,
# since the hub removes it. Above the first bound the oldest block is evicted; blocks above the second are not
# cached. Together they are 1 MiB of blocks, and about four times that in objects.
BLOCKS_REMEMBERED_MAX = 256
BLOCK_REMEMBERED_BYTES_MAX = 4096

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
# Visible ASCII and a leading "/": origin form only. "#" is excluded, so no fragment is ever forwarded.
TARGET = rb"/[\x21\x22\x24-\x7e]*+"
# obs-text is accepted, since it may be UTF-8; every control character but the tab is refused.
VALUE = rb"[\t\x20-\x7e\x80-\xff]*+"
# For blocks that `proxy.message.strict` has accepted: there each line feed but the last is followed by a
# header, and so is the start.
_FIELD = re.compile(rb"([^:\r\n]++):([^\r]*+)\r\n")
_CREDENTIAL = re.compile(rb"^authorization:[^\r]*+\r\n", re.IGNORECASE | re.MULTILINE)
# A Content-Length: ASCII digits, few enough that the number is exact in any language that may read it.
# (`isdigit` of bytes accepts no others.)
LENGTH_DIGITS_MAX = 18

_NAME = rb"[!#$%&'*+\-.^_`|~0-9a-z]++"
# A value without blanks around it.
_BARE = rb"(?:[\x21-\x7e\x80-\xff]" + VALUE + rb"(?<![\t ]))?+"
_REQUEST_LINE = re.compile(TOKEN + rb"{1,64}+ " + TARGET + rb" HTTP/1\.1\r\n")
# The lines that the hub writes first differ in each request, so they are a separate group from the others.
_CANONICAL_REQUEST = re.compile(
    rb"((" + TOKEN + rb"{1,64}+) (" + TARGET + rb") HTTP/1\.1\r\n)"
    rb"((?:audit-id: " + _BARE + rb"\r\n)?+(?:x-forwarded-for: " + _BARE + rb"\r\n)?+)"
)  # fmt: skip
_CANONICAL_FIELDS = re.compile(rb"(?:" + _NAME + rb": " + _BARE + rb"\r\n)*+\r\n")
_CANONICAL_RESPONSE = re.compile(
    rb"HTTP/1\.1 ([1-9][0-9]{2}) (" + VALUE + rb")\r\n" + _CANONICAL_FIELDS.pattern
)
# Nearly every answer has this form: it can be forwarded unchanged, and at most one line states the body's
# length. Both halves of its lines are bounded, so it never has more than HEADER_COUNT_MAX. An answer with
# more lines is decoded by the general pattern.
_PASSING_LINES = (
    rb"(?:(?!content-length:|%b)%b: %b\r\n){0,%d}+"
    % (REWRITTEN, _NAME, _BARE, HEADER_COUNT_MAX // 2 - 1)
)  # fmt: skip
_PLAIN_RESPONSE = re.compile(
    rb"HTTP/1\.1 ([2-9][0-9]{2}) (%b)\r\n%b(?:content-length: ([0-9]{1,%d})\r\n)?+%b\r\n"
    % (VALUE, _PASSING_LINES, LENGTH_DIGITS_MAX, _PASSING_LINES)
)
_WRITABLE_FIELDS = re.compile(rb"(?:" + _NAME + rb": " + VALUE + rb"\r\n)*+")
_WRITABLE_STATUS = re.compile(rb"HTTP/1\.1 [1-9][0-9]{2} " + VALUE + rb"\r\n")
_NO_TOKENS: frozenset[bytes] = frozenset()
FRAMING_NAMES = frozenset({b"content-length", b"transfer-encoding"})
# Repeating such a request changes nothing (RFC 9110 9.2.1), so it may be retried after a lost answer.
SAFE_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS"})
# The protocols that Kubernetes upgrades a connection to, in lower case. Any other one would carry raw bytes
# that neither policies nor audit can read.
UPGRADES = frozenset({b"websocket", b"spdy/3.1"})
# Statuses whose answers never have a body, even if their headers announce one.
BODILESS_STATUSES = frozenset({*range(100, 200), 204, 304})
# For whole canonical heads, where a line follows each line feed but the last.
_CONNECTION_LINES = re.compile(rb"\nconnection: ([^\r]*+)")
FRAMING_LINES = re.compile(rb"\n(content-length|transfer-encoding): ([^\r]*+)")


class HeadError(Exception):
    """The bytes are not a head, or a head cannot be written; the message never holds a header's value."""


class HeadTooLarge(HeadError):
    """The head exceeds a size limit; the message has its size."""


class Fields:
    """The headers of a request with cached results. Shared by requests with the same headers.

    A slot that is not set yet is computed on first access; later accesses are plain attribute reads.
    """

    __slots__ = (
        "body_length",
        "by_name",
        "connection",
        "forwarded",
        "forwarded_tail",
        "headers",
        "lines",
        "note",
        "only_asks",
        "persistent",
        "raw",
        "upgrade",
    )

    headers: Headers
    raw: bytes
    """The block as a client sent it, with the blank line; b"" for headers that did not come from a client."""
    by_name: dict[bytes, list[bytes]]
    """The values under each name, in their order."""
    connection: frozenset[bytes]
    """The options that Connection names, in lower case."""
    body_length: int | None
    """The body's length: 0 for none, None if it is chunked."""
    upgrade: bytes | None
    """The protocol that `Upgrade` names, if it is one of UPGRADES and `Connection` lists the header.

    None otherwise: a server may ignore the header (RFC 9110 7.8), and then the request is a plain one.
    """
    only_asks: bool
    """The request has no body, and requests no upgrade."""
    persistent: bool
    """As far as the headers say, another request may follow on the connection to a server."""
    lines: bytes
    """The canonical lines; access raises HeadError for a header that no head can hold."""
    forwarded: Fields | None
    """The headers forwarded to the relay; a cache of `proxy.message.rewrite`."""
    forwarded_tail: Fields | None
    """The same for a target on a proxy path's tail."""
    note: object
    """A cache of the code that serves the connection, for later requests with the same headers."""

    def __init__(self, headers: Headers, raw: bytes = b"") -> None:
        self.headers = headers
        self.raw = raw
        self.forwarded = self.forwarded_tail = None
        self.note = None

    @classmethod
    def of_block(cls, block: bytes) -> Self:
        """Return the headers of a valid block of lines, with its blank line."""
        return cls(_parse_block(block), block)

    def forget_parts(self) -> None:
        """Drop all but the computed values, and the block without its credential.

        For a request that lasts hours: a token is most of a block, and is not needed again. The note about
        the sender is dropped too. Otherwise a next request without the credential would have the same block,
        and be taken for the same sender. The forwarded headers are dropped as well, since they are sent.
        """
        if self.raw:
            self.note = None
            self.forwarded = self.forwarded_tail = None
            self.raw = _CREDENTIAL.sub(b"", self.raw)
            for name in ("headers", "by_name"):
                with suppress(AttributeError):
                    delattr(self, name)

    def __getattr__(self, name: str) -> object:
        # Called only for an empty slot.
        if name == "headers":
            self.headers = _parse_block(self.raw)
        elif name == "by_name":
            found: dict[bytes, list[bytes]] = {}
            for header, value in self.headers:
                found.setdefault(header, []).append(value)
            self.by_name = found
        elif name == "connection":
            # An empty set takes 216 bytes, and most sets are empty.
            self.connection = frozenset(connection_tokens(self.headers)) or _NO_TOKENS
        elif name == "body_length":
            self.body_length = None if b"transfer-encoding" in self.by_name else self._length()
        elif name == "upgrade":
            asked = self.by_name.get(b"upgrade")
            meant = asked is not None and len(asked) == 1 and asked[0].lower() in UPGRADES
            self.upgrade = asked[0] if asked and meant and b"upgrade" in self.connection else None
        elif name == "only_asks":
            self.only_asks = self.body_length == 0 and self.upgrade is None
        elif name == "persistent":
            self.persistent = self.upgrade is None and b"close" not in self.connection
        elif name == "lines":
            self.lines = lines_of(self.headers)
        else:
            raise AttributeError(name)
        return object.__getattribute__(self, name)

    def _length(self) -> int:
        lengths = self.by_name.get(b"content-length")
        return int(lengths[0]) if lengths else 0


class RequestHead:
    """The head of a request. Immutable; equal to one with the same method, target and headers."""

    __slots__ = ("fields", "line", "method", "own", "target")

    def __init__(
        self,
        method: bytes,
        target: bytes,
        fields: Fields,
        own: tuple[bytes, ...] = (),
        line: bytes | None = None,
    ) -> None:
        """`own` holds canonical lines that the proxy adds before the headers.

        They stay in separate pieces, which many heads share: a joined copy would cost memory for each open
        request. `line` is the `request_line` of this method and target, if it is known.
        """
        self.method = method
        self.target = target
        self.fields = fields
        self.own = own
        self.line = line
        """Its `request_line`, once computed; reused by heads with the same line and other headers."""

    @classmethod
    def of(cls, method: bytes, target: bytes, headers: Headers = (), own: tuple[bytes, ...] = ()) -> Self:
        """Return the head of a request whose headers are not shared."""
        return cls(method, target, Fields(headers), own)

    @property
    def headers(self) -> Headers:
        """All headers in their order."""
        if self.own:
            return _parse_lines(b"".join(self.own)) + self.fields.headers
        return self.fields.headers

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of a header; `name` is lower-case."""
        values = self.header_values(name)
        return values[0] if values else None

    def header_values(self, name: bytes) -> list[bytes]:
        """Return all values of a header, one per line; `name` is lower-case."""
        if self.own:
            return [value for found, value in self.headers if found == name]
        return self.fields.by_name.get(name, [])

    @property
    def body_length(self) -> int | None:
        """The body's length: 0 for none, None if it is chunked."""
        return self.fields.body_length

    @property
    def upgrade(self) -> bytes | None:
        """The protocol of a requested upgrade; see Fields."""
        return self.fields.upgrade

    def encode(self) -> bytes:
        """Return the canonical bytes; raises HeadError for a part that no head can hold."""
        line = self.line
        if line is None:
            line = self.line = request_line(self.method, self.target)
        return request_bytes(line, self.own, self.fields)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Parse canonical bytes; raises HeadError for any other form, and for an ambiguous body length."""
        if len(data) > HEAD_BYTES_MAX:
            raise _too_large(data)
        match = _CANONICAL_REQUEST.match(data)
        if match is None:
            raise HeadError("the head is not in canonical form")
        line, method, target, own = match.groups()
        block = data[match.end() :]
        fields = _remembered(block) if len(block) <= BLOCK_REMEMBERED_BYTES_MAX else _canonical_fields(block)
        return cls(method, target, fields, (own,) if own else (), line)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RequestHead):
            return NotImplemented
        return (self.method, self.target, self.headers) == (other.method, other.target, other.headers)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        # Names only: a head in a log or a traceback must not show a token.
        names = [name.decode("ascii", "replace") for name, _ in self.headers]
        return f"<RequestHead {self.method!r} {self.target!r} {names}>"


class ResponseHead:
    """The head of an answer: a final one, or a 101. Immutable; equal to one of the same parts."""

    __slots__ = ("_encoded", "_headers", "body_length", "passes", "reason", "status")

    body_length: int | None
    """The body's length by the headers alone; None if it is chunked, or ends with the connection."""
    passes: bytes | None
    """The head's bytes without the usual connection headers, if that is the only rewriting it can need. None
    if another
    header needs rewriting (`proxy.message.hops`), and for a 101.
    """

    def __init__(
        self, status: int, reason: bytes, body_length: int | None, encoded: bytes, passes: bytes | None
    ) -> None:
        """Build a head from canonical bytes, which were validated before."""
        self.status = status
        self.reason = reason
        self.body_length = body_length
        self.passes = passes
        self._headers: Headers | None = None
        self._encoded: bytes | None = encoded

    @classmethod
    def of(cls, status: int, reason: bytes = b"", headers: Headers = ()) -> Self:
        """Return a head with these headers; derived values are computed on access."""
        head = cls.__new__(cls)
        head.status = status
        head.reason = reason
        head._headers = headers
        head._encoded = None
        return head

    def __getattr__(self, name: str) -> object:
        # Called only for an empty slot.
        if name == "body_length":
            self.body_length = None
            if self.header(b"transfer-encoding") is None and (length := self.header(b"content-length")):
                self.body_length = int(length)
            return self.body_length
        if name == "passes":
            self.passes = None if self.status == 101 else passing(self.encode())
            return self.passes
        raise AttributeError(name)

    @property
    def headers(self) -> Headers:
        """All headers in their order."""
        if self._headers is None:
            assert self._encoded is not None, "a head has headers or bytes"
            start = self._encoded.index(b"\n") + 1
            self._headers = _parse_lines(self._encoded[start:-2])
        return self._headers

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of a header; `name` is lower-case."""
        for found, value in self.headers:
            if found == name:
                return value
        return None

    def header_values(self, name: bytes) -> list[bytes]:
        """Return all values of a header, one per line; `name` is lower-case."""
        return [value for found, value in self.headers if found == name]

    def has_body(self, request_method: bytes) -> bool:
        """Whether a body may follow: not after HEAD, nor with 1xx, 204 and 304, even if announced."""
        return self.status not in BODILESS_STATUSES and request_method != b"HEAD"

    def encode(self) -> bytes:
        """Return the canonical bytes; raises HeadError for a part that no head can hold."""
        if self._encoded is None:
            line = b"HTTP/1.1 %d %s\r\n" % (self.status, self.reason)
            if _WRITABLE_STATUS.fullmatch(line) is None:
                raise HeadError("a part of the head holds a byte that no head can carry")
            encoded = b"%s%s\r\n" % (line, lines_of(self.headers))
            if len(encoded) > ANSWER_HEAD_BYTES_MAX:
                raise _too_large(encoded, ANSWER_HEAD_BYTES_MAX)
            self._encoded = encoded
        return self._encoded

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Parse canonical bytes; raises HeadError for any other form, and for an ambiguous body length."""
        if len(data) > ANSWER_HEAD_BYTES_MAX:
            raise _too_large(data, ANSWER_HEAD_BYTES_MAX)
        match = _PLAIN_RESPONSE.fullmatch(data)
        if match is None:
            return cls._decode_any(data)
        status, reason, length = match.groups()
        return cls(int(status), reason, None if length is None else int(length), data, data)

    @classmethod
    def _decode_any(cls, data: bytes) -> Self:
        if data.count(b"\n") - 2 > HEADER_COUNT_MAX:
            raise HeadError(f"the head has more than {HEADER_COUNT_MAX} headers")
        match = _CANONICAL_RESPONSE.fullmatch(data)
        if match is None:
            raise HeadError("the head is not in canonical form")
        framing = FRAMING_LINES.findall(data)
        check_framing(framing)
        lengths = [int(value) for name, value in framing if name == b"content-length"]
        status = int(match[1])
        # Every decoded answer is forwarded, so this is computed now.
        passes = None if status == 101 else passing(data)
        if passes is None:
            check_connection(data)
        return cls(status, match[2], lengths[0] if lengths else None, data, passes)

    def without_hop(self) -> ResponseHead | None:
        """Return the same answer without connection headers, if it `passes`; else None."""
        passes = self.passes
        if passes is None:
            return None
        if passes is self._encoded:
            return self
        return ResponseHead(self.status, self.reason, self.body_length, passes, passes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ResponseHead):
            return NotImplemented
        return (self.status, self.reason, self.headers) == (other.status, other.reason, other.headers)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        names = [name.decode("ascii", "replace") for name, _ in self.headers]
        return f"<ResponseHead {self.status} {self.reason!r} {names}>"


def request_line(method: bytes, target: bytes) -> bytes:
    """Return the first line of a request; raises HeadError for a part that no head can hold.

    This is the last defence against a line break that smuggles in a header or a head. The header lines are
    checked where they are written, once for all requests that share them.
    """
    line = b"%s %s HTTP/1.1\r\n" % (method, target)
    if _REQUEST_LINE.fullmatch(line) is None:
        raise HeadError("a part of the head holds a byte that no head can carry")
    return line


def request_bytes(line: bytes, own: tuple[bytes, ...], fields: Fields) -> bytes:
    """Return the canonical bytes of a request: its `request_line`, the proxy's own lines, and its headers.

    Raises HeadTooLarge, and HeadError for a header that no head can hold.
    """
    encoded = b"".join((line, *own, fields.lines, b"\r\n"))
    if len(encoded) > HEAD_BYTES_MAX:
        raise _too_large(encoded)
    return encoded


def line(name: bytes, value: str) -> bytes:
    """Return a canonical line that the proxy adds; raises HeadError for a value that no line can hold."""
    if not (value.isascii() and value.isprintable()):
        raise HeadError("a value holds a byte that no head can carry")
    return b"%s: %s\r\n" % (name, value.encode("ascii"))


def connection_tokens(headers: Headers) -> set[bytes]:
    """Return the options in the Connection headers, in lower case."""
    return {
        token.strip(b" \t")
        for name, value in headers
        if name == b"connection"
        for token in value.lower().split(b",")
    }


def check_connection(canonical: bytes) -> None:
    """Refuse an answer whose Connection headers exceed CONNECTION_BYTES_MAX bytes; raises HeadError."""
    size = sum(map(len, _CONNECTION_LINES.findall(canonical)))
    if size > CONNECTION_BYTES_MAX:
        raise HeadError(
            f"the Connection headers of the answer have {size} bytes, {CONNECTION_BYTES_MAX} is the limit"
        )


def check_switch(head: ResponseHead, asked: bytes | None) -> None:
    """Refuse a 101 that does not switch to exactly the requested protocol; raises HeadError.

    The bytes after a 101 are forwarded unread, so both sides must agree on their protocol. The client checks
    the key and the subprotocol of a WebSocket: kubectl falls back to SPDY if they are wrong.
    """
    if asked is None:
        raise HeadError("a 101 that the request did not ask for")
    if b"upgrade" not in connection_tokens(head.headers):
        raise HeadError("the 101 lacks Connection: Upgrade")
    if [protocol.lower() for protocol in head.header_values(b"upgrade")] != [asked.lower()]:
        raise HeadError("the 101 does not change to the one protocol that the request asked for")
    if any(name in FRAMING_NAMES for name, _ in head.headers):
        raise HeadError("the 101 gives the length of a body")


def check_framing(headers: Headers | list[tuple[bytes, bytes]]) -> None:
    """Refuse headers that leave the body's length ambiguous; raises HeadError.

    Two lengths, even equal ones, a length beside a transfer coding, a length that is not plain digits, any
    coding but `chunked`: for each, some pair of servers disagrees, and that gap is request smuggling.
    """
    framing = [header for header in headers if header[0] in FRAMING_NAMES]
    if not framing:
        return
    if len(framing) > 1:
        raise HeadError("the body's length is given more than once")
    name, value = framing[0]
    if name == b"content-length":
        if not value.isdigit() or len(value) > LENGTH_DIGITS_MAX:
            raise HeadError("Content-Length is not a plain number")
    elif value != b"chunked":
        raise HeadError("the only Transfer-Encoding served is chunked")


def lines_of(headers: Headers) -> bytes:
    """Return the canonical lines of unchecked headers; raises HeadError."""
    lines = b"".join([b"%s: %s\r\n" % header for header in headers])
    if _WRITABLE_FIELDS.fullmatch(lines) is None or lines.count(b"\n") != len(headers):
        raise HeadError("a part of the head holds a byte that no head can carry")
    return lines


def _parse_lines(lines: bytes) -> Headers:
    """Return the headers of canonical lines."""
    pairs = [line.partition(b": ") for line in lines.split(b"\r\n")]
    return tuple([(name, value) for name, _, value in pairs[:-1]])


def _parse_block(block: bytes) -> Headers:
    """Return the headers of valid lines in a client's form."""
    return tuple([(name.lower(), value.strip(b" \t")) for name, value in _FIELD.findall(block)])


def _canonical_fields(block: bytes) -> Fields:
    """Parse canonical lines with their blank line; raises HeadError."""
    if block.count(b"\n") - 1 > HEADER_COUNT_MAX:
        raise HeadError(f"the head has more than {HEADER_COUNT_MAX} headers")
    if _CANONICAL_FIELDS.fullmatch(block) is None:
        raise HeadError("the head is not in canonical form")
    fields = Fields(_parse_lines(block[:-2]))
    check_framing(fields.headers)
    return fields


_remembered = lru_cache(maxsize=BLOCKS_REMEMBERED_MAX)(_canonical_fields)


def _too_large(data: bytes, bytes_max: int = HEAD_BYTES_MAX) -> HeadTooLarge:
    return HeadTooLarge(f"the head has {len(data)} bytes, {bytes_max} is the limit")
