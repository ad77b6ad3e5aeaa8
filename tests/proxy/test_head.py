from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.head import (
    HEAD_BYTES_MAX,
    HEADER_COUNT_MAX,
    Fields,
    HeadError,
    RequestHead,
    ResponseHead,
    connection_tokens,
)

TOKEN_BYTES = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
names = st.lists(st.sampled_from(TOKEN_BYTES), min_size=1, max_size=20).map(bytes)
values = (
    st.lists(st.sampled_from([9, *range(0x20, 0x7F), *range(0x80, 0x100)]), max_size=30)
    .map(bytes)
    .map(lambda value: value.strip(b" \t"))
)
framing = frozenset({b"content-length", b"transfer-encoding"})
headers = st.lists(st.tuples(names.filter(lambda name: name not in framing), values), max_size=12).map(tuple)
targets = st.lists(st.sampled_from([*range(0x21, 0x23), *range(0x24, 0x7F)]), max_size=40).map(
    lambda tail: b"/" + bytes(tail)
)
methods = st.sampled_from([b"GET", b"POST", b"PATCH", b"M-SEARCH"])


@given(methods, targets, headers)
def test_a_request_head_survives_its_bytes(method, target, fields):
    head = RequestHead.of(method, target, fields)
    data = head.encode()
    assert RequestHead.decode(data) == head
    assert RequestHead.decode(data).encode() == data


@given(st.integers(100, 999), values, headers)
def test_a_response_head_survives_its_bytes(status, reason, fields):
    head = ResponseHead.of(status, reason, fields)
    assert ResponseHead.decode(head.encode()) == head


# What an answer has in common with few others, and names that are nearly the same.
peculiar = st.sampled_from(
    [
        (b"content-length", b"7"),
        (b"transfer-encoding", b"chunked"),
        (b"connection", b"keep-alive"),
        (b"connection", b"close, x-y"),
        (b"location", b"/here"),
        (b"hawse-x", b"y"),
        (b"content-lengths", b"7"),
        (b"x-connection", b"close"),
    ]
)


@given(st.sampled_from([101, 103, 200, 204, 403]), st.lists(peculiar | st.tuples(names, values), max_size=8))
def test_what_follows_from_an_answers_head_is_the_same_however_it_came(status, fields):
    made = ResponseHead.of(status, b"OK", tuple(fields))
    if sum(name in framing for name, _ in fields) > 1:
        with pytest.raises(HeadError):
            ResponseHead.decode(made.encode())
        return
    read = ResponseHead.decode(made.encode())
    assert (read.body_length, read.passes) == (made.body_length, made.passes)
    assert (read.passes is read.encode()) == (made.passes is made.encode())


@given(st.binary(max_size=200))
def test_only_a_head_error_comes_out_of_arbitrary_bytes(data):
    for kind in (RequestHead, ResponseHead):
        try:
            head = kind.decode(data)
        except HeadError:
            continue
        assert head.encode() == data


@given(st.data())
def test_a_damaged_head_is_refused_or_is_another_canonical_head(data):
    raw = bytearray(RequestHead.of(b"GET", b"/api/v1/pods?limit=500", ((b"accept", b"*/*"),)).encode())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255))
    try:
        head = RequestHead.decode(bytes(raw))
    except HeadError:
        return
    assert head.encode() == bytes(raw)


@pytest.mark.parametrize(
    "value",
    [b"a\r\nimpersonate-user: root", b"a\nb", b"a\rb", b"a\x00b", b"\x7f", b"a\r\n\r\nGET / HTTP/1.1"],
)
def test_no_value_can_smuggle_a_second_line(value):
    with pytest.raises(HeadError):
        RequestHead.of(b"GET", b"/", ((b"x-a", value),)).encode()
    with pytest.raises(HeadError):
        ResponseHead.of(200, b"OK", ((b"location", value),)).encode()


@pytest.mark.parametrize("target", [b"api/v1", b"*", b"http://evil/api", b"/a b", b"/a#b", b"", b"/\xc3\xa4"])
def test_only_origin_form_targets_are_written(target):
    with pytest.raises(HeadError):
        RequestHead.of(b"GET", target).encode()


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",  # a name in upper case
        b"GET / HTTP/1.1\r\nhost:a\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a \r\n\r\n",
        b"GET / HTTP/1.1\r\nhost:  a\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n ",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\n\n",
    ],
)
def test_there_is_no_second_way_to_write_a_head(raw):
    with pytest.raises(HeadError):
        RequestHead.decode(raw)


@pytest.mark.parametrize(
    "fields",
    [
        b"content-length: 3\r\ncontent-length: 3\r\n",
        b"content-length: 3\r\ntransfer-encoding: chunked\r\n",
        b"content-length: +3\r\n",
        b"content-length: 1_0\r\n",
        "content-length: ٣\r\n".encode(),
        b"content-length: \r\n",
        b"transfer-encoding: xchunked\r\n",
        b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
    ],
)
def test_a_body_framed_in_two_ways_is_refused(fields):
    for line, kind in ((b"POST / HTTP/1.1\r\n", RequestHead), (b"HTTP/1.1 200 OK\r\n", ResponseHead)):
        with pytest.raises(HeadError):
            kind.decode(line + fields + b"\r\n")


