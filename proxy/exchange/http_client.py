"""The client's role of an HTTP/1.1 connection without I/O."""

from __future__ import annotations

from proxy.exchange.http_connection import CHUNKED, COUNTED, HTTPConnection
from proxy.exchange.http_state import (
    ANSWER,
    ASKED,
    AWAITED,
    DONE,
    END,
    FAULT,
    HEAD,
    INTERIM,
    NEXT,
    REQUEST,
    SWITCH,
    WHOLE,
    IllegalStep,
)
from proxy.message.body import ChunkedBody
from proxy.message.failure import Failure, OutboundBroken, Processed, StreamCode
from proxy.message.head import (
    ANSWER_HEAD_BYTES_MAX,
    HeadError,
    HeadTooLarge,
    RequestHead,
    ResponseHead,
    check_switch,
    connection_tokens,
)
from proxy.message.strict import MAY_CLOSE, AnswerLines, BadRequest, BadResponse, read_response_head

# Interim heads (100, 103) before an answer. A server that sends more is stalling.
INTERIM_MAX = 32


class ClientHTTP(HTTPConnection):
    """The client's role. `send_request` begins an exchange, `end_exchange` ends one that went well."""

    __slots__ = ("_interim", "_lines", "_method", "_upgrade")

    _received = ANSWER
    _sent = REQUEST
    _broken = OutboundBroken

    def __init__(self) -> None:
        super().__init__(ANSWER_HEAD_BYTES_MAX)
        self._lines = AnswerLines()
        self._method = b""
        # The protocol that the request wants to upgrade to.
        self._upgrade: bytes | None = None
        self._interim = 0

    def send_request(self, head: RequestHead) -> bytes:
        """Begin an exchange, and return its encoded head. Raises OutboundBroken if that is TOO_LARGE."""
        if not self.persistent:
            raise IllegalStep("a request after the last one")
        try:
            encoded = head.encode()
        except HeadTooLarge as exc:
            # The client's head may fit, and the head with our additional headers may not.
            raise OutboundBroken(Failure(StreamCode.TOO_LARGE, Processed.NO, str(exc))) from exc
        fields = head.fields
        length = fields.body_length
        self.outgoing = REQUEST[self.outgoing, WHOLE if length == 0 else HEAD]
        self.incoming = ANSWER[self.incoming, ASKED]
        if length is None:
            self._framing = CHUNKED
        else:
            self._framing = COUNTED
            self._unsent = length
        self._method = head.method
        self._upgrade = fields.upgrade
        self._interim = 0
        self.persistent = fields.persistent
        return encoded

    def receive_head(self) -> ResponseHead | None:
        """Return the final head or a requested 101; None if more bytes have to be fed.

        Other interim heads are dropped. Raises OutboundBroken, again on each further call: UPSTREAM_RESET
        when the connection ends first, PROTOCOL for a malformed answer.
        """
        if self.fault is not None:
            raise OutboundBroken(self.fault)
        while self._interim < INTERIM_MAX:
            try:
                raw = self.take_head()
                if raw is None:
                    if self.ended:
                        raise self.lost("the server closed the connection before its answer")
                    return None
                head, is_1_1 = read_response_head(raw, self._lines)
            except BadRequest as exc:
                raise self._malformed(exc.message) from exc
            except BadResponse as exc:
                raise self._malformed(str(exc)) from exc
            if not is_1_1:
                self.persistent = False
            if head.status >= 200:
                self._begin_body(head)
                return head
            if head.status == 101:
                try:
                    check_switch(head, self._upgrade)
                except HeadError as exc:
                    raise self._malformed(str(exc)) from exc
                self.incoming = ANSWER[self.incoming, SWITCH]
                return head
            self.incoming = ANSWER[self.incoming, INTERIM]
            self._interim += 1
        raise self._malformed(f"more than {INTERIM_MAX} interim answers")

    def end_exchange(self) -> bool:
        """End the exchange if both sides are complete; return whether another one may follow.

        A request of a known length is complete with its last byte, even without `end`.
        """
        if not (self.persistent and self.incoming is DONE) or self.held or self.ended:
            return False
        if self.outgoing is not DONE:
            if self._framing != COUNTED or self._unsent:
                return False
            self.outgoing = REQUEST[self.outgoing, END]
        self.incoming = ANSWER[DONE, NEXT]
        self.outgoing = REQUEST[DONE, NEXT]
        return True

    def forget_lines(self) -> None:
        """Drop the cache of answer lines: after an exchange of hours it is of little use."""
        self._lines = AnswerLines()

    def lost(self, reason: str) -> OutboundBroken:
        """Return the error of a broken connection."""
        return OutboundBroken(Failure(StreamCode.UPSTREAM_RESET, self._processed, reason))

    def fail(self, failure: Failure) -> OutboundBroken:
        """Trust no further bytes from the server. Returns the error, which each later call raises."""
        self.fault = failure
        self.incoming = ANSWER[self.incoming, FAULT]
        return OutboundBroken(failure)

    @property
    def _processed(self) -> Processed:
        """Whether the server has processed the request, as far as its answer shows."""
        if self.fault is not None:
            return self.fault.processed
        return Processed.MAYBE if self.incoming is AWAITED else Processed.YES

    def _begin_body(self, head: ResponseHead) -> None:
        """Determine the end of the answer's body, by RFC 9112 section 6.3."""
        if self._method == b"CONNECT" and head.status < 300:
            raise self._malformed("an answer that would open a tunnel")
        length = self._left = head.body_length
        self._chunks = None
        self.crowded = False
        if length == 0 or not head.has_body(self._method):
            self.incoming = ANSWER[self.incoming, WHOLE]
        else:
            self.incoming = ANSWER[self.incoming, HEAD]
            if length is None:
                if b"\ntransfer-encoding: " in head.encode():
                    self._chunks = ChunkedBody()
                else:
                    self.persistent = False
        # The lines are split only for an answer that may close the connection.
        if self._lines.says & MAY_CLOSE and b"close" in connection_tokens(head.headers):
            self.persistent = False

    def _malformed(self, reason: str) -> OutboundBroken:
        return self.fail(Failure(StreamCode.PROTOCOL, self._processed, reason))

    def _malformed_body(self) -> OutboundBroken:
        return self._malformed("the framing of the answer's body is broken")

    def _cut_short(self) -> OutboundBroken:
        return self.lost("the server closed the connection within its answer")
