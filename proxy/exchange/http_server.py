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

# What is kept of a client that sends before it has its answer. Beyond this its socket is not read, so a
# client that leaves then is noticed when the answer is sent.
EARLY_BYTES_MAX = 64 * 1024
# What is read and dropped behind an early answer, for a client that looks only when it has sent all.
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
        """The current request's head; None where it was refused."""
        self.fields: Fields | None = None
        """The headers of the last request: a client that sends them again is understood by a comparison."""
        self._drained = 0

    @property
    def full(self) -> bool:
        """Whether no more is to be fed while an answer is due."""
        return len(self.held) >= EARLY_BYTES_MAX

    @property
    def may_go_on(self) -> bool:
        """Whether another request may follow: this one and its answer are whole, and both sides agree."""
        return self.persistent and self.outgoing is DONE and self.incoming is DONE

    def begin_request(self, raw: bytes) -> RequestHead:
        """Begin with the request whose whole head this is (`take_head`); raises BadRequest, see `refuse`."""
        if not self.persistent:
            raise IllegalStep("a request behind the last one")
        request = read_request_head(raw, self.fields)
        fields = request.fields
        length = fields.body_length
        step = WHOLE
        if length != 0:
            if fields.upgrade is not None:
                # The bytes behind the head could be the body's or the new protocol's.
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
        """Begin the answer to a request that is not understood. It is the last one."""
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
        """Return the bytes of the answer's head, and of the body bytes and the end that are here already.

        The framing is decided here: a Content-Length in `head` is kept, any other body is chunked. A whole
        answer (`end`) drops a body that is not read yet, if all of it is here; where it is not, this answer
        is the last one. Behind a 101, `data` are raw bytes.
        """
        request = self.request
        encoded = head.encode()
        if head.status == 101:
            if request is None or request.upgrade is None:
                raise IllegalStep("a 101 that the request did not ask for")
            self.outgoing = ANSWER[self.outgoing, SWITCH]
            return encoded + data
        # A head that cannot be written leaves the answer due.
        following = ANSWER[self.outgoing, HEAD]
        if self.incoming is not DONE and not (end and self._drop_body()):
            self.persistent = False
            if self.incoming is WITHHELD:
                self.incoming = REQUEST[WITHHELD, ANSWERED]
        if request is not None and b"close" in request.fields.connection:
            self.persistent = False
        if head.passes is not encoded:
            # A head that just passes says nothing of a connection.
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
            # A client that was not understood may not know chunks.
            self._framing = ENDLESS
        else:
            self._framing = CHUNKED if has_body else EMPTY
            # After HEAD as well: it stands for what a GET would get.
            if head.status not in BODILESS_STATUSES:
                ours = b"Transfer-Encoding: chunked\r\n"
        if not self.persistent:
            ours += b"Connection: close\r\n"
        return self.send_body(data, end=end, first=b"%s%s\r\n" % (encoded[:-2], ours) if ours else encoded)

    def drain(self) -> bool:
        """Drop what was fed behind an early answer. True once nothing more has to be read.

        That is where the request's body ends: then nothing is unread. A body that cannot be trusted, or that
        takes long to read, is dropped up to LINGER_BYTES_MAX without a look.
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
        """Drop a body that is not read yet, if all of it is here; whether it was."""
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
    """The head of an answer without what is decided here."""
    ours = {b"connection", b"transfer-encoding"}
    return ResponseHead.of(
        head.status, head.reason, tuple([header for header in head.headers if header[0] not in ours])
    )
