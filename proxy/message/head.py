"""Request and response heads, and the one form of bytes in which they travel between hub and relay.

A head is what stands before a body: the first line and the headers. Names are kept in lower case, in their
order and with their repetitions, since Kubernetes cares for both (a line per group, a line per subprotocol).

`encode` writes the canonical form: HTTP/1.1, names in lower case, one ": ", nothing around a value. `decode`
takes that form and no other, so that decode(encode(h)) == h and encode(decode(b)) == b: there is no second
way to read these bytes. What a client or an API server sends is not canonical; `proxy.message.strict` reads
that.

A client sends the same headers with each request of a connection, so the block of them is understood once:
`Fields` keeps what was worked out of it, and a request's head is a first line, a few lines of our own, and a
`Fields`. Answers differ in every head (an id, a date), so a `ResponseHead` just keeps its bytes, and its
headers are taken apart only for whoever asks for them.
"""

from __future__ import annotations

import re
from contextlib import suppress
from functools import lru_cache
from typing import Self

from proxy.message.hops import DEALT_WITH, passing

Headers = tuple[tuple[bytes, bytes], ...]

# kube-apiserver's own limit (MaxHeaderBytes); kubectl sends targets of 60 KB for a long exec.
HEAD_BYTES_MAX = 1 << 20
# What takes a task a fifth of a millisecond to read; of longer heads of requests one is read in a pass.
LONG_HEAD_BYTES = 16 * 1024
# Of an answer nobody asks for more: Envoy takes 60 KiB, and most others 8 or 16. A relay, or a backend behind
# a proxy path, can end hundreds at once, and to take 1 MiB apart, rewrite it and send it on takes 10 ms.
ANSWER_HEAD_BYTES_MAX = 64 * 1024
# A real request has some 20; Apache takes 100, haproxy 101, node 2,000. Without a bound 1 MiB of headers of
# four bytes is a second of work per head.
HEADER_COUNT_MAX = 512
# What Connection says, a handful of options. 1 MiB of them would hold everybody up for 0.1 s, a stranger's
# request as well.
CONNECTION_BYTES_MAX = 4096
# What a relay remembers of its agents' header blocks: an agent has one or two, of some 500 bytes, and no
# credential is in them (the hub lets none cross). Beyond the first bound the oldest is worked out again,
# beyond the second each; together they are 1 MiB of blocks, and some four times that in objects.
BLOCKS_REMEMBERED_MAX = 256
BLOCK_REMEMBERED_BYTES_MAX = 4096

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
# Visible ASCII and a leading "/": origin form only, and without "#" no fragment ever travels.
TARGET = rb"/[\x21\x22\x24-\x7e]*+"
# obs-text passes, since it is somebody's UTF-8; every control but the tab is refused.
VALUE = rb"[\t\x20-\x7e\x80-\xff]*+"
# Only in a block that `proxy.message.strict` has let pass: there each line feed but the last has a header
# behind it, and so has the start.
_FIELD = re.compile(rb"([^:\r\n]++):([^\r]*+)\r\n")
_CREDENTIAL = re.compile(rb"^authorization:[^\r]*+\r\n", re.IGNORECASE | re.MULTILINE)
# A Content-Length: digits of ASCII, in so few places that the number is exact in every language that may read
# it. (`isdigit` of bytes knows no others.)
LENGTH_DIGITS_MAX = 18

