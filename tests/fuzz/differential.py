"""What the strict reading of HTTP/1.1 is held to: h11, and the rules spelled out a second time.

Each check takes arbitrary bytes and raises AssertionError where the product and its reference differ. A head
is to be accepted exactly when h11 accepts it and none of the rules below speaks against it; so neither can
something slip through, nor is anything refused without a reason. The rules are written by hand, line by line,
and share nothing with the product but its bounds.
"""

from __future__ import annotations

import re

import h11

from proxy.message.body import BodyError, ChunkedBody
from proxy.message.head import HEAD_BYTES_MAX, HEADER_COUNT_MAX, HeadError, RequestHead, ResponseHead
from proxy.message.strict import AnswerLines, BadRequest, BadResponse, read_request_head, read_response_head

END = b"\r\n\r\n"
TOKEN_BYTES = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
HOST_BYTES = frozenset(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ._~-")
DIGITS = frozenset(b"0123456789")
Pairs = list[tuple[bytes, bytes]]


def one_head(data: bytes) -> bytes:
    """Make bytes such as a scanner hands on: they end with the first blank line."""
    return data.partition(END)[0] + END


# -- requests -----------------------------------------------------------------------------------------------


def check_request(data: bytes, other: RequestHead) -> None:
    """Hold the reading of a request's head to the rules and to h11; `other` came before it."""
    raw = one_head(data)
    expected = h11_request(raw) if obeys_the_request_rules(raw) else None
    for last in (None, other.fields):
        try:
            head = read_request_head(raw, last)
        except BadRequest:
            head = None
        assert head == expected, (raw, head, expected)
    if head is not None and expected is not None:
        assert read_request_head(raw, head.fields) == expected
        assert RequestHead.decode(head.encode()) == expected
        # In words that h11 would use.
        names = [name for name, _ in expected.headers]
        chunked = b"transfer-encoding" in names
        length = dict(expected.headers).get(b"content-length", b"0")
        assert head.body_length == (None if chunked else int(length))


def h11_request(raw: bytes) -> RequestHead | None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=2 * HEAD_BYTES_MAX)
    connection.receive_data(raw)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError:
        return None
    if not isinstance(event, h11.Request):
        return None
    assert event.http_version == b"1.1", raw
    return RequestHead.of(event.method, event.target, tuple(event.headers))


def obeys_the_request_rules(raw: bytes) -> bool:
    line, *fields = raw.removesuffix(END).split(b"\r\n")
    parts = line.split(b" ")
    if len(parts) != 3 or parts[2] != b"HTTP/1.1":
        return False
    method, target, _ = parts
    if not 1 <= len(method) <= 64 or not TOKEN_BYTES.issuperset(method) or method == b"CONNECT":
        return False
    if target[:1] != b"/" or any(byte <= 0x20 or byte >= 0x7F or byte == ord("#") for byte in target):
        return False
    pairs = plain_pairs(fields)
    if pairs is None or not has_one_length(pairs):
        return False
    hosts = [value for name, value in pairs if name == b"host"]
    expects = [value.lower() for name, value in pairs if name == b"expect"]
    return len(hosts) == 1 and is_host(hosts[0]) and all(value == b"100-continue" for value in expects)


def plain_pairs(fields: list[bytes]) -> Pairs | None:
    """The headers, if every line is a token, a colon right behind it, and no control but tabs."""
    if len(fields) > HEADER_COUNT_MAX:
        return None
    pairs = []
    for field in fields:
        name, colon, value = field.partition(b":")
        if not colon or not name or not TOKEN_BYTES.issuperset(name):
            return None
        if any((byte < 0x20 and byte != 0x09) or byte == 0x7F for byte in value):
            return None
        pairs.append((name.lower(), value.strip(b" \t")))
    return pairs


def has_one_length(pairs: Pairs) -> bool:
    lengths = [value for name, value in pairs if name == b"content-length"]
    codings = [value for name, value in pairs if name == b"transfer-encoding"]
    if len(lengths) + len(codings) > 1:
        return False
    if lengths:
        return 1 <= len(lengths[0]) <= 18 and DIGITS.issuperset(lengths[0])
    return not codings or codings == [b"chunked"]


def is_host(host: bytes) -> bool:
    if host[:1] == b"[":
        name, bracket, port = host[1:].partition(b"]")
        if not bracket or not 2 <= len(name) <= 45 or re.fullmatch(rb"[0-9A-Fa-f:.]*", name) is None:
            return False
    else:
        name, colon, number = host.partition(b":")
        port = colon + number
        if not 1 <= len(name) <= 255 or not HOST_BYTES.issuperset(name):
            return False
    return port == b"" or (port[:1] == b":" and 1 <= len(port[1:]) <= 5 and DIGITS.issuperset(port[1:]))


# -- answers ------------------------------------------------------------------------------------------------


# What answers on the same connection had before.
OTHER_ANSWER = b"HTTP/1.1 200 OK\r\nA: b\r\nConnection:close\r\nContent-Length: 1\r\nHawse-A: b\r\n\r\n"


