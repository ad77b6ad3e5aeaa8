"""The connections without I/O: dialogues of each role, and both roles against each other."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.exchange import http_server
from proxy.exchange.http_client import INTERIM_MAX, ClientHTTP
from proxy.exchange.http_connection import CROWDED_BYTES_MAX, FramingFault, HTTPConnection
from proxy.exchange.http_server import EARLY_BYTES_MAX, ServerHTTP
from proxy.exchange.http_state import IllegalStep, State
from proxy.message.body import BODY_BYTES_MAX, CHUNKS_AT_ONCE_MAX
from proxy.message.failure import GONE, InboundBroken, OutboundBroken, Processed, StreamCode
from proxy.message.head import HEAD_BYTES_MAX, HeadError, RequestHead, ResponseHead
from proxy.message.strict import BadRequest
from tests.fuzz.conversations import ASKED, check_answers, check_requests
from tests.fuzz.differential import cut
from tests.fuzz.mutation import ANSWERS, CALLS

GET = b"GET /api HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /api HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n"
CHUNKED = b"PUT /api HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
EXPECTING = b"PUT /api HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
UPGRADE = b"GET /exec HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
OK = ResponseHead.of(200, b"OK", ((b"content-length", b"2"),))
OPEN_ENDED = ResponseHead.of(200, b"OK")
SWITCH = ResponseHead.of(101, b"", ((b"connection", b"Upgrade"), (b"upgrade", b"websocket")))
HOST = (b"host", b"a")
ASK = RequestHead.of(b"GET", b"/api", (HOST,))
WRITE = RequestHead.of(b"POST", b"/api", (HOST, (b"content-length", b"6")))


def asked(raw: bytes) -> ServerHTTP:
    """A server that has read a request's head, and holds what came behind it."""
    http = ServerHTTP()
    http.feed(raw)
    head = http.take_head()
    assert head is not None
    http.begin_request(head)
    return http


def answered(raw: bytes, request: RequestHead = ASK) -> ClientHTTP:
    """A client that has sent a request, and has been fed an answer."""
    http = ClientHTTP()
    http.send_request(request)
    http.feed(raw)
    return http


def body_of(http: HTTPConnection) -> bytes:
    data = b""
    while part := http.receive_body():
        data += part
    return data


# -- the server's role --------------------------------------------------------------------------------------


def test_requests_follow_each_other_and_the_next_head_is_kept() -> None:
    http = asked(GET + POST + b"abcdef" + GET)
    assert http.send_head(OK, b"ok", end=True) == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    for body, following in ((b"abcdef", POST), (b"", GET)):
        assert http.may_go_on
        raw = http.take_head()
        assert raw == following
        http.begin_request(raw)
        assert not http.may_go_on
        assert body_of(http) == body
        http.send_head(OK, b"ok", end=True)
    assert http.may_go_on
    assert not http.held


def test_a_second_request_before_the_first_answer_is_our_own_fault() -> None:
    http = asked(GET + GET)
    raw = http.take_head()
    assert raw is not None
    with pytest.raises(IllegalStep):
        http.begin_request(raw)


def test_nothing_is_read_as_a_request_behind_the_last_one() -> None:
    http = asked(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + GET)
    assert b"\r\nConnection: close\r\n" in http.send_head(OK, b"ok", end=True)
    assert not http.may_go_on
    raw = http.take_head()
    assert raw is not None
    with pytest.raises(IllegalStep, match="the last one"):
        http.begin_request(raw)


def test_a_refused_request_gets_one_answer_without_chunks_and_nothing_else() -> None:
    http = ServerHTTP()
    http.feed(b"what\r\n\r\n" + GET)
    raw = http.take_head()
    assert raw is not None
    with pytest.raises(BadRequest):
        http.begin_request(raw)
    http.refuse()
    assert not http.held
    data = http.send_head(ResponseHead.of(400, b"Bad Request"), b"no")
    assert data == b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nno"
    assert http.send_body(b" more", end=True) == b" more"
    assert not http.may_go_on
    with pytest.raises(IllegalStep):
        http.receive_body()