def test_a_head_has_bounds():
    with pytest.raises(HeadError, match="limit"):
        RequestHead.of(b"GET", b"/" + b"x" * HEAD_BYTES_MAX).encode()
    with pytest.raises(HeadError, match="limit"):
        RequestHead.decode(b"x" * (HEAD_BYTES_MAX + 1))
    many = RequestHead.of(b"GET", b"/", ((b"a", b"b"),) * (HEADER_COUNT_MAX + 1)).encode()
    with pytest.raises(HeadError, match=str(HEADER_COUNT_MAX)):
        RequestHead.decode(many)


@pytest.mark.parametrize(
    ("kind", "line"), [(RequestHead, b"GET / HTTP/1.1\r\n"), (ResponseHead, b"HTTP/1.1 200 OK\r\n")]
)
def test_too_many_headers_are_not_looked_at(kind, line):
    for field in (b"a: b\r\n", b"A:b\r\n", b"\r\n", b"content-length: 1\r\n"):
        with pytest.raises(HeadError, match=f"more than {HEADER_COUNT_MAX} headers"):
            kind.decode(line + field * (HEADER_COUNT_MAX + 1) + b"\r\n")


@pytest.mark.parametrize("before", [0, 1, HEADER_COUNT_MAX // 2, HEADER_COUNT_MAX - 1])
def test_an_answer_has_so_many_headers_wherever_its_length_stands(before):
    length, other = (b"content-length", b"7"), (b"a", b"b")
    most = (*[other] * before, length, *[other] * (HEADER_COUNT_MAX - 1 - before))
    assert ResponseHead.decode(ResponseHead.of(200, b"", most).encode()).body_length == 7
    with pytest.raises(HeadError, match=str(HEADER_COUNT_MAX)):
        ResponseHead.decode(ResponseHead.of(200, b"", (*most, other)).encode())


def test_the_length_of_a_requests_body():
    def length(*fields: tuple[bytes, bytes]) -> int | None:
        return RequestHead.of(b"POST", b"/", fields).body_length

    assert length() == 0
    assert length((b"content-length", b"12")) == 12
    assert length((b"transfer-encoding", b"chunked")) is None


def test_which_answers_have_a_body():
    assert ResponseHead.of(200).has_body(b"GET")
    assert not ResponseHead.of(200).has_body(b"HEAD")
    assert not any(ResponseHead.of(status).has_body(b"GET") for status in (101, 103, 204, 304))
    assert ResponseHead.of(200).body_length is None
    assert ResponseHead.of(200, b"", ((b"content-length", b"7"),)).body_length == 7


def test_an_upgrade_needs_both_headers():
    connection, upgrade = (b"connection", b"keep-alive, Upgrade"), (b"upgrade", b"SPDY/3.1")
    assert RequestHead.of(b"GET", b"/", (connection, upgrade)).upgrade == b"SPDY/3.1"
    assert RequestHead.of(b"GET", b"/", (upgrade,)).upgrade is None
    assert RequestHead.of(b"GET", b"/", (connection,)).upgrade is None


def test_headers_are_found_by_name_in_their_order():
    fields = ((b"a", b"1"), (b"b", b"2"), (b"a", b"3"))
    head = RequestHead.of(b"GET", b"/", fields)
    assert head.header(b"a") == b"1"
    assert head.header(b"c") is None
    assert head.header_values(b"a") == [b"1", b"3"]
    assert connection_tokens(((b"connection", b"Close, X-A"), (b"connection", b"x-b"))) == {
        b"close",
        b"x-a",
        b"x-b",
    }


def test_headers_whose_parts_were_forgotten_are_worked_out_again() -> None:
    block = b"Host: a\r\nX-A: 1\r\nx-a:2 \r\nConnection: close, Upgrade\r\nUpgrade: spdy\r\n\r\n"
    fields = Fields.of_block(block)
    said = fields.headers, fields.by_name, fields.connection, fields.upgrade
    fields.crossing = fields.crossing_tail = Fields(())
    fields.forget_parts()
    fields.forget_parts()
    assert fields.crossing is fields.crossing_tail is None
    for name in ("headers", "by_name"):
        with pytest.raises(AttributeError):
            object.__getattribute__(fields, name)
    assert (fields.headers, fields.by_name, fields.connection, fields.upgrade) == said
    assert fields.raw == block
    # Of those that nobody has sent there is nothing else to work them out of.
    fields = Fields(said[0])
    fields.forget_parts()
    assert fields.headers == said[0]


@pytest.mark.parametrize(
    "line", [b"Authorization: Bearer abc", b"authorization:x", b"AUTHORIZATION: \tauthorization: b"]
)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_credential_is_forgotten_with_the_parts_and_nothing_else(line: bytes, at: int) -> None:
    others = [b"Host: a", b"X-A: 1, authorization: y", b"proxy-authorization: z", b"x-authorization: z"]
    lines = [*others]
    lines.insert(at, line)
    fields = Fields.of_block(b"\r\n".join([*lines, b"", b""]))
    assert b"authorization" in fields.by_name
    fields.forget_parts()
    assert fields.raw == b"\r\n".join([*others, b"", b""])
    assert b"authorization" not in fields.by_name
    assert [name for name, _ in fields.headers] == [
        b"host",
        b"x-a",
        b"proxy-authorization",
        b"x-authorization",
    ]
