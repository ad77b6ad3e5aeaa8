from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.message.head import (
    ANSWER_HEAD_BYTES_MAX,
    CONNECTION_BYTES_MAX,
    HEAD_BYTES_MAX,
    HEADER_COUNT_MAX,
    LENGTH_DIGITS_MAX,
    Fields,
    HeadError,
    HeadTooLarge,
    RequestHead,
    ResponseHead,
    check_switch,
    connection_tokens,
)
from proxy.message.head import line as line_of

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
    with pytest.raises(HeadError):
        ResponseHead.of(200, value).encode()


@pytest.mark.parametrize(
    "target",
    [
        *(b"api/v1", b"*", b"http://evil/api", b"/a b", b"/a#b", b"", b"/\xc3\xa4"),
        *(b"/a HTTP/1.1\r\nx:", b"/a HTTP/1.1\r\n\r\nGET /b"),
    ],
)
def test_only_origin_form_targets_are_written(target):
    with pytest.raises(HeadError):
        RequestHead.of(b"GET", target).encode()


UPPER = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
IN_A_VALUE = frozenset({9, *range(0x20, 0x7F), *range(0x80, 0x100)})


@pytest.mark.parametrize(
    ("make", "allowed"),
    [
        (lambda at: RequestHead.of(b"a" + at + b"b", b"/"), frozenset(TOKEN_BYTES + UPPER)),
        (lambda at: RequestHead.of(b"GET", b"/" + at), frozenset(range(0x21, 0x7F)) - {ord("#")}),
        (lambda at: RequestHead.of(b"GET", b"/", ((b"a" + at + b"b", b"c"),)), frozenset(TOKEN_BYTES)),
        (lambda at: RequestHead.of(b"GET", b"/", ((b"a", b"b" + at + b"c"),)), IN_A_VALUE),
        (lambda at: RequestHead.of(b"GET", b"/", ((b"a", at),)), IN_A_VALUE - {9, 0x20}),
        (lambda at: RequestHead.of(b"GET", b"/", ((b"audit-id", b"b" + at + b"c"),)), IN_A_VALUE),
        (lambda at: ResponseHead.of(200, b"", ((b"a" + at + b"b", b"c"),)), frozenset(TOKEN_BYTES)),
        (lambda at: ResponseHead.of(200, b"", ((b"a", b"b" + at + b"c"),)), IN_A_VALUE),
        (lambda at: ResponseHead.of(200, b"", ((b"a", b"b"), (b"via", at))), IN_A_VALUE - {9, 0x20}),
        # Of headers that are dealt with, and so read the long way.
        (lambda at: ResponseHead.of(200, b"", ((b"location", at),)), IN_A_VALUE - {9, 0x20}),
        (lambda at: ResponseHead.of(200, b"", ((b"location", b"b" + at + b"c"),)), IN_A_VALUE),
        (lambda at: ResponseHead.of(200, at), IN_A_VALUE),
        (lambda at: ResponseHead.of(200, b"a" + at, ((b"location", b"/"),)), IN_A_VALUE),
    ],
)
def test_each_part_of_a_head_holds_these_bytes_and_no_others(make, allowed):
    """Written and read; only a blank at an end is written and not read back."""
    sample = make(b"z").encode()
    for byte in range(256):
        at = bytes([byte])
        head = make(at)
        raw = sample.replace(b"azb", b"a%bb" % at).replace(b"bzc", b"b%bc" % at)
        if raw == sample:
            raw = sample[: sample.rindex(b"z")] + at + sample[sample.rindex(b"z") + 1 :]
        if byte in allowed:
            assert head.encode() == raw
            assert type(head).decode(raw) == head
            continue
        with pytest.raises(HeadError):
            type(head).decode(raw)
        if at not in {b" ", b"\t"}:
            with pytest.raises(HeadError):
                head.encode()