def test_a_100_comes_before_the_body_and_once() -> None:
    http = asked(EXPECTING)
    assert http.receive_body() is None
    assert http.incoming is State.WITHHELD
    assert http.send_continue() == b"HTTP/1.1 100 \r\n\r\n"
    with pytest.raises(IllegalStep):
        http.send_continue()
    http.feed(b"abc")
    assert body_of(http) == b"abc"
    assert b"Connection: close" not in http.send_head(OK, b"ok", end=True)
    assert http.may_go_on


def test_a_client_that_does_not_wait_gets_no_100() -> None:
    http = asked(EXPECTING + b"abc")
    assert http.receive_body() == b"abc"
    with pytest.raises(IllegalStep):
        http.send_continue()


def test_an_answer_instead_of_the_100_is_the_last() -> None:
    http = asked(EXPECTING)
    assert b"\r\nConnection: close\r\n" in http.send_head(OK, b"ok", end=True)
    with pytest.raises(IllegalStep):
        http.send_continue()
    # The body may come all the same, and is nobody's next request.
    http.feed(b"abc" + GET)
    assert body_of(http) == b"abc"
    assert not http.may_go_on


@pytest.mark.parametrize("behind", [b"abcdef" + GET, b"abc"])
def test_an_answer_that_is_whole_drops_a_body_that_nobody_has_begun(behind: bytes) -> None:
    http = asked(POST + behind)
    data = http.send_head(OK, b"ok", end=True)
    whole = behind.endswith(GET)
    assert (b"Connection: close" in data) == (not whole)
    assert http.may_go_on == whole
    if whole:
        assert http.take_head() == GET


def test_an_answer_that_goes_on_drops_nothing_of_the_body() -> None:
    http = asked(POST + b"abcdef")
    assert b"\r\nConnection: close\r\n" in http.send_head(OPEN_ENDED, b"early")
    assert body_of(http) == b"abcdef"


def test_a_body_that_was_asked_for_is_not_dropped() -> None:
    http = asked(POST)
    assert http.receive_body() is None
    http.feed(b"abcdef")
    assert b"\r\nConnection: close\r\n" in http.send_head(OK, b"ok", end=True)
    assert body_of(http) == b"abcdef"


def test_what_follows_an_early_answer_is_drained_to_the_end_of_the_body() -> None:
    http = asked(POST + b"abc")
    http.send_head(OK, b"ok", end=True)
    assert not http.drain()
    http.feed(b"de")
    assert not http.drain()
    http.feed(b"f" + GET)
    assert http.drain()


