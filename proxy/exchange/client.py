"""The client's side of one HTTP/1.1 connection, over any trio stream: the Outbound of one exchange at a time.

An answer is held to the same strictness as a request: what could be read in two ways is broken, not repaired,
because somebody behind the API server (a pod behind `services/proxy`) may have written it. A connection is
used again only when an exchange ended cleanly on both sides; one that asked for an upgrade never is, whatever
the answer was (a refused upgrade whose connection lives on is CVE-2018-1002105).
"""

from __future__ import annotations

import trio

from proxy.exchange.ports import PassOn
from proxy.exchange.wire import FramingFault, RawStream, held_bytes
from proxy.message.body import BODY_BYTES_MAX, BodyError, ChunkedBody
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
from proxy.message.strict import (
    MAY_CLOSE,
    AnswerLines,
    BadRequest,
    BadResponse,
    HeadScanner,
    read_response_head,
)
from tunnel.net.connect import TLSStream
from tunnel.net.fairness import SMALL_PIECE_BYTES, fairness
from tunnel.net.readiness import Watch

# 100s and 103s before the answer; a server that sends more plays for time.
INTERIM_MAX = 32
# What is asked of a connection at once that brought mostly the framing of tiny chunks: 1,300 of a byte each.
CROWDED_BYTES_MAX = 8 * 1024


