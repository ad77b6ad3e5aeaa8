"""The server's role of an HTTP/1.1 connection without I/O."""

from __future__ import annotations

from proxy.exchange.http_connection import CHUNKED, COUNTED, EMPTY, ENDLESS, HTTPConnection
from proxy.exchange.http_state import (
    ANSWER,
    ANSWERED,
    ASKED,
    BROKEN,
    CONTINUE,
    DONE,
    EXPECT,
    FAULT,
    HEAD,
    INTERIM,
    NEXT,
    OFFERED,
    REFUSE,
    REQUEST,
    SWITCH,
    WHOLE,
    WITHHELD,
    IllegalStep,
)
from proxy.message.body import CHUNKS_AT_ONCE_MAX, ChunkedBody
from proxy.message.failure import GONE, Failure, InboundBroken, Processed, StreamCode
from proxy.message.head import (
    BODILESS_STATUSES,
    HEAD_BYTES_MAX,
    Fields,
    RequestHead,
    ResponseHead,
    connection_tokens,
)
from proxy.message.strict import BadRequest, read_request_head

# Bytes kept from a client that sends before it has its answer. Beyond this its socket is not read, so its
# departure is noticed only when the answer is sent. A call that waits for it is given up (Received.wait_end).
EARLY_BYTES_MAX = 64 * 1024
# Bytes read and dropped after an early answer, for a client that reads only after it has sent everything.
LINGER_BYTES_MAX = 16 * 1024 * 1024


class ServerHTTP(HTTPConnection):
    """The server's role. `begin_request` and `refuse` begin an exchange, `send_head` its answer."""

    __slots__ = ("_drained", "fields", "request")

    _received = REQUEST
    _sent = ANSWER
    _broken = InboundBroken

    def __init__(self) -> None:
        super().__init__(HEAD_BYTES_MAX)
        self.request: RequestHead | None = None
        """The current request's head; None if it was refused."""
        self.fields: Fields | None = None
        """The headers of the last request. Repeated headers are recognized by comparison, without parsing."""
        self._drained = 0

    @property
    def full(self) -> bool:
        """Whether to feed no more bytes before the answer is sent."""
        return len(self.held) >= EARLY_BYTES_MAX

    @property
    def may_go_on(self) -> bool:
        """Whether another request may follow: request and answer are complete, and both sides agree."""
        return self.persistent and self.outgoing is DONE and self.incoming is DONE

    def begin_request(self, raw: bytes) -> RequestHead:
        """Begin the request with this complete head (`take_head`); raises BadRequest, see `refuse`."""
        if not self.persistent:
            raise IllegalStep("a request after the last one")
        request = read_request_head(raw, self.fields)
        fields = request.fields
        length = fields.body_length
        step = WHOLE
        if length != 0:
            if fields.upgrade is not None:
                # The bytes after the head could be the body's or the new protocol's.
                raise BadRequest(400, "an upgrade cannot have a body")
            step = EXPECT if b"expect" in fields.by_name else HEAD
            self.crowded = False
            self._left = length
            self._chunks = ChunkedBody(CHUNKS_AT_ONCE_MAX) if length is None else None
        self.incoming = REQUEST[REQUEST[self.incoming, NEXT], step]
        self.outgoing = ANSWER[ANSWER[self.outgoing, NEXT], ASKED]
        self.request = request
        self.fields = fields
        return request

    def refuse(self) -> None:
        """Begin the answer to a malformed request. It is the last one on the connection."""
        self.take_rest()
        self.request = None
        self.persistent = False
        self.incoming = REQUEST[REQUEST[self.incoming, NEXT], FAULT]
        self.outgoing = ANSWER[ANSWER[self.outgoing, NEXT], REFUSE]

    def send_continue(self) -> bytes:
        """Return the 100 that the client waits for."""
        self.outgoing = ANSWER[self.outgoing, INTERIM]
        self.incoming = REQUEST[self.incoming, CONTINUE]
        return b"HTTP/1.1 100 \r\n\r\n"

    def send_head(self, head: ResponseHead, data: bytes = b"", *, end: bool = False) -> bytes:
        """Return the encoded head of the answer, with the first body bytes and with `end` the end.

        This method decides the framing: a Content-Length in `head` is kept, any other body is chunked. A
        complete answer (`end`) drops an unread request body if all of it has arrived. Otherwise this answer
        is the last one. After a 101, `data` are raw bytes.
        """
        request = self.request
        encoded = head.encode()
        if head.status == 101:
            if request is None or request.upgrade is None:
                raise IllegalStep("a 101 that the request did not ask for")
            self.outgoing = ANSWER[self.outgoing, SWITCH]
            return encoded + data
        # Assigned only after the head is encoded: if that fails, the answer is still due.
        following = ANSWER[self.outgoing, HEAD]
        if self.incoming is not DONE and not (end and self._drop_body()):
            self.persistent = False
            if self.incoming is WITHHELD:
                self.incoming = REQUEST[WITHHELD, ANSWERED]
        if request is not None and b"close" in request.fields.connection:
            self.persistent = False
        if head.passes is not encoded:
            # A head that passes unchanged has no Connection header.
            if b"close" in connection_tokens(head.headers):
                self.persistent = False
            encoded = _without_framing(head).encode()
        self.outgoing = following
        ours = b""
        length = head.body_length
        has_body = head.has_body(request.method if request is not None else b"")
        if length is not None:
            self._framing = COUNTED if has_body else EMPTY
            self._unsent = length
        elif request is None:
            # A client that sent a malformed request may not know chunks.
            self._framing = ENDLESS
        else:
            self._framing = CHUNKED if has_body else EMPTY
            # After HEAD as well: its answer has the headers of a GET's.
            if head.status not in BODILESS_STATUSES:
                ours = b"Transfer-Encoding: chunked\r\n"
        if not self.persistent:
            ours += b"Connection: close\r\n"
        return self.send_body(data, end=end, first=b"%s%s\r\n" % (encoded[:-2], ours) if ours else encoded)

    def drain(self) -> bool:
        """Drop the bytes fed after an early answer. True once nothing more has to be read.

        That is the end of the request's body. A malformed body, or one that takes long to parse, is dropped
        unparsed, up to LINGER_BYTES_MAX.
        """
        self._drained += len(self.held)
        try:
            while self.held and self.incoming is not BROKEN:
                if not self.receive_body():
                    break
                if self.crowded:
                    self.incoming = REQUEST[self.incoming, FAULT]
        except InboundBroken:
            pass
        self.take_rest()
        return self.ended or self.incoming is DONE or self._drained >= LINGER_BYTES_MAX

    def _drop_body(self) -> bool:
        """Drop an unread body if all of it has arrived; return whether it has."""
        if self.incoming is not OFFERED:
            return False
        try:
            while data := self.receive_body():
                if self.crowded:
                    return False
        except InboundBroken:
            return False
        return data is not None

    def _malformed_body(self) -> InboundBroken:
        self.fault = Failure(StreamCode.PROTOCOL, Processed.MAYBE, "the request's body is malformed")
        self.incoming = REQUEST[self.incoming, FAULT]
        return InboundBroken(self.fault)

    def _cut_short(self) -> InboundBroken:
        return InboundBroken(GONE)


def _without_framing(head: ResponseHead) -> ResponseHead:
    """The head of an answer without the headers that `send_head` decides."""
    ours = {b"connection", b"transfer-encoding"}
    return ResponseHead.of(
        head.status, head.reason, tuple([header for header in head.headers if header[0] not in ours])
    )