@pytest.mark.parametrize("refused", [False, True])
def test_the_drain_is_bounded(refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "LINGER_BYTES_MAX", 100)
    if refused:
        http = ServerHTTP()
        http.refuse()
    else:
        http = asked(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
    http.send_head(OK, b"ok", end=True)
    for _ in range(9):
        http.feed(bytes(10))
        assert not http.drain()
        assert not http.held
    http.feed(bytes(10))
    assert http.drain()


def test_a_drain_ends_with_the_client_and_with_a_malformed_body_takes_what_comes() -> None:
    http = asked(CHUNKED + b"1\r\nab")
    http.send_head(OK, b"ok", end=True)
    assert not http.drain()
    http.feed(b"\r\n0\r\n\r\n")
    assert not http.drain()
    http.ended = True
    assert http.drain()


def test_the_end_of_a_drained_body_of_tiny_chunks_is_not_looked_for() -> None:
    http = asked(CHUNKED + b"1\r\na\r\n" * (2 * CHUNKS_AT_ONCE_MAX) + b"0\r\n\r\n")
    http.send_head(OK, b"ok", end=True)
    assert not http.drain()


def test_chunks_are_taken_apart_so_many_at_once() -> None:
    http = asked(CHUNKED + b"1\r\na\r\n" * (CHUNKS_AT_ONCE_MAX + 2) + b"0\r\n\r\n" + GET)
    taken = http.receive_body()
    assert taken is not None
    assert 0 < len(taken) <= CHUNKS_AT_ONCE_MAX
    assert http.crowded
    http.crowded = False
    assert len(taken) + len(body_of(http)) == CHUNKS_AT_ONCE_MAX + 2
    assert not http.crowded
    assert bytes(http.held) == GET


def test_trailers_are_dropped_and_make_the_request_the_last() -> None:
    http = asked(CHUNKED + b"1\r\na\r\n0\r\nImpersonate-User: root\r\n\r\n" + GET)
    assert body_of(http) == b"a"
    assert b"\r\nConnection: close\r\n" in http.send_head(OK, b"ok", end=True)
    assert not http.may_go_on


def test_a_malformed_body_is_the_clients_fault_each_time() -> None:
    http = asked(CHUNKED + b"1\r\nabc\r\n")
    for _ in range(3):
        with pytest.raises(InboundBroken) as caught:
            http.receive_body()
        assert caught.value.failure.code is StreamCode.PROTOCOL
    assert b"\r\nConnection: close\r\n" in http.send_head(OK, b"ok", end=True)


@pytest.mark.parametrize("raw", [POST + b"abc", CHUNKED + b"3\r\nab", EXPECTING])
def test_a_client_that_ends_within_its_body_is_gone(raw: bytes) -> None:
    http = asked(raw)
    http.receive_body()
    http.ended = True
    for _ in range(2):
        with pytest.raises(InboundBroken) as caught:
            http.receive_body()
        assert caught.value.failure == GONE
    assert not http.may_go_on


def test_bytes_behind_an_upgrade_are_the_raw_streams_after_a_101_and_else_the_next_request() -> None:
    http = asked(UPGRADE + b"early")
    http.feed(b" bytes")
    assert http.send_head(SWITCH, b"raw") == SWITCH.encode() + b"raw"
    assert http.take_rest() == b"early bytes"
    with pytest.raises(IllegalStep):
        http.send_body(b"framed")
    http = asked(UPGRADE + GET)
    http.send_head(OK, b"ok", end=True)
    assert http.may_go_on
    assert http.take_head() == GET


def test_a_101_that_was_not_asked_for_and_an_upgrade_with_a_body_go_no_further() -> None:
    http = asked(GET)
    with pytest.raises(IllegalStep):
        http.send_head(SWITCH)
    with pytest.raises(BadRequest):
        asked(UPGRADE[:-2] + b"Content-Length: 1\r\n\r\na")


@pytest.mark.parametrize(
    ("method", "head", "sent"),
    [
        (b"GET", OK, b"content-length: 2\r\n\r\nok"),
        (b"HEAD", OK, b"content-length: 2\r\n\r\n"),
        (b"GET", OPEN_ENDED, b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        (b"HEAD", OPEN_ENDED, b"Transfer-Encoding: chunked\r\n\r\n"),
        (b"GET", ResponseHead.of(204, b"No Content"), b"HTTP/1.1 204 No Content\r\n\r\n"),
    ],
)
def test_the_framing_of_an_answer_follows_from_head_and_method(
    method: bytes, head: ResponseHead, sent: bytes
) -> None:
    http = asked(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert http.send_head(head, b"ok", end=True).endswith(sent)
    assert http.may_go_on


@pytest.mark.parametrize(("body", "end"), [(b"okay", False), (b"okay", True), (b"o", True)])
def test_a_body_of_another_length_than_promised_is_our_own_fault(body: bytes, end: bool) -> None:
    http = asked(GET)
    http.send_head(OK)
    with pytest.raises(FramingFault):
        http.send_body(body, end=end)
    assert http.outgoing is State.BROKEN
    with pytest.raises(IllegalStep):
        http.send_body(b"ok", end=True)
    assert not http.may_go_on


def test_nothing_is_sent_behind_the_end() -> None:
    http = asked(GET)
    http.send_head(OPEN_ENDED, b"ok", end=True)
    for data, end in ((b"more", False), (b"", True)):
        with pytest.raises(IllegalStep):
            http.send_body(data, end=end)
    with pytest.raises(IllegalStep):
        http.send_head(OK)


def test_an_answer_whose_head_cannot_be_written_is_still_due() -> None:
    http = asked(GET)
    with pytest.raises(HeadError):
        http.send_head(ResponseHead.of(200, b"OK", ((b"a", b"b\nc"),)), b"ok", end=True)
    assert http.outgoing is State.AWAITED
    http.send_head(OK, b"ok", end=True)
    assert http.may_go_on


def test_the_early_bytes_of_a_client_have_a_bound() -> None:
    http = asked(GET)
    http.feed(bytes(EARLY_BYTES_MAX - 1))
    assert not http.full
    http.feed(b"x")
    assert http.full


# -- the client's role --------------------------------------------------------------------------------------


def test_an_exchange_ends_and_the_next_one_begins() -> None:
    http = ClientHTTP()
    for _ in range(3):
        assert http.send_request(ASK) == b"GET /api HTTP/1.1\r\nhost: a\r\n\r\n"
        assert http.outgoing is not State.IDLE
        assert http.receive_head() is None
        http.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert http.receive_head() == OK
        assert not http.end_exchange()
        assert body_of(http) == b"ok"
        assert http.end_exchange()
        assert http.outgoing is State.IDLE


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", b"ok"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + b"HTTP/1.1 200 OK\r\n\r\n", b"ok"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nTrailer: x\r\n\r\n", b""),
    ],
)
def test_a_connection_in_doubt_is_not_used_again(raw: bytes, body: bytes) -> None:
    http = answered(raw)
    assert http.receive_head() is not None
    assert body_of(http) == body
    assert not http.end_exchange()
    with pytest.raises(IllegalStep):
        http.send_request(ASK)