def test_a_method_is_a_word():
    for method in (b"x", b"x" * 64):
        assert RequestHead.decode(RequestHead.of(method, b"/").encode()).method == method
    for method in (b"", b"x" * 65):
        with pytest.raises(HeadError):
            RequestHead.decode(method + b" / HTTP/1.1\r\n\r\n")
    for method in (b"", b"x" * 65, b"GET /a HTTP/1.1\r\na:"):
        with pytest.raises(HeadError):
            RequestHead.of(method, b"/").encode()


@pytest.mark.parametrize("name", [b"", b"a: b\r\nc", b"a\r\nb", b"Host"])
def test_no_name_can_smuggle_a_second_line(name):
    for head in (RequestHead.of(b"GET", b"/", ((name, b"d"),)), ResponseHead.of(200, b"", ((name, b"d"),))):
        with pytest.raises(HeadError):
            head.encode()


def test_a_status_has_three_digits():
    for status in (-100, 0, 99, 1000):
        with pytest.raises(HeadError):
            ResponseHead.of(status).encode()
    for headers in (b"", b"location: /\r\n"):
        for status in (100, 199, 200, 999):
            raw = b"HTTP/1.1 %d \r\n%b\r\n" % (status, headers)
            assert ResponseHead.decode(raw).status == status
        for word in (b"099", b"99", b"1000", b"+20", b"2 0", b"20a", b"\xb200", b""):
            with pytest.raises(HeadError):
                ResponseHead.decode(b"HTTP/1.1 %b \r\n%b\r\n" % (word, headers))
        for first in (
            b"HTTP/1.0 200 ",
            b"HTTP/1.1  200 ",
            b"http/1.1 200 ",
            b"HTTP/1.1 200",
            b"HTTP/1a1 200 ",
        ):
            with pytest.raises(HeadError):
                ResponseHead.decode(first + b"\r\n" + headers + b"\r\n")


@pytest.mark.parametrize("headers", [b"", b"location: /\r\n"])
def test_a_length_has_so_many_digits(headers):
    for digits in (1, LENGTH_DIGITS_MAX):
        raw = b"content-length: " + b"9" * digits + b"\r\n" + headers + b"\r\n"
        assert ResponseHead.decode(b"HTTP/1.1 200 \r\n" + raw).body_length == 10**digits - 1
        assert RequestHead.decode(b"POST / HTTP/1.1\r\n" + raw).body_length == 10**digits - 1
    raw = b"content-length: " + b"9" * (LENGTH_DIGITS_MAX + 1) + b"\r\n" + headers + b"\r\n"
    for line, kind in ((b"POST / HTTP/1.1\r\n", RequestHead), (b"HTTP/1.1 200 \r\n", ResponseHead)):
        with pytest.raises(HeadError, match="not a plain number"):
            kind.decode(line + raw)


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
        b"content-length: 3, 3\r\n",
        b"content-length: 0x3\r\n",
        b"content-length: 3 \r\n",
        b"content-length: 3\r\na: b\r\ncontent-length: 3\r\n",
        b"transfer-encoding: chunked\r\na: b\r\ncontent-length: 3\r\n",
        b"location: /\r\ncontent-length: 3\r\ncontent-length: 3\r\n",
        b"transfer-encoding: xchunked\r\n",
        b"transfer-encoding: Chunked\r\n",
        b"transfer-encoding: chunked, identity\r\n",
        b"transfer-encoding: gzip, chunked\r\n",
        b"transfer-encoding: \r\n",
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
    for make, size, bytes_max in (
        (lambda fill: RequestHead.of(b"GET", b"/", ((b"a", fill),)), 23, HEAD_BYTES_MAX),
        (lambda fill: ResponseHead.of(200, b"", ((b"a", fill),)), 22, ANSWER_HEAD_BYTES_MAX),
        (lambda fill: ResponseHead.of(200, b"", ((b"location", fill),)), 29, ANSWER_HEAD_BYTES_MAX),
    ):
        longest = make(b"x" * (bytes_max - size))
        data = longest.encode()
        assert len(data) == bytes_max
        assert type(longest).decode(data) == longest
        with pytest.raises(HeadTooLarge, match=str(bytes_max + 1)):
            type(longest).decode(data.replace(b"xx", b"xxx", 1))
        with pytest.raises(HeadTooLarge, match=str(bytes_max + 1)):
            make(b"x" * (bytes_max - size + 1)).encode()
    most = RequestHead.of(b"GET", b"/", ((b"a", b"b"),) * HEADER_COUNT_MAX)
    assert RequestHead.decode(most.encode()) == most
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