def check_response(data: bytes) -> None:
    """Hold the reading of an answer's head to the rules and to h11."""
    raw = one_head(data)
    expected = h11_response(raw) if obeys_the_response_rules(raw) else None
    try:
        head, is_1_1 = read_response_head(raw)
    except BadResponse:
        assert expected is None, (raw, expected)
        return
    assert expected is not None, (raw, head)
    # What was read before changes nothing, neither its own lines nor those of others.
    known = AnswerLines()
    read_response_head(OTHER_ANSWER, known)
    for _ in range(2):
        again, again_1_1 = read_response_head(raw, known)
        assert (again, again_1_1, again.body_length, again.passes) == (
            head,
            is_1_1,
            head.body_length,
            head.passes,
        )
    assert head == expected[0], (raw, head, expected)
    assert is_1_1 == expected[1], raw
    # The bytes that cross the tunnel say the same once more, and so do the same headers one by one.
    again = ResponseHead.decode(head.encode())
    assert again == head
    # And what is found in the lines, as they are read, is what is found in the whole.
    assert again.passes == head.passes
    plain = ResponseHead.of(head.status, head.reason, head.headers)
    assert plain.encode() == head.encode()
    assert again.body_length == head.body_length == plain.body_length


def h11_response(raw: bytes) -> tuple[ResponseHead, bool] | None:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=2 * HEAD_BYTES_MAX)
    # With an Upgrade, so that a 101 is an answer like others.
    upgrade = [(b"host", b"a"), (b"upgrade", b"x"), (b"connection", b"upgrade")]
    connection.send(h11.Request(method=b"GET", target=b"/", headers=upgrade))
    connection.send(h11.EndOfMessage())
    connection.receive_data(raw)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError:
        return None
    if not isinstance(event, h11.Response | h11.InformationalResponse):
        return None
    head = ResponseHead.of(event.status_code, event.reason, tuple(event.headers))
    return head, event.http_version == b"1.1"


def obeys_the_response_rules(raw: bytes) -> bool:
    line, *fields = raw.removesuffix(END).split(b"\r\n")
    version, status, reason = line[:9], line[9:12], line[12:]
    if version not in {b"HTTP/1.0 ", b"HTTP/1.1 "}:
        return False
    if len(status) != 3 or not DIGITS.issuperset(status) or status[:1] == b"0":
        return False
    if reason and reason[:1] != b" ":
        return False
    if any((byte < 0x20 and byte != 0x09) or byte == 0x7F for byte in reason):
        return False
    pairs = plain_pairs(fields)
    return pairs is not None and has_one_length(pairs)


# -- canonical heads ----------------------------------------------------------------------------------------


def check_canonical(data: bytes) -> None:
    """Canonical bytes are read back to themselves, and whatever is read is what a plain reading finds."""
    for kind in (RequestHead, ResponseHead):
        try:
            head = kind.decode(data)
        except HeadError:
            continue
        assert head.encode() == data
        line, *fields = data.removesuffix(b"\r\n").split(b"\r\n")[:-1]
        pairs = plain_pairs(fields)
        assert pairs is not None, data
        assert list(head.headers) == pairs
        assert all(name == name.lower() for name, _ in pairs)
        assert [name + b": " + value for name, value in pairs] == fields
        if isinstance(head, RequestHead):
            assert line == b"%s %s HTTP/1.1" % (head.method, head.target)
        else:
            assert line == b"HTTP/1.1 %d %s" % (head.status, head.reason)


# -- chunks -------------------------------------------------------------------------------------------------


def check_chunks(wire: bytes, sizes: list[int]) -> None:
    """Hold the reading of a chunked body to h11's, however it is cut into pieces of these sizes."""
    pieces = cut(wire, sizes)
    try:
        expected = chunks_by_h11(pieces)
    except h11.RemoteProtocolError:
        expected = None
    try:
        found = chunks_by_us(pieces)
    except BodyError:
        found = None
    assert found == expected, (pieces, found, expected)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """Cut bytes into pieces of these sizes, and the rest."""
    pieces, at = [], 0
    for size in [*sizes, len(data)]:
        if piece := data[at : at + size]:
            pieces.append(piece)
        at += size
    return pieces


Body = tuple[bytes, bool, bytes, bool]
"""The body, whether its end was reached, what lies behind it, whether it had trailers."""


def chunks_by_us(pieces: list[bytes]) -> Body:
    body = ChunkedBody()
    data = b""
    for number, piece in enumerate(pieces):
        data += body.feed(piece)
        if body.reached:
            return data, True, body.rest + b"".join(pieces[number + 1 :]), body.trailers
    return data, False, b"", False


def chunks_by_h11(pieces: list[bytes]) -> Body:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert isinstance(connection.next_event(), h11.Request)
    data = b""
    for number, piece in enumerate(pieces):
        connection.receive_data(piece)
        while isinstance(event := connection.next_event(), h11.Data):
            data += event.data
        if isinstance(event, h11.EndOfMessage):
            rest = connection.trailing_data[0] + b"".join(pieces[number + 1 :])
            return data, True, rest, bool(event.headers)
    return data, False, b"", False
