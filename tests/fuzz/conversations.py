"""What the connections without I/O are held to: h11 over the same bytes, and the rules of the single heads.

Each check takes arbitrary bytes of a peer and raises AssertionError where the product and h11 differ. As far
as our connection goes, h11 has read the same requests or answers, with the same bodies and the same ends, and
agrees that another exchange may follow. Where ours stops before, h11 has refused it too, or a rule says why.
Nothing but the declared errors escapes.
"""

from __future__ import annotations

import re

import attrs
import h11
import pytest

from proxy.exchange.http_client import INTERIM_MAX, ClientHTTP
from proxy.exchange.http_connection import HTTPConnection
from proxy.exchange.http_server import ServerHTTP
from proxy.exchange.http_state import SWITCHED, WITHHELD
from proxy.message.failure import InboundBroken, OutboundBroken, StreamCode
from proxy.message.head import HEAD_BYTES_MAX, RequestHead, ResponseHead
from proxy.message.strict import BadRequest
from tests.fuzz.differential import END, cut, obeys_the_request_rules, obeys_the_response_rules, one_head

OK = ResponseHead.of(200, b"OK", ((b"content-length", b"0"),))
# Requests whose answers are read. All have the headers that h11 wants.
HOST = (b"host", b"a")
SWITCHING = (HOST, (b"connection", b"Upgrade"), (b"upgrade", b"websocket"))
ASKED = {
    "get": RequestHead.of(b"GET", b"/", (HOST,)),
    "head": RequestHead.of(b"HEAD", b"/", (HOST,)),
    "upgrade": RequestHead.of(b"GET", b"/", SWITCHING),
}
_FEED_MOST = 2 * HEAD_BYTES_MAX


@attrs.define
class Message:
    """A message as one of the two has read it, as far as it has come."""

    head: RequestHead | ResponseHead
    body: bytes = b""
    whole: bool = False
    switched: bool = False


@attrs.define
class Ours:
    """What our connection made of a peer's bytes."""

    messages: list[Message] = attrs.Factory(list)
    refused: str = ""
    """Why it stopped: "head", "body", "cut short"."""
    held: bytes = b""
    """What it had not read where it stopped at a head."""
    goes_on: bool = True
    begun: int = 0
    """The exchanges that it has begun, as a client."""
    trailers: bool = False


# -- the server's role --------------------------------------------------------------------------------------


def check_requests(wire: bytes, sizes: list[int]) -> None:
    """Hold what a server reads of a client's bytes to h11, however they are cut; each request gets a 200."""
    pieces = cut(wire, sizes)
    ours = read_requests(pieces)
    theirs, error = h11_requests(pieces, len(ours.messages))
    _compare(ours, theirs, error)
    if ours.refused == "head" and len(theirs) > len(ours.messages):
        # h11 goes on where a rule of ours forbids it.
        raw = one_head(ours.held)
        assert refused_early(ours.held) or not obeys_the_request_rules(raw) or is_upgrade_with_body(raw), raw
    if not ours.goes_on and not ours.refused:
        last = ours.messages[-1]
        assert isinstance(last.head, RequestHead)
        assert ours.trailers or b"close" in last.head.fields.connection, wire


def read_requests(pieces: list[bytes]) -> Ours:
    http, ours = ServerHTTP(), Ours()
    feed = Feed(http, pieces)
    try:
        while True:
            before = bytes(http.held)
            raw = http.take_head()
            if raw is None:
                if not feed.more():
                    return ours
                continue
            before = raw
            ours.messages.append(message := Message(http.begin_request(raw)))
            if http.incoming is WITHHELD and len(ours.messages) % 2:
                assert http.send_continue() == b"HTTP/1.1 100 \r\n\r\n"
            persistent = http.persistent
            while (data := http.receive_body()) != b"":
                http.crowded = False
                if data is not None:
                    message.body += data
                else:
                    feed.more()
            message.whole = True
            ours.trailers = persistent and not http.persistent
            assert http.send_head(OK, end=True).startswith(b"HTTP/1.1 200 OK\r\n")
            ours.goes_on = http.may_go_on
            if not ours.goes_on:
                return ours
    except BadRequest:
        ours.refused, ours.held, ours.goes_on = "head", before, False
        http.refuse()
        answer = http.send_head(ResponseHead.of(400), b"no", end=True)
        assert b"Connection: close\r\n" in answer
        assert not http.may_go_on
        while not http.drain() and feed.more():
            pass
    except InboundBroken as broken:
        ours.refused = "body" if broken.failure.code is StreamCode.PROTOCOL else "cut short"
        ours.goes_on = False
        assert b"Connection: close\r\n" in http.send_head(OK, end=True)
        assert not http.may_go_on
    return ours


