from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.message.head import (
    ANSWER_HEAD_BYTES_MAX,
    CONNECTION_BYTES_MAX,
    HEAD_BYTES_MAX,
    HEADER_COUNT_MAX,
    HeadError,
    ResponseHead,
)
from proxy.message.strict import (
    LINE_KNOWN_BYTES_MAX,
    LINES_KNOWN_MAX,
    AnswerLines,
    BadRequest,
    BadResponse,
    HeadScanner,
    read_request_head,
    read_response_head,
)
from tests.fakes.ambiguous import ATTACKS
from tests.fuzz.differential import check_request, check_response

GOOD = b"GET /api/v1/pods?limit=500 HTTP/1.1\r\nHost: hub.example:443\r\nAccept: */*\r\n\r\n"


@pytest.mark.parametrize("name", ATTACKS)
def test_what_can_be_read_in_two_ways_is_a_400(name):
    raw, word = ATTACKS[name]
    with pytest.raises(BadRequest) as caught:
        read_request_head(raw)
    assert caught.value.status == 400
    assert word in caught.value.message


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.2"])
def test_other_versions_are_a_505(version):
    with pytest.raises(BadRequest) as caught:
        read_request_head(b"GET / " + version + b"\r\nHost: a\r\n\r\n")
    assert caught.value.status == 505