def test_a_body_up_to_the_end_of_the_connection() -> None:
    http = answered(b"HTTP/1.1 200 OK\r\n\r\nabc")
    assert http.receive_head() is not None
    assert http.receive_body() == b"abc"
    assert http.receive_body() is None
    http.ended = True
    assert http.receive_body() == b""
    assert http.receive_body() == b""
    assert not http.end_exchange()


@pytest.mark.parametrize(
    ("raw", "code", "processed"),
    [
        (b"", StreamCode.UPSTREAM_RESET, Processed.MAYBE),
        (b"HTTP/1.1 200 OK\r\nA: b", StreamCode.UPSTREAM_RESET, Processed.MAYBE),
        (b"HTTP/1.1 103 \r\n\r\n" * (INTERIM_MAX + 1), StreamCode.PROTOCOL, Processed.MAYBE),
        (b"\x15\x03\x01", StreamCode.PROTOCOL, Processed.MAYBE),
        (SWITCH.encode(), StreamCode.PROTOCOL, Processed.MAYBE),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", StreamCode.UPSTREAM_RESET, Processed.YES),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", StreamCode.PROTOCOL, Processed.YES),
    ],
)
def test_a_failure_says_whether_the_request_was_seen_each_time(
    raw: bytes, code: StreamCode, processed: Processed
) -> None:
    http = answered(raw)
    http.ended = True

    def receive() -> None:
        if http.incoming is State.AWAITED:
            http.receive_head()
        body_of(http)

    for _ in range(2):
        with pytest.raises(OutboundBroken) as caught:
            receive()
        assert (caught.value.failure.code, caught.value.failure.processed) == (code, processed)
    assert http.lost("later").failure.processed is processed
    assert not http.end_exchange()


