"""One HTTP/1.1 connection without I/O: received bytes are fed, bytes to send are returned.

`proxy.message.strict` reads heads, `proxy.message.body` reads chunks, `http_state` says what may follow what.
This file joins them for both roles, which are `http_server` and `http_client`. It never waits and has no
clock: the owner of a socket feeds it, and sends what it returns.

Received bytes stay in one buffer until their meaning is known. While an answer is due they may be the next
request, or the first bytes of another protocol. So a body takes no byte beyond its end. The bytes
behind it are the next head or, after a 101, the raw stream's.

Two kinds of error leave it. BadRequest, InboundBroken and OutboundBroken are the peer's doing. FramingFault
and IllegalStep are errors of our own code.
"""

from __future__ import annotations

from typing import ClassVar, Final

from proxy.exchange.http_state import BODY, DATA, DONE, END, FAULT, IDLE, WITHHELD, State, Transitions
from proxy.message.body import BODY_BYTES_MAX, BodyError, ChunkedBody
from proxy.message.failure import ExchangeBroken, Failure
from proxy.message.strict import HeadScanner

# What is received at once where the last bytes were mostly framing: 1,300 chunks of a byte each.
CROWDED_BYTES_MAX = 8 * 1024

# How a body that is sent is framed: there is none, by its length, in chunks, by the connection's end.
EMPTY: Final = 0
COUNTED: Final = 1
CHUNKED: Final = 2
ENDLESS: Final = 3


class FramingFault(Exception):
    """A body of another length than its head says was about to be sent: an error of our own code."""


class HTTPConnection(HeadScanner):
    """What both roles share: the buffer of received bytes, the body that comes and the one that goes."""

    __slots__ = (
        "_chunks",
        "_framing",
        "_left",
        "_unsent",
        "crowded",
        "ended",
        "fault",
        "incoming",
        "outgoing",
        "persistent",
    )

    _received: ClassVar[Transitions]
    _sent: ClassVar[Transitions]
    _broken: ClassVar[type[ExchangeBroken]]

    def __init__(self, head_bytes_max: int) -> None:
        super().__init__(head_bytes_max)
        self.incoming: State = IDLE
        """The state of the message that we receive."""
        self.outgoing: State = IDLE
        """The state of the message that we send."""
        self.persistent = True
        """Whether another exchange may follow, as far as both sides have said."""
        self.ended = False
        """The peer sends no more. Set by the connection's owner."""
        self.crowded = False
        """The last bytes of the body were mostly framing, or more chunks are here than are read at once. The
        owner lets other connections run before it goes on; a server's sets it to False then."""
        self.fault: Failure | None = None
        """Why nothing behind this point of what the peer sends can be trusted."""
        # Of the body that comes: the bytes that are left of a counted one, the reader of a chunked one.
        self._left: int | None = 0
        self._chunks: ChunkedBody | None = None
        # Of the body that goes.
        self._framing = EMPTY
        self._unsent = 0

    def receive_body(self) -> bytes | None:
        """Return body bytes that are here, b"" at the clean end, None where more has to be fed.

        Raises InboundBroken or OutboundBroken, and the same again when it is called again.
        """
        while (state := self.incoming) is not DONE:
            if state is not BODY:
                if self.fault is not None:
                    raise self._broken(self.fault)
                if state is not WITHHELD or self.held:
                    self.incoming = self._received[state, DATA]
            left = self._left
            if not self.held:
                if not self.ended:
                    return None
                if left is not None or self._chunks is not None:
                    raise self._cut_short()
                self.incoming = self._received[BODY, END]
                return b""
            data = self.take_rest(BODY_BYTES_MAX if left is None or left > BODY_BYTES_MAX else left)
            if left is not None:
                self._left = left = left - len(data)
                if not left:
                    self.incoming = self._received[BODY, END]
                return data
            if self._chunks is None or (data := self._unframe(self._chunks, data)):
                return data
        return b""

    def feed_body(self, data: bytes) -> bytes | None:
        """Feed received bytes, and return body bytes as `receive_body` does.

        What belongs to the body as a whole is not stored first, as bytes must be that may hold a head.
        """
        if self.incoming is BODY and data and not self.held and len(data) <= BODY_BYTES_MAX:
            if self._chunks is not None:
                return self._unframe(self._chunks, data) or self.receive_body()
            left = self._left
            if left is None:
                return data
            if len(data) < left:
                self._left = left - len(data)
                return data
        self.feed(data)
        return self.receive_body()

    def send_body(self, data: bytes, *, end: bool = False, first: bytes = b"") -> bytes:
        """Return `first` and behind it body bytes as they are framed, with the clean end when `end`.

        Raises FramingFault, and IllegalStep where no body can be sent.
        """
        if not (data or end):
            return first
        if self.outgoing is not BODY:
            self.outgoing = self._sent[self.outgoing, DATA]
        framing = self._framing
        if framing == CHUNKED:
            if data:
                last = b"\r\n0\r\n\r\n" if end else b"\r\n"
                first = b"".join((first, b"%x\r\n" % len(data), data, last))
            else:
                first += b"0\r\n\r\n"
        elif framing == COUNTED:
            self._unsent = left = self._unsent - len(data)
            if left < 0 or (end and left):
                self.outgoing = self._sent[BODY, FAULT]
                raise FramingFault("the body has another length than its head says")
            first += data
        elif framing == ENDLESS:
            first += data
        if end:
            self.outgoing = self._sent[BODY, END]
        return first

    @property
    def sends_chunks(self) -> bool:
        """Whether the body that we send is framed in chunks."""
        return self._framing == CHUNKED

    def _unframe(self, chunks: ChunkedBody, received: bytes) -> bytes:
        """Return the body's bytes among those of its chunks, which may be none."""
        try:
            data = chunks.feed(received)
        except BodyError as exc:
            raise self._malformed_body() from exc
        reached, rest = chunks.reached, chunks.rest
        if reached:
            self.incoming = self._received[BODY, END]
            # h11 takes bare LFs among trailers, and a server in front of us may see another end.
            if chunks.trailers:
                self.persistent = False
        if rest:
            self.put_back(rest)
        framing = len(received) - len(rest) - len(data)
        self.crowded = not reached and (
            bool(rest) or (framing > len(data) and framing > CROWDED_BYTES_MAX // 2)
        )
        return data

    def _malformed_body(self) -> ExchangeBroken:
        """Break the message that we receive, whose body is framed wrongly."""
        raise NotImplementedError

    def _cut_short(self) -> ExchangeBroken:
        """The peer has ended within its message."""
        raise NotImplementedError
