"""Request and response heads, and the one form of bytes in which they travel between hub and relay.

A head is what stands before a body: the first line and the headers. Names are kept in lower case, in their
order and with their repetitions, since Kubernetes cares for both (a line per group, a line per subprotocol).

`encode` writes the canonical form: HTTP/1.1, names in lower case, one ": ", nothing around a value. `decode`
takes that form and no other, so that decode(encode(h)) == h and encode(decode(b)) == b: there is no second
way to read these bytes. What a client or an API server sends is not canonical; `proxy.http` reads that.
"""

from __future__ import annotations

import re
from typing import Self

import attrs

Headers = tuple[tuple[bytes, bytes], ...]

# kube-apiserver's own limit (MaxHeaderBytes); kubectl sends targets of 60 KB for a long exec.
HEAD_BYTES_MAX = 1 << 20
# A real request has some 20. Without a bound 1 MiB of two-byte headers is a second of work per head.
HEADER_COUNT_MAX = 512

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
# Visible ASCII and a leading "/": origin form only, and without "#" no fragment ever travels.
TARGET = rb"/[\x21\x22\x24-\x7e]*+"
# obs-text passes, since it is somebody's UTF-8; every control but the tab is refused.
VALUE = rb"[\t\x20-\x7e\x80-\xff]*+"
# Digits of ASCII, in so few places that the number is exact in every language that may read it.
CONTENT_LENGTH = re.compile(rb"[0-9]{1,18}")

_NAME = rb"[!#$%&'*+\-.^_`|~0-9a-z]++"
_FIELDS = rb"((?:" + _NAME + rb": " + VALUE + rb"\r\n)*+)\r\n"
_CANONICAL_REQUEST = re.compile(rb"(" + TOKEN + rb"{1,64}+) (" + TARGET + rb") HTTP/1\.1\r\n" + _FIELDS)
_CANONICAL_RESPONSE = re.compile(rb"HTTP/1\.1 ([1-9][0-9]{2}) (" + VALUE + rb")\r\n" + _FIELDS)


class HeadError(Exception):
    """Bytes that are no head, or a head that cannot be written; the message never holds a header's value."""


class _Head:
    """What both heads share: the list of headers."""

    __slots__ = ()
    headers: Headers

    def header(self, name: bytes) -> bytes | None:
        """Return the first value under a lower-case name."""
        for found, value in self.headers:
            if found == name:
                return value
        return None

    def header_values(self, name: bytes) -> list[bytes]:
        """Return every value under a lower-case name, a line each."""
        return [value for found, value in self.headers if found == name]

    @property
    def upgrade(self) -> bytes | None:
        """The protocol that `Upgrade` names, when `Connection` says that it is meant; None otherwise."""
        token = self.header(b"upgrade")
        return token if token and b"upgrade" in connection_tokens(self.headers) else None


@attrs.frozen
class RequestHead(_Head):
    """The head of a request."""

    method: bytes
    target: bytes
    headers: Headers = ()

    @property
    def body_length(self) -> int | None:
        """How long the body is: 0 when there is none, None when only its end will tell (chunked)."""
        if self.header(b"transfer-encoding") is not None:
            return None
        length = self.header(b"content-length")
        return 0 if length is None else int(length)

    def encode(self) -> bytes:
        """Return the canonical bytes; raises HeadError for a part that no head can hold."""
        line = b"%s %s HTTP/1.1\r\n" % (self.method, self.target)
        return _encoded(line, self.headers, _CANONICAL_REQUEST)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read canonical bytes; raises HeadError for anything else, and for a body framed in two ways."""
        method, target, fields = _match(data, _CANONICAL_REQUEST)
        return cls(method, target, _decode_fields(fields))


@attrs.frozen
class ResponseHead(_Head):
    """The head of an answer: a final one, or a 101."""

    status: int
    reason: bytes = b""
    headers: Headers = ()

    @property
    def body_length(self) -> int | None:
        """How long a body would be by the headers alone; None when only its end will tell."""
        if self.header(b"transfer-encoding") is not None:
            return None
        length = self.header(b"content-length")
        return None if length is None else int(length)

    def has_body(self, request_method: bytes) -> bool:
        """Whether a body may follow: not after HEAD, nor with 1xx, 204 and 304, whatever the headers say."""
        return request_method != b"HEAD" and self.status >= 200 and self.status not in {204, 304}

    def encode(self) -> bytes:
        """Return the canonical bytes; raises HeadError for a part that no head can hold."""
        line = b"HTTP/1.1 %d %s\r\n" % (self.status, self.reason)
        return _encoded(line, self.headers, _CANONICAL_RESPONSE)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read canonical bytes; raises HeadError for anything else, and for a body framed in two ways."""
        status, reason, fields = _match(data, _CANONICAL_RESPONSE)
        return cls(int(status), reason, _decode_fields(fields))


def connection_tokens(headers: Headers) -> set[bytes]:
    """Return the options that the Connection lines name, in lower case."""
    return {
        token.strip(b" \t")
        for name, value in headers
        if name == b"connection"
        for token in value.lower().split(b",")
    }


def check_framing(headers: Headers) -> None:
    """Refuse headers that leave it open where the body ends; raises HeadError.

    Two lengths, even equal ones, a length beside a transfer coding, a length that is not plain digits, any
    coding but `chunked`: each is read in two ways by some pair of servers, and that gap is request smuggling.
    """
    lengths = [value for name, value in headers if name == b"content-length"]
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if len(lengths) + len(codings) > 1:
        raise HeadError("the body's length is given more than once")
    if lengths and CONTENT_LENGTH.fullmatch(lengths[0]) is None:
        raise HeadError("Content-Length is not a plain number")
    if codings and codings[0].lower() != b"chunked":
        raise HeadError("the only Transfer-Encoding served is chunked")


def _encoded(line: bytes, headers: Headers, form: re.Pattern[bytes]) -> bytes:
    data = line + b"".join([b"%s: %s\r\n" % header for header in headers]) + b"\r\n"
    # The last line of defence against a line break, and so a header or a head, smuggled in by a value.
    if form.fullmatch(data) is None or data.count(b"\n") != len(headers) + 2:
        raise HeadError("a part of the head holds a byte that no head can carry")
    if len(data) > HEAD_BYTES_MAX:
        raise HeadError(f"the head has {len(data)} bytes, {HEAD_BYTES_MAX} is the limit")
    return data


def _match(data: bytes, form: re.Pattern[bytes]) -> tuple[bytes, bytes, bytes]:
    if len(data) > HEAD_BYTES_MAX:
        raise HeadError(f"the head has {len(data)} bytes, {HEAD_BYTES_MAX} is the limit")
    match = form.fullmatch(data)
    if match is None:
        raise HeadError("the head is not in canonical form")
    first, second, fields = match.groups()
    return first, second, fields


def _decode_fields(fields: bytes) -> Headers:
    if fields.count(b"\n") > HEADER_COUNT_MAX:
        raise HeadError(f"the head has more than {HEADER_COUNT_MAX} headers")
    pairs = []
    for line in fields.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b": ")
        if value != value.strip(b" \t"):
            raise HeadError("a value has blanks around it")
        pairs.append((name, value))
    headers = tuple(pairs)
    check_framing(headers)
    return headers