def test_what_an_answer_says_of_its_connection_has_a_bound():
    def answer(*values: bytes) -> bytes:
        return b"HTTP/1.1 200 \r\n" + b"".join(b"connection: %b\r\n" % value for value in values) + b"\r\n"

    half = b"x" * (CONNECTION_BYTES_MAX // 2)
    assert ResponseHead.decode(answer(half, half)).header_values(b"connection") == [half, half]
    with pytest.raises(HeadError, match=f"have {CONNECTION_BYTES_MAX + 1} bytes"):
        ResponseHead.decode(answer(half, half + b"x"))


def test_the_hubs_lines_stand_apart_from_those_that_repeat():
    first = b"GET /a HTTP/1.1\r\naudit-id: e\r\nx-forwarded-for: ::1\r\n"
    rest = b"accept: */*\r\naudit-id: f\r\n\r\n"
    head = RequestHead.decode(first + rest)
    assert (head.line, b"".join(head.own)) == (first[: first.index(b"audit")], first[first.index(b"audit") :])
    assert head.fields.headers == ((b"accept", b"*/*"), (b"audit-id", b"f"))
    assert head.header_values(b"audit-id") == [b"e", b"f"]
    assert head.header(b"x-forwarded-for") == b"::1"
    assert RequestHead.decode(first.replace(b"audit-id: e", b"audit-id: g") + rest).fields is head.fields
    for only in (b"audit-id: e\r\n", b"x-forwarded-for: ::1\r\n", b"x-forwarded-for: a\r\naudit-id: e\r\n"):
        head = RequestHead.decode(b"GET /a HTTP/1.1\r\n" + only + b"\r\n")
        assert head.encode() == b"GET /a HTTP/1.1\r\n" + only + b"\r\n"
    for bad in (b"audit-id:e\r\n", b"audit-id: e \r\n", b"x-forwarded-for: a\tb\x00\r\n", b"audit-id: e\n"):
        with pytest.raises(HeadError):
            RequestHead.decode(b"GET /a HTTP/1.1\r\n" + bad + b"\r\n")


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\tb", "\x00", "\x7f", "\u00e4"])
def test_a_line_of_our_own_holds_one_plain_value(value: str) -> None:
    assert line_of(b"a", "b c~") == b"a: b c~\r\n"
    with pytest.raises(HeadError):
        line_of(b"a", value)


def test_a_repr_shows_no_value() -> None:
    headers = ((b"authorization", b"Bearer secret"), (b"accept", b"*/*"))
    assert repr(RequestHead.of(b"GET", b"/a", headers, (b"host: b\r\n",))) == (
        "<RequestHead b'GET' b'/a' ['host', 'authorization', 'accept']>"
    )
    assert (
        repr(ResponseHead.of(200, b"OK", headers)) == "<ResponseHead 200 b'OK' ['authorization', 'accept']>"
    )


def test_heads_are_equal_in_all_their_parts() -> None:
    request, answer = (
        RequestHead.of(b"GET", b"/", ((b"a", b"b"),)),
        ResponseHead.of(200, b"", ((b"a", b"b"),)),
    )
    assert request == RequestHead.of(b"GET", b"/", (), (b"a: b\r\n",))
    assert answer == ResponseHead.decode(answer.encode())
    for other in (
        RequestHead.of(b"PUT", b"/", ((b"a", b"b"),)),
        RequestHead.of(b"GET", b"/a", ((b"a", b"b"),)),
        RequestHead.of(b"GET", b"/", ((b"a", b"c"),)),
        *(ResponseHead.of(201, b"", ((b"a", b"b"),)), ResponseHead.of(200, b"OK", ((b"a", b"b"),))),
        ResponseHead.of(200),
    ):
        assert request != other
        assert answer != other


def test_what_a_connection_is_kept_for() -> None:
    def fields(*headers: tuple[bytes, bytes]) -> Fields:
        return RequestHead.of(b"POST", b"/", headers).fields

    upgrade = (b"connection", b"Upgrade"), (b"upgrade", b"spdy/3.1")
    assert fields().only_asks
    assert fields((b"content-length", b"0")).only_asks
    assert not fields((b"content-length", b"1")).only_asks
    assert not fields((b"transfer-encoding", b"chunked")).only_asks
    assert not fields(*upgrade).only_asks
    assert fields((b"connection", b"Upgrade"), (b"upgrade", b"h2c")).only_asks
    assert fields((b"connection", b"keep-alive"), (b"upgrade", b"spdy/3.1")).persistent
    assert fields((b"connection", b"Upgrade"), (b"upgrade", b"h2c")).persistent
    assert not fields((b"connection", b"x, Close")).persistent
    assert not fields(*upgrade).persistent


@pytest.mark.parametrize("behind", [b"x", b"\n", b"\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_head_ends_with_its_blank_line(behind):
    for kind, head in (
        (RequestHead, b"GET / HTTP/1.1\r\na: b\r\n\r\n"),
        (ResponseHead, b"HTTP/1.1 200 OK\r\na: b\r\n\r\n"),
        (ResponseHead, b"HTTP/1.1 200 OK\r\nlocation: /\r\n\r\n"),
    ):
        assert kind.decode(head).encode() == head
        for raw in (head + behind, head[:-1], head[:-2]):
            with pytest.raises(HeadError):
                kind.decode(raw)


def test_a_body_in_chunks_has_no_length():
    chunked = b"transfer-encoding: chunked\r\n\r\n"
    assert RequestHead.decode(b"POST / HTTP/1.1\r\n" + chunked).body_length is None
    for more in (b"", b"location: /\r\n"):
        assert ResponseHead.decode(b"HTTP/1.1 200 \r\n" + more + chunked).body_length is None


def test_an_answer_passes_without_its_hop():
    plain = ResponseHead.decode(b"HTTP/1.1 200 OK\r\na: b\r\n\r\n")
    assert plain.without_hop() is plain
    raw = b"HTTP/1.1 200 OK\r\nconnection: close\r\na: b\r\ncontent-length: 3\r\n\r\n"
    passing = ResponseHead.decode(raw).without_hop()
    assert passing is not None
    assert (passing.status, passing.reason, passing.body_length) == (200, b"OK", 3)
    assert passing.encode() == raw.replace(b"connection: close\r\n", b"")
    assert passing.without_hop() is passing
    for dealt_with in (b"location: /\r\n", b"connection: a\r\n", b"set-cookie: a\r\n", b"hawse-a: b\r\n"):
        head = ResponseHead.decode(raw.replace(b"a: b\r\n", dealt_with))
        assert (head.passes, head.without_hop()) == (None, None)
    assert ResponseHead.decode(b"HTTP/1.1 101 OK\r\na: b\r\n\r\n").without_hop() is None


def test_which_answers_have_a_body():
    assert ResponseHead.of(200).has_body(b"GET")
    assert not ResponseHead.of(200).has_body(b"HEAD")
    none = [status for status in range(100, 600) if not ResponseHead.of(status).has_body(b"GET")]
    assert none == [*range(100, 200), 204, 304]
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
    colons = ((b"a", b"b: c: d"), (b"e", b":"), (b"f", b"g:h"))
    for first, kind in ((b"GET / HTTP/1.1", RequestHead), (b"HTTP/1.1 200 ", ResponseHead)):
        raw = first + b"\r\na: b: c: d\r\ne: :\r\nf: g:h\r\n\r\n"
        assert kind.decode(raw).headers == colons
    assert connection_tokens(
        ((b"connection", b"Close,\tX-A"), (b"via", b"x-c"), (b"connection", b"x-b"))
    ) == {
        b"close",
        b"x-a",
        b"x-b",
    }


def test_headers_whose_parts_were_forgotten_are_worked_out_again() -> None:
    block = b"Host: a\r\nX-A: 1\r\nx-a:2 \r\nConnection: close, Upgrade\r\nUpgrade: spdy\r\n\r\n"
    fields = Fields.of_block(block)
    said = fields.headers, fields.by_name, fields.connection, fields.upgrade
    fields.forwarded = fields.forwarded_tail = Fields(())
    fields.forget_parts()
    fields.forget_parts()
    assert fields.forwarded is fields.forwarded_tail is None
    for name in ("headers", "by_name"):
        with pytest.raises(AttributeError):
            object.__getattribute__(fields, name)
    assert (fields.headers, fields.by_name, fields.connection, fields.upgrade) == said
    assert fields.raw == block
    # Headers that no client sent have no other source for them.
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


WEBSOCKET = (b"connection", b"Upgrade"), (b"upgrade", b"websocket")


@pytest.mark.parametrize("asked", [b"websocket", b"WebSocket", b"SPDY/3.1", b"spdy/3.1"])
@pytest.mark.parametrize("connection", [b"Upgrade", b"keep-alive, upgrade"])
def test_an_upgrade_that_is_served_is_named_as_it_was_asked_for(asked: bytes, connection: bytes) -> None:
    headers = ((b"connection", connection), (b"upgrade", asked))
    assert RequestHead.of(b"GET", b"/", headers).upgrade == asked


@pytest.mark.parametrize(
    "asked",
    [
        *([b"h2c"], [b"TLS/1.0"], [b"foo/1"], [b"SPDY/3"], [b"SPDY/3.1/x"], [b"websocket/13"], [b""]),
        *([b"websocket, h2c"], [b"websocket,"], [b"websocket websocket"], [b"websocket", b"websocket"]),
        [b"websocket", b"h2c"],
    ],
)
def test_another_upgrade_is_none(asked: list[bytes]) -> None:
    headers = ((b"connection", b"Upgrade"), *[(b"upgrade", value) for value in asked])
    head = RequestHead.of(b"GET", b"/", headers)
    assert head.upgrade is None
    assert RequestHead.decode(head.encode()).upgrade is None


@pytest.mark.parametrize("asked", [b"websocket", b"WebSocket"])
def test_a_101_echoes_what_was_asked_for(asked: bytes) -> None:
    check_switch(ResponseHead.of(101, b"", WEBSOCKET), asked)
    # Whether these are right is the client's to judge.
    check_switch(ResponseHead.of(101, b"", (*WEBSOCKET, (b"sec-websocket-protocol", b"v9"))), asked)
    check_switch(ResponseHead.of(101, b"", ((b"connection", b"Keep-Alive, UPGRADE"), WEBSOCKET[1])), asked)


@pytest.mark.parametrize(
    ("headers", "asked", "why"),
    [
        (WEBSOCKET, None, "did not ask"),
        (WEBSOCKET, b"SPDY/3.1", "the one protocol"),
        (WEBSOCKET[:1], b"websocket", "the one protocol"),
        ((*WEBSOCKET, WEBSOCKET[1]), b"websocket", "the one protocol"),
        ((WEBSOCKET[0], (b"upgrade", b"websocket, h2c")), b"websocket", "the one protocol"),
        (WEBSOCKET[1:], b"websocket", "Connection"),
        (((b"connection", b"upgraded"), WEBSOCKET[1]), b"websocket", "Connection"),
        ((*WEBSOCKET, (b"content-length", b"0")), b"websocket", "length"),
        ((*WEBSOCKET, (b"transfer-encoding", b"chunked")), b"websocket", "length"),
    ],
)
def test_any_other_101_is_refused(
    headers: tuple[tuple[bytes, bytes], ...], asked: bytes | None, why: str
) -> None:
    with pytest.raises(HeadError, match=why):
        check_switch(ResponseHead.of(101, b"", headers), asked)