class ClientConnection:
    """A connection to a server. `send_request` begins an exchange, `end_exchange` ends one that went well.

    It owns the stream; `aclose` cuts it, in whatever it is.

    Where the stream is TLS over a socket of ours, an exchange can begin without a wait, and its answer be
    taken in when a `watch` says that there is something: the methods that end in `_nowait`. What they leave
    undone, and what they found broken, is for their twins.
    """

    __slots__ = (
        # The hub remembers by a connection what its relay was told there, for as long as there is one.
        "__weakref__",
        "_answered",
        "_body_left",
        "_crowded",
        "_eof",
        "_framed",
        "_in_exchange",
        "_interim",
        "_left",
        "_lines",
        "_malformed_by",
        "_method",
        "_persistent",
        "_scanner",
        "_switched",
        "_tls",
        "_torn",
        "_unsent",
        "_upgrade",
        "body_read",
        "idle_since",
        "stream",
        "watch",
    )

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.watch: Watch | None = None
        """Whose it is to watch the connection; it is ended before the connection is."""
        self.idle_since = 0.0
        """Whoever keeps it between exchanges says since when."""
        self.stream = stream
        self._tls = stream if isinstance(stream, TLSStream) else None
        self._scanner = HeadScanner(ANSWER_HEAD_BYTES_MAX)
        self._lines = AnswerLines()
        self._method = b""
        # What is left to send of the request's body; None for chunks, whose end is yet to be sent.
        self._left: int | None = 0
        # What is left to receive of the answer's body. None is not known ahead: then `_framed` finds the end,
        # or it is the connection's.
        self._body_left: int | None = 0
        self._framed: ChunkedBody | None = None
        # What was taken apart last was mostly the framing of its chunks.
        self._crowded = False
        self.body_read = True
        """Whether the answer's body was received to its end; for others to read."""
        # Both sides want to go on with this connection, as far as they have said.
        self._persistent = True
        self._in_exchange = False
        self._answered = False
        # The protocol that was asked for in place of HTTP.
        self._upgrade: bytes | None = None
        self._switched = False
        self._eof = False
        # It is cut, or what is on its way is not all sent.
        self._torn = False
        # Of the head that was sent without a wait the kernel did not take all.
        self._unsent = False
        # 100s and 103s of this exchange.
        self._interim = 0
        # What made the answer one that cannot be trusted: nothing behind it can be.
        self._malformed_by: Failure | None = None

    async def send_request(self, head: RequestHead) -> None:
        """Begin an exchange: send the head, and the end of the request when it has no body.

        Raises OutboundBroken. The API server may have seen the request as soon as this was called, unless its
        head is TOO_LARGE.
        """
        await self._write(self._begin(head))

    def send_request_nowait(self, head: RequestHead) -> bool:
        """Begin an exchange of a request without a body; whether its head is on its way.

        When not, receive_head sends the rest of it, or raises what went wrong. Raises OutboundBroken for a
        head that is TOO_LARGE.
        """
        encoded = self._begin(head)
        stream = self._tls
        assert stream is not None, "only TLS can be sent to without a wait"
        try:
            sent = stream.send_nowait(encoded)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            # What was said before can be no answer to what was not sent.
            self._malformed_by = self._lost(f"the connection broke: {exc}").failure
            return False
        if not sent:
            self._torn = self._unsent = True
        return sent

    def _begin(self, head: RequestHead) -> bytes:
        """Begin an exchange; returns the bytes of its head."""
        assert not self._in_exchange, "an exchange has not ended on this connection, or not well"
        try:
            encoded = head.encode()
        except HeadTooLarge as exc:
            # It may fit as its sender wrote it, and not with what is added on the way.
            raise OutboundBroken(Failure(StreamCode.TOO_LARGE, Processed.NO, str(exc))) from exc
        self._in_exchange = True
        self._answered = False
        self._interim = 0
        fields = head.fields
        self._method = head.method
        self._upgrade = fields.upgrade
        self._left = fields.body_length
        self.body_read = False
        self._persistent = fields.persistent
        return encoded

    async def send_body(self, data: bytes) -> None:
        """Send bytes of the request's body."""
        if not data:
            return
        if self._left is None:
            data = b"".join((b"%x\r\n" % len(data), data, b"\r\n"))
        else:
            self._left -= len(data)
            if self._left < 0:
                self._torn = True
                raise FramingFault("the request's body is longer than its head says")
        await self._write(data)

    async def end_body(self) -> None:
        """Say that the request's body is whole."""
        if self._left is None:
            self._left = 0
            await self._write(b"0\r\n\r\n")
        elif self._left:
            self._torn = True
            raise FramingFault("the request's body is shorter than its head says")

    async def receive_head(self) -> ResponseHead:
        """Return the final head, or a 101 that was asked for; other 1xx are dropped.

        Raises OutboundBroken: UPSTREAM_RESET when the connection ends first, PROTOCOL for an answer that
        cannot be trusted.
        """
        if self._unsent:
            self._torn = self._unsent = False
            await self._write(b"")
        while (head := self.receive_head_nowait()) is None:
            await self._receive_in_turn()
        return head

    def receive_head_nowait(self) -> ResponseHead | None:
        """Return the final head if what was taken in holds it, None where receive_head would wait.

        Raises what receive_head raises, and it again.
        """
        if self._malformed_by is not None:
            raise OutboundBroken(self._malformed_by)
        while self._interim < INTERIM_MAX:
            try:
                raw = self._scanner.take_head()
                if raw is None:
                    if self._eof:
                        raise self._lost("the server closed the connection before its answer")
                    return None
                head, is_1_1 = read_response_head(raw, self._lines)
            except BadRequest as exc:
                raise self._malformed(exc.message) from exc
            except BadResponse as exc:
                raise self._malformed(str(exc)) from exc
            if not is_1_1:
                self._persistent = False
            if head.status >= 200:
                self._begin_body(head)
                self._answered = True
                return head
            if head.status == 101:
                try:
                    check_switch(head, self._upgrade)
                except HeadError as exc:
                    raise self._malformed(str(exc)) from exc
                self._answered = self._switched = True
                return head
            self._interim += 1
        raise self._malformed(f"more than {INTERIM_MAX} interim answers")

    def take_in_nowait(self) -> int | None:
        """Take in what has come on the connection, and return how many bytes; None when nothing has.

        Its end shows when the next thing is asked for. Raises OutboundBroken.
        """
        data = self._receive_nowait()
        if data is None:
            return None
        self._scanner.feed(data)
        return len(data)

    def take_in_body_nowait(self) -> bytes | None:
        """Take in what has come on the connection, and return body bytes as receive_body_nowait does.

        For whoever has left nothing of the body; there may be more than a piece of it now (`holds_more`).
        """
        assert not self._scanner.held, "what came before has to be received first"
        data = self._receive_nowait()
        if data is None:
            return None
        framed = self._framed
        if framed is None or self._body_left is not None or not data or len(data) > BODY_BYTES_MAX:
            self._scanner.feed(data)
            return self.receive_body_nowait()
        # It need not be kept first, as that has to be in which a head may stand.
        data = self._unframed(framed, data)
        # Where it was framing alone, the end may have come with it.
        return data if data or self.body_read else self.receive_body_nowait()

    def _receive_nowait(self) -> bytes | None:
        """Return what has come on the connection, b"" at its end, None when nothing has."""
        stream = self._tls
        assert stream is not None, "only TLS can be received from without a wait"
        try:
            data = stream.receive_nowait()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise self._lost(f"the connection broke: {exc}") from exc
        if stream.ended:
            # Also where the end came with data: it is taken from the socket, which then need not tell again.
            self._end()
        return data

    def _begin_body(self, head: ResponseHead) -> None:
        """Find out how the answer's body ends, by RFC 9112 section 6.3."""
        if self._method == b"CONNECT" and head.status < 300:
            raise self._malformed("an answer that would open a tunnel")
        length = self._body_left = head.body_length
        if length == 0 or not head.has_body(self._method):
            self.body_read = True
        elif length is None:
            if b"\ntransfer-encoding: " in head.encode():
                self._framed = ChunkedBody()
            else:
                self._framed = None
                self._persistent = False
        # Only then the lines are worth taking apart.
        if self._lines.says & MAY_CLOSE and b"close" in connection_tokens(head.headers):
            self._persistent = False

    def forget_lines(self) -> None:
        """Know none of the lines of its answers any more: who takes hours for one gets no second one soon."""
        self._lines = AnswerLines()

    async def receive_body(self, _: PassOn | None = None, /) -> bytes:
        """Return body bytes as they come; b"" at the clean end. Every piece is the caller's (see Outbound).

        Raises OutboundBroken when the connection ends, or breaks its framing, before that.
        """
        if self._crowded:
            # However many send such answers, one of them has its turn in a pass.
            await fairness().wait_alone()
        while (data := self.receive_body_nowait()) is None:
            await self._receive_in_turn()
        return data

    async def _receive_in_turn(self) -> None:
        """Receive something; when cancelled, nothing is lost. A server can answer hundreds at one moment."""
        data = await self._receive()
        self._scanner.feed(data)
        if len(data) <= SMALL_PIECE_BYTES and not (common := fairness()).admits():
            await common.wait()

    def receive_body_nowait(self) -> bytes | None:
        """Return body bytes that are already here, b"" at the clean end, None when there is a wait.

        Raises what receive_body raises.
        """
        while not self.body_read:
            left = self._body_left
            limit = BODY_BYTES_MAX if left is None or left > BODY_BYTES_MAX else left
            data = self._scanner.take_rest(limit)
            if not data:
                if self._malformed_by is not None:
                    raise OutboundBroken(self._malformed_by)
                if not self._eof:
                    return None
                if self._body_left is not None or self._framed is not None:
                    raise self._lost("the server closed the connection within its answer")
                self.body_read = True
            elif left is not None:
                self._body_left = left = left - len(data)
                self.body_read = not left
                return data
            elif self._framed is None or (data := self._unframed(self._framed, data)):
                return data
        return b""

    @property
    def held_bytes(self) -> int:
        """What it takes of memory: itself, and what is in hand for a server that does not take it now."""
        tls = self._tls
        return 0 if tls is None else held_bytes(tls, self._scanner, framed=self._left is None)

    @property
    def holds_more(self) -> bool:
        """Whether receive_body_nowait may say more now; where it may not, it would return None."""
        return bool(self._scanner.held) or self._eof

    def _unframed(self, framed: ChunkedBody, received: bytes) -> bytes:
        """Return the body's bytes among those of its chunks, which may be none."""
        try:
            data = framed.feed(received)
        except BodyError as exc:
            raise self._malformed("the framing of the answer's body is broken") from exc
        framing = len(received) - len(data)
        self._crowded = framing > len(data) and framing > CROWDED_BYTES_MAX // 2
        if framed.reached:
            self.body_read = True
            self._crowded = False
            if framed.rest:
                # Bytes that nobody asked for: they stay, so that the connection is not used again.
                self._scanner.put_back(framed.rest)
        return data

    def upgraded(self) -> RawStream:
        """Return the raw stream after a 101; the bytes that came with it are its first."""
        assert self._switched, "upgraded() without a 101"
        return RawStream(self.stream, self._scanner.take_rest(), ended=self._eof)

    async def abandon(self, failure: Failure | None = None) -> None:
        """Cut the connection under whoever waits in the exchange; does nothing between exchanges."""
        if self._in_exchange:
            self._torn = True
            await trio.aclose_forcefully(self.stream)

    def end_exchange(self) -> bool:
        """End the exchange, if nothing of it is left on either side; whether another one may follow.

        If not, the connection is good for nothing but to be cut.
        """
        if (
            self._persistent
            and self.body_read
            and self._left == 0
            and not self._torn
            and not self._scanner.held
            and not (self._tls is not None and self._tls.has_unread)
        ):
            self._in_exchange = False
            return True
        return False

    def end_watch(self) -> None:
        """Watch the connection no more, if it is watched."""
        if self.watch is not None:
            self.watch.end()
            self.watch = None

    def cut_nowait(self) -> None:
        """Cut the connection, whatever it is in."""
        self._torn = True
        self.end_watch()
        stream = self._tls
        assert stream is not None, "only TLS can be cut without a wait"
        stream.close_nowait()

    async def aclose(self) -> None:
        """Cut the connection, whatever it is in. May be called again."""
        self._torn = True
        await trio.aclose_forcefully(self.stream)

    async def _receive(self) -> bytes:
        if self._malformed_by is not None:
            raise OutboundBroken(self._malformed_by)
        if self._eof:
            return b""
        try:
            data = await self.stream.receive_some(CROWDED_BYTES_MAX if self._crowded else BODY_BYTES_MAX)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise self._lost(f"the connection broke: {exc}") from exc
        if not data:
            self._end()
        return bytes(data)

    def _end(self) -> None:
        """The server sends no more: all is here of an answer that ends with its connection."""
        self._eof = True
        self._persistent = False

    async def _write(self, data: bytes) -> None:
        if self._torn:
            raise self._lost("the connection broke before")
        self._torn = True  # until all of it is sent
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise self._lost(f"the connection broke: {exc}") from exc
        self._torn = False

    def _lost(self, reason: str) -> OutboundBroken:
        return self._broken(StreamCode.UPSTREAM_RESET, reason)

    def _malformed(self, reason: str) -> OutboundBroken:
        broken = self._broken(StreamCode.PROTOCOL, reason)
        self._malformed_by = broken.failure
        return broken

    def _broken(self, code: StreamCode, reason: str) -> OutboundBroken:
        self._torn = True
        return OutboundBroken(Failure(code, Processed.YES if self._answered else Processed.MAYBE, reason))
