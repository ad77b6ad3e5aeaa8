"""One HTTP/1.1 connection without I/O: received bytes are fed, bytes to send are returned.

`proxy.message.strict` parses heads, `proxy.message.body` parses chunks, `http_state` defines the legal
transitions. This module combines them for both roles, `http_server` and `http_client`. It never waits and has
no clock. The code with the socket feeds received bytes, and sends the returned ones.

Received bytes stay in one buffer until their meaning is known. Before the answer they may be the next
request, or the first bytes of another protocol. So a body takes no byte beyond its end. The bytes after
it belong to the next head or, after a 101, to the raw stream.

There are two kinds of errors. BadRequest, InboundBroken and OutboundBroken are errors of the peer.
FramingFault and IllegalStep are errors of our own code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Final

from proxy.exchange.http_state import BODY, DATA, DONE, END, FAULT, IDLE, WITHHELD, State, Transitions
from proxy.message.body import BODY_BYTES_MAX, BodyError, ChunkedBody
from proxy.message.failure import ExchangeBroken, Failure
from proxy.message.strict import HeadScanner

# The size of a read after bytes that were mostly framing: 1,300 chunks of a byte each.
CROWDED_BYTES_MAX = 8 * 1024

# The framing of a sent body: no body, by its length, in chunks, by the connection's end.
EMPTY: Final = 0
COUNTED: Final = 1
CHUNKED: Final = 2
ENDLESS: Final = 3


class FramingFault(Exception):
    """A body to send differs in length from its head: an error of our own code."""


class HTTPConnection(HeadScanner, ABC):
    """The parts common to both roles: the buffer of received bytes, the received and the sent body."""

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
        """The state of the received message."""
        self.outgoing: State = IDLE
        """The state of the sent message."""
        self.persistent = True
        """Whether another exchange may follow, by both sides' heads so far."""
        self.ended = False
        """The peer sends no more. Set by the code with the socket."""
        self.crowded = False
        """The last body bytes were mostly framing, or the buffer has more chunks than one read takes. The
        caller lets other connections run before it continues. A server's caller then sets it to False."""
        self.fault: Failure | None = None
        """The reason to trust no further bytes from the peer."""
        # The received body: the remaining bytes of a counted one, the parser of a chunked one.
        self._left: int | None = 0
        self._chunks: ChunkedBody | None = None
        # The sent body.
        self._framing = EMPTY
        self._unsent = 0

    def receive_body(self) -> bytes | None:
        """Return buffered body bytes, b"" at the clean end, None if more bytes have to be fed.

        Raises InboundBroken or OutboundBroken, and raises the same again on the next call.
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

        Bytes that all belong to the body bypass the buffer. Only bytes that may contain a head need it.
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
        """Return `first`, then the framed body bytes, and with `end` the clean end.

        Raises FramingFault, and IllegalStep if no body can be sent now.
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
        """Whether the sent body is framed in chunks."""
        return self._framing == CHUNKED

    def _unframe(self, chunks: ChunkedBody, received: bytes) -> bytes:
        """Return the body bytes in received chunks; there may be none."""
        try:
            data = chunks.feed(received)
        except BodyError as exc:
            raise self._malformed_body() from exc
        reached, rest = chunks.reached, chunks.rest
        if reached:
            self.incoming = self._received[BODY, END]
            # h11 accepts bare LFs in trailers. A server in front of us may then see another end of the body.
            if chunks.trailers:
                self.persistent = False
        if rest:
            self.put_back(rest)
        framing = len(received) - len(rest) - len(data)
        self.crowded = not reached and (
            bool(rest) or (framing > len(data) and framing > CROWDED_BYTES_MAX // 2)
        )
        return data

    @abstractmethod
    def _malformed_body(self) -> ExchangeBroken:
        """Mark the received message as broken by the framing of its body; return the error."""

    @abstractmethod
    def _cut_short(self) -> ExchangeBroken:
        """Return the error of a peer that has ended within its message."""