def test_an_unknown_expectation_is_a_417():
    with pytest.raises(BadRequest) as caught:
        read_request_head(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 200-maybe\r\n\r\n")
    assert caught.value.status == 417
    with pytest.raises(BadRequest):
        read_request_head(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nExpect: x\r\n\r\n")
    read_request_head(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 3\r\n\r\n")


@pytest.mark.parametrize("line", [b"a:b", b":", b"a :b", b"a", b" b", b"a:\x01", b"", b"a:\r"])
@pytest.mark.parametrize("last", [b"", b"a\r\n", b" b\r\n"])
def test_too_many_headers_are_a_431_before_any_of_them_is_looked_at(line, last):
    head = b"GET / HTTP/1.1\r\nHost: a\r\n" + (line + b"\r\n") * 600 + last + b"\r\n"
    with pytest.raises(BadRequest) as caught:
        read_request_head(head)
    assert caught.value.status == 431
    assert caught.value.message == f"the request has {602 if last else 601} headers, 512 is the limit"


def test_as_many_headers_as_the_limit_pass():
    def head(count: int) -> bytes:
        return b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a:b\r\n" * (count - 1) + b"\r\n"

    assert len(read_request_head(head(HEADER_COUNT_MAX)).headers) == HEADER_COUNT_MAX
    with pytest.raises(BadRequest, match="the request has 513 headers, 512 is the limit"):
        read_request_head(head(HEADER_COUNT_MAX + 1))


def test_as_many_headers_of_an_answer_as_the_limit_pass():
    def head(count: int) -> bytes:
        return b"HTTP/1.1 200 OK\r\n" + b"a:b\r\n" * count + b"\r\n"

    assert len(read_response_head(head(HEADER_COUNT_MAX))[0].headers) == HEADER_COUNT_MAX
    for count in (1, 2, 3, 1000):
        with pytest.raises(BadResponse, match="more than 512 headers"):
            read_response_head(head(HEADER_COUNT_MAX + count))


@pytest.mark.parametrize(
    "host", [b"hub.example", b"127.0.0.1:8443", b"[::1]:8443", b"a_b", b"hub.example.:443"]
)
def test_hosts_as_clients_write_them_pass(host):
    read_request_head(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\nA: b\n\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\x00\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a:b\r\n" * 600 + b"\r\n",
    ],
)
def test_a_doubtful_answer_is_refused(raw):
    with pytest.raises(BadResponse):
        read_response_head(raw)


@pytest.mark.parametrize("line", [b"HTTP/1.1 200 OK", b"HTTP/1.1 200", b"HTTP/1.1 404 ", b"HTTP/1.0 200 OK"])
def test_plain_answers_pass(line):
    read_response_head(line + b"\r\nContent-Length: 3\r\n\r\n")


# -- the differential: what the strict rules let pass, h11 reads to the same head ---------------------------

fragments = st.sampled_from(
    [
        b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b",", b";", b"\x00", b"\x0b", b"\x85", b"\xff", b"\x7f",
        b"Host: a\r\n", b"Content-Length: 3\r\n", b"content-length: 0\r\n", b"Transfer-Encoding: chunked\r\n",
        b"Upgrade: SPDY/3.1\r\n", b"Connection: Upgrade\r\n", b"Expect: 100-continue\r\n", b"X-A: b c \t\r\n",
        b"X_B:\t d\r\n", b"Empty:\r\n", b" fold\r\n", b"HTTP/1.1", b"GET", b"/", b"#", b"\xc3\xa4", b"%2f",
    ]
)  # fmt: skip


OTHER = read_request_head(GOOD)


def check_like_h11(raw: bytes) -> None:
    check_request(raw, OTHER)


thorough = settings(max_examples=10 * settings().max_examples)


@thorough
@given(st.lists(fragments, max_size=8).map(b"".join))
def test_h11_reads_the_same_headers(fields):
    check_like_h11(b"GET /api/v1 HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n")


@given(st.lists(fragments, max_size=6).map(b"".join))
def test_h11_reads_the_same_request_line(line):
    check_like_h11(line + b" HTTP/1.1\r\nHost: a\r\n\r\n")


@thorough
@given(st.data())
def test_h11_reads_mutated_requests_the_same(data):
    raw = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(fragments)
    check_like_h11(bytes(raw))


@thorough
@given(
    st.sampled_from([b"HTTP/1.1 200 OK", b"HTTP/1.0 404", b"HTTP/1.1 101 "]), st.lists(fragments, max_size=8)
)
def test_h11_reads_answers_the_same(line, fields):
    check_response(line + b"\r\n" + b"".join(fields) + b"\r\n")


def test_the_same_headers_are_understood_by_a_comparison_and_others_are_not():
    first = read_request_head(GOOD)
    again = read_request_head(GOOD.replace(b"limit=500", b"limit=1"), first.fields)
    assert again.fields is first.fields
    assert again.target == b"/api/v1/pods?limit=1"
    other = read_request_head(GOOD.replace(b"*/*", b"*/x"), first.fields)
    assert other.header(b"accept") == b"*/x"


def test_the_lines_of_an_answer_are_known_again_but_for_those_that_say_where_its_body_ends():
    known = AnswerLines()
    first, _ = read_response_head(b"HTTP/1.1 200 OK\r\nX-A:  b \r\nContent-Length: 3\r\n\r\n", known)
    assert known == {b"X-A:  b ": b"x-a: b\r\n"}
    again, _ = read_response_head(b"HTTP/1.1 200 OK\r\nX-A:  b \r\nContent-Length: 4\r\n\r\n", known)
    assert (first.body_length, again.body_length) == (3, 4)
    assert again.headers == ((b"x-a", b"b"), (b"content-length", b"4"))
    with pytest.raises(BadResponse, match="more than once"):
        read_response_head(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\n", known)


def test_what_is_known_of_answers_is_bounded():
    known = AnswerLines()
    for number in range(3 * LINES_KNOWN_MAX):
        long = b"Y: " + b"y" * LINE_KNOWN_BYTES_MAX
        read_response_head(b"HTTP/1.1 200 OK\r\nX: %d\r\n%s\r\n\r\n" % (number, long), known)
        read_response_head(b"HTTP/1.1 200 %s\r\nLocation: /%d\r\n\r\n" % (long, number), known)
        assert len(known) + len(known._noted) <= LINES_KNOWN_MAX
        assert max(map(len, [*known, *known._noted, known._status_line or b""])) <= LINE_KNOWN_BYTES_MAX


def test_connect_is_refused_for_any_target():
    with pytest.raises(BadRequest):
        read_request_head(b"CONNECT /api HTTP/1.1\r\nHost: a\r\n\r\n")


def test_an_answer_that_grows_beyond_the_limit_is_refused():
    with pytest.raises(BadResponse):
        read_response_head(b"HTTP/1.1 200 OK\r\n" + b"a:" + b"b" * (ANSWER_HEAD_BYTES_MAX - 21) + b"\r\n\r\n")


@pytest.mark.parametrize("ended", [b"", b"\r\n\r\n"])
def test_a_head_beyond_its_limit_is_refused_before_it_is_read(ended: bytes):
    scanner = HeadScanner(100)
    scanner.feed(b"HTTP/1.1 200 OK\r\na: " + bytes([0x62]) * 100 + ended)
    with pytest.raises(BadRequest, match="larger than 100 bytes"):
        scanner.take_head()


@given(st.binary(max_size=60))
def test_nothing_but_a_refusal_comes_out_of_arbitrary_bytes(raw):
    for check, refusal in ((read_request_head, BadRequest), (read_response_head, BadResponse)):
        try:
            check(raw + b"\r\n\r\n")
        except refusal:
            continue


# -- the scanner --------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 30), max_size=20))
def test_heads_are_found_however_the_bytes_are_cut(sizes):
    scanner = HeadScanner()
    stream = GOOD * 3 + b"rest"
    heads = []
    at = 0
    for size in [*sizes, len(stream)]:
        scanner.feed(stream[at : at + size])
        at += size
        while (head := scanner.take_head()) is not None:
            heads.append(head)
    assert heads == [GOOD] * 3
    assert scanner.take_rest(2) == b"re"
    scanner.put_back(b"re")
    assert len(scanner) == 4
    assert scanner.take_rest(2) == b"re"
    assert scanner.take_rest() == b"st"


@pytest.mark.parametrize("early", [b"\x16\x03\x01\x02", b"\r\n", b"GET / HTTP/1.1\nHost: a", b" GET"])
def test_what_cannot_become_a_head_is_refused_at_once(early):
    scanner = HeadScanner()
    scanner.feed(early)
    with pytest.raises(BadRequest) as caught:
        scanner.take_head()
    assert caught.value.status == 400


def test_a_bare_lf_is_seen_across_a_cut():
    scanner = HeadScanner()
    scanner.feed(b"GET / HTTP/1.1")
    assert scanner.take_head() is None
    scanner.feed(b"\nHost: a")
    with pytest.raises(BadRequest):
        scanner.take_head()
    scanner = HeadScanner()
    scanner.feed(b"GET / HTTP/1.1\r")
    assert scanner.take_head() is None
    scanner.feed(b"\nHost: a")
    assert scanner.take_head() is None


@pytest.mark.parametrize("ended", [True, False])
def test_a_head_over_the_limit_is_a_431(ended):
    scanner = HeadScanner()
    scanner.feed(b"GET / HTTP/1.1\r\nA: " + b"x" * HEAD_BYTES_MAX + (b"\r\n\r\n" if ended else b""))
    with pytest.raises(BadRequest) as caught:
        scanner.take_head()
    assert caught.value.status == 431


def test_connection_options_of_an_answer_that_take_long_to_read_are_refused():
    def head(*values: bytes) -> bytes:
        lines = b"".join(b"Connection: %b\r\n" % value for value in values)
        return b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n"

    half = b"a," * (CONNECTION_BYTES_MAX // 4)
    read, _ = read_response_head(head(half, half))
    assert ResponseHead.decode(read.encode()) == read
    with pytest.raises(BadResponse, match="have 4097 bytes, 4096 is the limit"):
        read_response_head(head(half, half, b"a"))
    # As a relay would pass it on that holds nothing against it.
    passed_on = ResponseHead.of(200, b"OK", ((b"connection", half), (b"connection", half + b"a")))
    with pytest.raises(HeadError, match="have 4097 bytes, 4096 is the limit"):
        ResponseHead.decode(passed_on.encode())


def test_connection_options_that_take_long_to_read_are_a_400():
    def head(*values: bytes) -> bytes:
        lines = b"".join(b"Connection: %b\r\n" % value for value in values)
        return b"GET / HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n"

    half = b"a," * (CONNECTION_BYTES_MAX // 4)
    assert b"a" in read_request_head(head(half, half)).fields.connection
    with pytest.raises(BadRequest, match="Connection") as caught:
        read_request_head(head(half, half, b"a"))
    assert caught.value.status == 400