_NAME = rb"[!#$%&'*+\-.^_`|~0-9a-z]++"
# A value with nothing around it.
_BARE = rb"(?:[\x21-\x7e\x80-\xff]" + VALUE + rb"(?<![\t ]))?+"
_REQUEST_LINE = re.compile(TOKEN + rb"{1,64}+ " + TARGET + rb" HTTP/1\.1\r\n")
# The lines that the hub writes first, which differ in each request, are apart from those that do not.
_CANONICAL_REQUEST = re.compile(
    rb"((" + TOKEN + rb"{1,64}+) (" + TARGET + rb") HTTP/1\.1\r\n)"
    rb"((?:audit-id: " + _BARE + rb"\r\n)?+(?:x-forwarded-for: " + _BARE + rb"\r\n)?+)"
)  # fmt: skip
_CANONICAL_FIELDS = re.compile(rb"(?:" + _NAME + rb": " + _BARE + rb"\r\n)*+\r\n")
_CANONICAL_RESPONSE = re.compile(
    rb"HTTP/1\.1 ([1-9][0-9]{2}) (" + VALUE + rb")\r\n" + _CANONICAL_FIELDS.pattern
)
# What nearly every answer is: it passes as it is, and one line at most says how long its body is. Both halves
# of its lines are bounded, so that it never has more than HEADER_COUNT_MAX; one that has goes the long way.
_PASSING_LINES = (
    rb"(?:(?!content-length:|%b)%b: %b\r\n){0,%d}+"
    % (DEALT_WITH, _NAME, _BARE, HEADER_COUNT_MAX // 2 - 1)
)  # fmt: skip
_PLAIN_RESPONSE = re.compile(
    rb"HTTP/1\.1 ([2-9][0-9]{2}) (%b)\r\n%b(?:content-length: ([0-9]{1,%d})\r\n)?+%b\r\n"
    % (VALUE, _PASSING_LINES, LENGTH_DIGITS_MAX, _PASSING_LINES)
)
_WRITABLE_FIELDS = re.compile(rb"(?:" + _NAME + rb": " + VALUE + rb"\r\n)*+")
_WRITABLE_STATUS = re.compile(rb"HTTP/1\.1 [1-9][0-9]{2} " + VALUE + rb"\r\n")
_NO_TOKENS: frozenset[bytes] = frozenset()
FRAMING_NAMES = frozenset({b"content-length", b"transfer-encoding"})
# To ask by these again changes nothing (RFC 9110 9.2.1), so a lost answer is one to ask for again.
SAFE_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS"})
# The protocols that Kubernetes changes to on a connection, in lower case. Behind any other one, raw bytes
# would follow in a protocol that neither policy nor trail knows.
UPGRADES = frozenset({b"websocket", b"spdy/3.1"})
# Of answers that end with their head, whatever it says.
BODILESS_STATUSES = frozenset({*range(100, 200), 204, 304})
# In whole canonical bytes, where a line stands behind each line feed but the last.
_CONNECTION_LINES = re.compile(rb"\nconnection: ([^\r]*+)")
FRAMING_LINES = re.compile(rb"\n(content-length|transfer-encoding): ([^\r]*+)")


class HeadError(Exception):
    """Bytes that are no head, or a head that cannot be written; the message never holds a header's value."""


class HeadTooLarge(HeadError):
    """A head of too many bytes; the message says how many."""


class Fields:
    """The headers of a request, and what follows from them. Shared by the requests that have the same ones.

    What is not set yet is worked out when it is asked for, and costs no more than an attribute from then on.
    """

    __slots__ = (
        "body_length",
        "by_name",
        "connection",
        "crossing",
        "crossing_tail",
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
    """The block as a client sent it, with the blank line; b"" where nobody did, and `headers` are all."""
    by_name: dict[bytes, list[bytes]]
    """The values under each name, in their order."""
    connection: frozenset[bytes]
    """The options that Connection names, in lower case."""
    body_length: int | None
    """How long the body is: 0 when there is none, None when only its end will tell (chunked)."""
    upgrade: bytes | None
    """The one protocol that `Upgrade` names, if it is one of UPGRADES and `Connection` says that it is meant.

    None otherwise: a server may ignore the header (RFC 9110 7.8), and then the request is a plain one.
    """
    only_asks: bool
    """There is no body, and no other protocol is asked for."""
    persistent: bool
    """Another request may follow on its connection to a server, as far as it says."""
    lines: bytes
    """The canonical lines; asking for them raises HeadError for a header that no head can hold."""
    crossing: Fields | None
    """What of them crosses to the relay; `proxy.message.rewrite` keeps it here."""
    crossing_tail: Fields | None
    """The same where the target is a proxy path's tail."""
    note: object
    """What whoever serves the connection made of them, for the next request that has the same ones."""

    def __init__(self, headers: Headers, raw: bytes = b"") -> None:
        self.headers = headers
        self.raw = raw
        self.crossing = self.crossing_tail = None
        self.note = None

    @classmethod
    def of_block(cls, block: bytes) -> Self:
        """Return the headers of a block of lines, with the blank one behind them, that was found in order."""
        return cls(_parts(block), block)

    def forget_parts(self) -> None:
        """Hold no more than what was worked out and, where there is a block, that without its credential.

        For a request that takes hours: a token makes most of a block, and nobody asks for it a second time.
        What was noted of its sender goes as well: a next request that lacks just the credential has this
        block, and would be taken for theirs. So does what crosses to the relay, which has crossed.
        """
        if self.raw:
            self.note = None
            self.crossing = self.crossing_tail = None
            self.raw = _CREDENTIAL.sub(b"", self.raw)
            for name in ("headers", "by_name"):
                with suppress(AttributeError):
                    delattr(self, name)

    def __getattr__(self, name: str) -> object:
        # Only for a slot that is empty.
        if name == "headers":
            self.headers = _parts(self.raw)
        elif name == "by_name":
            found: dict[bytes, list[bytes]] = {}
            for header, value in self.headers:
                found.setdefault(header, []).append(value)
            self.by_name = found
        elif name == "connection":
            # An empty set has 216 bytes, and most are empty.
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
    """The head of a request. It does not change, and equals one of the same method, target and headers."""

    __slots__ = ("fields", "line", "method", "own", "target")

    def __init__(
        self,
        method: bytes,
        target: bytes,
        fields: Fields,
        own: tuple[bytes, ...] = (),
        line: bytes | None = None,
    ) -> None:
        """With `own`, canonical lines of our own (`line`) stand before the headers.

        They come in the pieces that they were made in, which many heads share: to join them is to hold a
        copy, with each request under way. `line` is the `request_line` of just this method and target, where
        it is known.
        """
        self.method = method
        self.target = target
        self.fields = fields
        self.own = own
        self.line = line
        """Its `request_line`, once that is known: for whoever asks for the same with other headers."""

    @classmethod
    def of(cls, method: bytes, target: bytes, headers: Headers = (), own: tuple[bytes, ...] = ()) -> Self:
        """Return the head of a request whose headers no other one has."""
        return cls(method, target, Fields(headers), own)

    @property
    def headers(self) -> Headers:
        """All headers in their order."""
        if self.own:
            return _taken_apart(b"".join(self.own)) + self.fields.headers
        return self.fields.headers

    def header(self, name: bytes) -> bytes | None:
        """Return the first value under a lower-case name."""
        values = self.header_values(name)
        return values[0] if values else None

    def header_values(self, name: bytes) -> list[bytes]:
        """Return every value under a lower-case name, a line each."""
        if self.own:
            return [value for found, value in self.headers if found == name]
        return self.fields.by_name.get(name, [])

    @property
    def body_length(self) -> int | None:
        """How long the body is: 0 when there is none, None when only its end will tell (chunked)."""
        return self.fields.body_length

    @property
    def upgrade(self) -> bytes | None:
        """The protocol that it asks for in place of HTTP; see Fields."""
        return self.fields.upgrade

    def encode(self) -> bytes:
        """Return the canonical bytes; raises HeadError for a part that no head can hold."""
        line = self.line
        if line is None:
            line = self.line = request_line(self.method, self.target)
        return request_bytes(line, self.own, self.fields)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read canonical bytes; raises HeadError for anything else, and for a body framed in two ways."""
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
        # No values: a head that is looked at in a log or a traceback must not show a token.
        names = [name.decode("ascii", "replace") for name, _ in self.headers]
        return f"<RequestHead {self.method!r} {self.target!r} {names}>"


class ResponseHead:
    """The head of an answer: a final one, or a 101. It does not change, and equals one of the same parts."""

    __slots__ = ("_encoded", "_headers", "body_length", "passes", "reason", "status")

    body_length: int | None
    """How long a body would be by the headers alone; None when only its end will tell."""
    passes: bytes | None
    """Its bytes without the usual words about one connection, if that is all that is ever to be done with it;
    None where one of its other headers is dealt with (`proxy.message.hops`), and for a 101."""

    def __init__(
        self, status: int, reason: bytes, body_length: int | None, encoded: bytes, passes: bytes | None
    ) -> None:
        """Of canonical bytes that somebody has read already; they are not checked again."""
        self.status = status
        self.reason = reason
        self.body_length = body_length
        self.passes = passes
        self._headers: Headers | None = None
        self._encoded: bytes | None = encoded

    @classmethod
    def of(cls, status: int, reason: bytes = b"", headers: Headers = ()) -> Self:
        """Return the head of these headers; what follows from them is worked out when it is asked for."""
        head = cls.__new__(cls)
        head.status = status
        head.reason = reason
        head._headers = headers
        head._encoded = None
        return head

    def __getattr__(self, name: str) -> object:
        # Only for a slot that is empty.
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
            self._headers = _taken_apart(self._encoded[start:-2])
        return self._headers

    def header(self, name: bytes) -> bytes | None:
        """Return the first value under a lower-case name."""
        for found, value in self.headers:
            if found == name:
                return value
        return None

    def header_values(self, name: bytes) -> list[bytes]:
        """Return every value under a lower-case name, a line each."""
        return [value for found, value in self.headers if found == name]

    def has_body(self, request_method: bytes) -> bool:
        """Whether a body may follow: not after HEAD, nor with 1xx, 204 and 304, whatever the headers say."""
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
        """Read canonical bytes; raises HeadError for anything else, and for a body framed in two ways."""
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
        # Whoever reads an answer passes it on.
        passes = None if status == 101 else passing(data)
        if passes is None:
            check_connection(data)
        return cls(status, match[2], lengths[0] if lengths else None, data, passes)

    def without_hop(self) -> ResponseHead | None:
        """Return the same answer without what it says about one connection, if it `passes`; else None."""
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

    It is the last line of defence against a line break, and so a header or a head, smuggled in by a part: the
    lines behind are checked where they are written, once for all requests that share them.
    """
    line = b"%s %s HTTP/1.1\r\n" % (method, target)
    if _REQUEST_LINE.fullmatch(line) is None:
        raise HeadError("a part of the head holds a byte that no head can carry")
    return line


def request_bytes(line: bytes, own: tuple[bytes, ...], fields: Fields) -> bytes:
    """Return the canonical bytes of a request: its `request_line`, lines of our own, and headers.

    Raises HeadTooLarge, and HeadError for a header that no head can hold.
    """
    encoded = b"".join((line, *own, fields.lines, b"\r\n"))
    if len(encoded) > HEAD_BYTES_MAX:
        raise _too_large(encoded)
    return encoded


def line(name: bytes, value: str) -> bytes:
    """Return a canonical line of our own; raises HeadError for a value that no line can hold."""
    if not (value.isascii() and value.isprintable()):
        raise HeadError("a value holds a byte that no head can carry")
    return b"%s: %s\r\n" % (name, value.encode("ascii"))


def connection_tokens(headers: Headers) -> set[bytes]:
    """Return the options that the Connection lines name, in lower case."""
    return {
        token.strip(b" \t")
        for name, value in headers
        if name == b"connection"
        for token in value.lower().split(b",")
    }


def check_connection(canonical: bytes) -> None:
    """Refuse an answer whose Connection lines have more than CONNECTION_BYTES_MAX bytes; raises HeadError."""
    size = sum(map(len, _CONNECTION_LINES.findall(canonical)))
    if size > CONNECTION_BYTES_MAX:
        raise HeadError(
            f"the Connection headers of the answer have {size} bytes, {CONNECTION_BYTES_MAX} is the limit"
        )


def check_switch(head: ResponseHead, asked: bytes | None) -> None:
    """Refuse a 101 that does not change to just the protocol that was asked for; raises HeadError.

    What follows a 101 is passed on unread, so both sides must agree on what it is. The client itself judges
    the key and the subprotocol of a WebSocket: kubectl falls back to SPDY where they are wrong.
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
    """Refuse headers that leave it open where the body ends; raises HeadError.

    Two lengths, even equal ones, a length beside a transfer coding, a length that is not plain digits, any
    coding but `chunked`: each is read in two ways by some pair of servers, and that gap is request smuggling.
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
    """Return the canonical lines of headers that may come from anywhere; raises HeadError."""
    lines = b"".join([b"%s: %s\r\n" % header for header in headers])
    if _WRITABLE_FIELDS.fullmatch(lines) is None or lines.count(b"\n") != len(headers):
        raise HeadError("a part of the head holds a byte that no head can carry")
    return lines


def _taken_apart(lines: bytes) -> Headers:
    """Return the headers of canonical lines."""
    pairs = [line.partition(b": ") for line in lines.split(b"\r\n")]
    return tuple([(name, value) for name, _, value in pairs[:-1]])


def _parts(block: bytes) -> Headers:
    """Return the headers of lines as a client sent them, which were found in order."""
    return tuple([(name.lower(), value.strip(b" \t")) for name, value in _FIELD.findall(block)])


def _canonical_fields(block: bytes) -> Fields:
    """Read canonical lines with the blank one behind them; raises HeadError."""
    if block.count(b"\n") - 1 > HEADER_COUNT_MAX:
        raise HeadError(f"the head has more than {HEADER_COUNT_MAX} headers")
    if _CANONICAL_FIELDS.fullmatch(block) is None:
        raise HeadError("the head is not in canonical form")
    fields = Fields(_taken_apart(block[:-2]))
    check_framing(fields.headers)
    return fields


_remembered = lru_cache(maxsize=BLOCKS_REMEMBERED_MAX)(_canonical_fields)


def _too_large(data: bytes, bytes_max: int = HEAD_BYTES_MAX) -> HeadTooLarge:
    return HeadTooLarge(f"the head has {len(data)} bytes, {bytes_max} is the limit")