def h11_requests(pieces: list[bytes], answers: int) -> tuple[list[Message], bool]:
    """What h11 reads as a server that answers so many requests; whether it refused the next one."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_FEED_MOST)
    messages: list[Message] = []
    left = [*pieces, b""]
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                if not left:
                    return messages, False
                connection.receive_data(left.pop(0))
            elif isinstance(event, h11.Request):
                head = RequestHead.of(event.method, event.target, tuple(event.headers))
                messages.append(Message(head))
            elif isinstance(event, h11.Data):
                messages[-1].body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                messages[-1].whole = True
                if len(messages) > answers:
                    return messages, False
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                    return messages, False
                connection.start_next_cycle()
            else:
                return messages, False
    except h11.RemoteProtocolError:
        return messages, True


def refused_early(held: bytes) -> bool:
    """Whether bytes can be refused before a head is whole: they are no HTTP, or a line ends in a bare LF."""
    early = held.partition(END)[0] if END in held else held
    return not 0x21 <= held[0] <= 0x7E or early.replace(b"\r\n", b"").count(b"\n") > 0


def is_upgrade_with_body(raw: bytes) -> bool:
    headers = [line.partition(b":") for line in raw.lower().split(b"\r\n")[1:]]
    names = {name for name, _, _ in headers}
    return b"upgrade" in names and bool(names & {b"content-length", b"transfer-encoding"})


# -- the client's role --------------------------------------------------------------------------------------


def check_answers(wires: list[bytes], sizes: list[int], asked: str) -> None:
    """Hold what a client reads to h11, however it is cut: a request is sent, its bytes come, and so on.

    A server that is to send more for an answer than it has here ends.
    """
    exchanges = [cut(wire, sizes) for wire in wires]
    ours = read_answers(exchanges, ASKED[asked])
    theirs, error = h11_answers(exchanges[: ours.begun], ASKED[asked])
    _compare(ours, theirs, error)
    if ours.refused == "head" and len(theirs) > len(ours.messages):
        # h11 goes on where a rule of ours forbids it.
        raw = one_head(ours.held)
        assert (
            refused_early(ours.held)
            or not obeys_the_response_rules(raw)
            or theirs[-1].switched
            or ours.held.count(b"HTTP/1.") > INTERIM_MAX
        ), raw


def read_answers(exchanges: list[list[bytes]], request: RequestHead) -> Ours:
    http, ours = ClientHTTP(), Ours()
    heads = b""
    try:
        for pieces in exchanges:
            feed = Feed(http, pieces)
            ours.begun += 1
            assert http.send_request(request).endswith(END)
            heads = b"".join(pieces)
            while (head := http.receive_head()) is None:
                feed.more()
            ours.messages.append(message := Message(head))
            if http.incoming is SWITCHED:
                message.switched, ours.goes_on = True, False
                return ours
            while (data := http.receive_body()) != b"":
                if data is not None:
                    message.body += data
                else:
                    feed.more()
            message.whole = True
            feed.rest()
            ours.goes_on = http.end_exchange()
            if not ours.goes_on:
                return ours
    except OutboundBroken as broken:
        malformed = broken.failure.code is StreamCode.PROTOCOL
        in_body = bool(ours.messages) and not ours.messages[-1].whole
        ours.refused = ("body" if in_body else "head") if malformed else "cut short"
        ours.held, ours.goes_on = _behind_interim(heads), False
        assert not http.end_exchange()
        if malformed:
            with pytest.raises(OutboundBroken, match=re.escape(str(broken))):
                http.receive_head()
    return ours


def h11_answers(exchanges: list[list[bytes]], request: RequestHead) -> tuple[list[Message], bool]:
    """What h11 reads of the exchanges that ours has begun, and whether it refused some of it."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_FEED_MOST)
    messages: list[Message] = []
    asked = h11.Request(method=request.method, target=request.target, headers=list(request.headers))
    try:
        for number, pieces in enumerate(exchanges):
            if number:
                assert (connection.our_state, connection.their_state) == (h11.DONE, h11.DONE)
                assert connection.trailing_data == (b"", False)
                connection.start_next_cycle()
            connection.send(asked)
            connection.send(h11.EndOfMessage())
            left = [*pieces, b""]
            while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    if not left:
                        return messages, False
                    connection.receive_data(left.pop(0))
                elif isinstance(event, h11.InformationalResponse):
                    if event.status_code == 101:
                        messages.append(Message(_head_of(event), switched=True))
                        return messages, False
                elif isinstance(event, h11.Response):
                    messages.append(Message(_head_of(event)))
                else:
                    assert isinstance(event, h11.Data), event
                    messages[-1].body += bytes(event.data)
            messages[-1].whole = True
            for piece in left[:-1]:
                connection.receive_data(piece)
    except h11.RemoteProtocolError:
        return messages, True
    return messages, False


def _head_of(event: h11.Response | h11.InformationalResponse) -> ResponseHead:
    return ResponseHead.of(event.status_code, event.reason, tuple(event.headers))


def _behind_interim(held: bytes) -> bytes:
    """What is left behind the interim heads that both have read."""
    while held.startswith((b"HTTP/1.1 1", b"HTTP/1.0 1")) and held[9:12] != b"101" and END in held:
        if not obeys_the_response_rules(one_head(held)):
            break
        held = held.partition(END)[2]
    return held or b"\x00"


# -- both ---------------------------------------------------------------------------------------------------


class Feed:
    """Feeds a piece each time that more is asked for, and then the end."""

    def __init__(self, http: HTTPConnection, pieces: list[bytes]) -> None:
        self._http = http
        self._pieces = pieces[:]

    def more(self) -> bool:
        if self._pieces:
            self._http.feed(self._pieces.pop(0))
            return True
        self._http.ended = True
        return False

    def rest(self) -> None:
        while self._pieces:
            self.more()


def _compare(ours: Ours, theirs: list[Message], error: bool) -> None:
    """Hold what was read to what h11 has read, message by message."""
    for number, message in enumerate(ours.messages):
        assert number < len(theirs), (message, error)
        other = theirs[number]
        assert message.head == other.head, (message, other)
        assert message.switched == other.switched
        if message.whole:
            assert (other.whole, other.body) == (True, message.body), (message, other)
        elif ours.refused == "body":
            assert error, (message, other)
            assert not other.whole, (message, other)
        elif not message.switched:
            assert not other.whole, (message, other)
            assert other.body == message.body, (message, other)