def test_interim_answers_are_dropped_and_a_101_is_an_answer() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\n" * INTERIM_MAX
    assert answered(interim[: -len(interim) // INTERIM_MAX] + OK.encode()).receive_head() == OK
    http = answered(
        b"HTTP/1.1 103 \r\n\r\n" + SWITCH.encode() + b"frames",
        RequestHead.of(b"GET", b"/", (HOST, (b"connection", b"Upgrade"), (b"upgrade", b"websocket"))),
    )
    assert http.receive_head() == SWITCH
    assert http.take_rest() == b"frames"
    with pytest.raises(IllegalStep):
        http.receive_body()
    assert not http.end_exchange()


def test_the_body_of_a_request_is_framed_and_counted() -> None:
    http = ClientHTTP()
    http.send_request(WRITE)
    assert http.send_body(b"abc") == b"abc"
    with pytest.raises(FramingFault):
        http.send_body(b"", end=True)
    http = answered(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", WRITE)
    assert http.send_body(b"abcdef") == b"abcdef"
    assert http.receive_head() is not None
    # All of it was sent, though nobody has said so.
    assert http.end_exchange()
    http.send_request(RequestHead.of(b"POST", b"/", (HOST, (b"transfer-encoding", b"chunked"))))
    assert http.send_body(b"abc") == b"3\r\nabc\r\n"
    http.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert http.receive_head() is not None
    assert not http.end_exchange()
    assert http.send_body(b"", end=True) == b"0\r\n\r\n"
    assert http.end_exchange()


def test_a_head_that_is_too_large_begins_no_exchange() -> None:
    http = ClientHTTP()
    with pytest.raises(OutboundBroken) as caught:
        http.send_request(RequestHead.of(b"GET", b"/", ((b"a", b"x" * HEAD_BYTES_MAX),)))
    assert caught.value.failure.code is StreamCode.TOO_LARGE
    assert http.outgoing is State.IDLE
    http.send_request(ASK)


def test_what_was_sent_before_a_request_that_failed_is_no_answer_to_it() -> None:
    http = answered(OK.encode() + b"ok")
    http.fail(http.lost("it broke").failure)
    with pytest.raises(OutboundBroken) as caught:
        http.receive_head()
    assert caught.value.failure.processed is Processed.MAYBE


def test_tiny_chunks_of_an_answer_are_crowded_and_larger_ones_are_not() -> None:
    http = answered(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert http.receive_head() is not None
    assert http.feed_body(b"1\r\na\r\n" * (CROWDED_BYTES_MAX // 6)) == b"a" * (CROWDED_BYTES_MAX // 6)
    assert http.crowded
    assert http.feed_body(b"10\r\n0123456789abcdef\r\n" * 1000) is not None
    assert not http.crowded


# -- both roles ---------------------------------------------------------------------------------------------


@attrs.frozen
class Plan:
    """One exchange: how each side frames its body, and what it says."""

    method: bytes
    chunked: bool
    body: list[bytes]
    interim: int
    open_ended: bool
    answer: list[bytes]
    expect: bool


bodies = st.lists(st.binary(min_size=1, max_size=30), max_size=4)
plans = st.builds(
    Plan,
    st.sampled_from([b"GET", b"POST", b"HEAD"]),
    st.booleans(),
    bodies,
    st.integers(0, 3),
    st.booleans(),
    bodies,
    st.booleans(),
)
sizes = st.lists(st.integers(1, 25), max_size=60)


@given(st.lists(plans, max_size=4), sizes)
def test_two_connections_exchange_what_was_meant_however_the_bytes_are_cut(
    exchanges: list[Plan], sizes: list[int]
) -> None:
    client, server = ClientHTTP(), ServerHTTP()
    left = sizes[:]

    def pieces(data: bytes) -> list[bytes]:
        now = left[:8]
        del left[:8]
        return cut(data, now)

    for plan in exchanges:
        whole = b"".join(plan.body)
        framing: tuple[tuple[bytes, bytes], ...] = ((b"content-length", b"%d" % len(whole)),)
        if plan.chunked:
            framing = ((b"transfer-encoding", b"chunked"),)
        if plan.expect:
            framing += ((b"expect", b"100-continue"),)
        sent = client.send_request(RequestHead.of(plan.method, b"/x", (HOST, *framing)))
        sent += b"".join(map(client.send_body, plan.body))
        if client.outgoing is not State.DONE:
            sent += client.send_body(b"", end=True)
        request, received = None, b""
        for piece in pieces(sent):
            if request is None:
                server.feed(piece)
                raw = server.take_head()
                request = None if raw is None else server.begin_request(raw)
                part = server.receive_body() if request is not None else None
            else:
                part = server.feed_body(piece)
            while part:
                received += part
                part = server.receive_body()
        assert request is not None
        assert (request.method, received, server.receive_body()) == (plan.method, whole, b"")

        answer = b"".join(plan.answer)
        promised = () if plan.open_ended else ((b"content-length", b"%d" % len(answer)),)
        sent = b"HTTP/1.1 103 \r\nlink: a\r\n\r\n" * plan.interim
        sent += server.send_head(ResponseHead.of(200, b"OK", promised))
        sent += b"".join(map(server.send_body, plan.answer)) + server.send_body(b"", end=True)
        assert server.may_go_on
        head, received = None, b""
        for piece in pieces(sent):
            if head is None:
                client.feed(piece)
                head = client.receive_head()
                part = client.receive_body() if head is not None else None
            else:
                part = client.feed_body(piece)
            while part:
                received += part
                part = client.receive_body()
        assert head is not None
        assert head.status == 200
        assert received == (b"" if plan.method == b"HEAD" else answer)
        assert client.receive_body() == b""
        assert client.end_exchange()


@given(st.lists(st.sampled_from(CALLS), max_size=4), sizes, st.binary(max_size=4))
@example([CALLS[2], CALLS[0]], [1] * 60, b"")
def test_requests_are_read_as_h11_reads_them_however_they_are_cut(
    calls: list[bytes], sizes: list[int], behind: bytes
) -> None:
    check_requests(b"".join(calls) + behind, sizes)


@given(st.lists(st.sampled_from(ANSWERS), max_size=4), sizes, st.sampled_from(sorted(ASKED)))
def test_answers_are_read_as_h11_reads_them_however_they_are_cut(
    answers: list[bytes], sizes: list[int], request: str
) -> None:
    check_answers(answers, sizes, request)


@given(
    st.lists(
        st.binary(max_size=20) | st.sampled_from([*CALLS, b"\r\n", b"0\r\n\r\n", b"1\r\na\r\n", b"\r\n\r\n"]),
        max_size=8,
    )
)
def test_only_the_declared_errors_leave_a_server(pieces: list[bytes]) -> None:
    http = ServerHTTP()
    request = None
    for piece in [*pieces, b""]:
        http.feed(piece)
        http.ended = not piece
        try:
            if request is None:
                raw = http.take_head()
                if raw is None:
                    continue
                request = http.begin_request(raw)
            while data := http.receive_body():
                assert len(data) <= BODY_BYTES_MAX
            if data == b"":
                http.send_head(OK, b"ok", end=True)
                request = None
                if not http.may_go_on:
                    break
        except BadRequest:
            http.refuse()
            http.send_head(OK, b"ok", end=True)
            break
        except InboundBroken:
            http.send_head(OK, b"ok", end=True)
            break
    if not http.persistent:
        http.feed(b"behind")
        http.drain()
        assert not http.held


@given(
    st.lists(
        st.binary(max_size=20) | st.sampled_from([*ANSWERS, b"\r\n", b"0\r\n\r\n", b"1\r\na\r\n"]),
        max_size=8,
    )
)
def test_only_the_declared_errors_leave_a_client(pieces: list[bytes]) -> None:
    http = ClientHTTP()
    http.send_request(ASK)
    head = None
    try:
        for piece in [*pieces, b""]:
            http.feed(piece)
            http.ended = not piece
            if head is None:
                head = http.receive_head()
            if head is not None and body_of(http) == b"" and http.incoming is State.DONE:
                if not http.end_exchange():
                    return
                http.send_request(ASK)
                head = None
    except OutboundBroken:
        assert not http.end_exchange()


def test_no_scheduler_and_no_stream_is_known_here() -> None:
    for name in ("http_state", "http_connection", "http_server", "http_client"):
        path = Path(sys.modules[f"proxy.exchange.{name}"].__file__ or "")
        imported = {
            alias.name if isinstance(node, ast.Import) else node.module or ""
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        assert imported.isdisjoint({"trio", "ssl", "socket", "time"}), name
