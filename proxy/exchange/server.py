"""The server's side of one HTTP/1.1 connection, over any trio stream.

`proxy.message.strict` reads heads and `proxy.message.body` bodies; this file adds what a front needs beside
that: deadlines for the head and nothing else, the framing of answers, and an end that fits what was said.

Theory of operation. Received bytes first stand in one place (`proxy.exchange.received`). A head is cut off
and read. Body bytes go through a reader of their own, made for each request, as they are asked for; what
lies behind the end of the body goes back to the others, and is the next request, or the first bytes of an
upgraded stream. So bytes that a client sends too early wait until it is clear what they are, and after a
refused upgrade they are just the next request.

There are three ways to leave. After a whole answer to a whole request: the next request. After a whole answer
to a request that was not read to its end, or not understood: read on for a bounded while before closing,
because closing with unread bytes makes TCP send a reset, which can overtake the answer. After anything else:
cut, without TLS's close_notify, so that nobody takes the end for a clean one.

Small requests are what a hub is made of, so nothing here makes a pass of the scheduler that the stream below
does not make, and nothing is opened for a request but the request. One that need not wait needs no task
either (`proxy.exchange.stand_by`), and whether its client is still there is told by one, but mostly noticed
without (`proxy.exchange.attendance`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from contextlib import suppress
from types import TracebackType
from typing import Self

import trio

from proxy.exchange.attendance import Attendance
from proxy.exchange.deadlines import IDLE_S, Deadlines
from proxy.exchange.ports import OnGone
from proxy.exchange.received import Received
from proxy.exchange.stand_by import Begun, StandBy
from proxy.exchange.wire import FramingFault, RawStream, held_bytes
from proxy.message.body import BODY_BYTES_MAX, CHUNKS_AT_ONCE_MAX, BodyError, ChunkedBody, CountedBody
from proxy.message.failure import GONE, Failure, InboundBroken, Processed, StreamCode
from proxy.message.head import (
    BODILESS_STATUSES,
    LONG_HEAD_BYTES,
    Fields,
    RequestHead,
    ResponseHead,
    connection_tokens,
)
from proxy.message.strict import BadRequest, read_request_head
from tunnel.net.connect import TLSStream, tls_socket
from tunnel.net.fairness import SMALL_PIECE_BYTES, fairness
from tunnel.net.readiness import Readiness

# kube-apiserver's ReadHeaderTimeout, from the first byte of a head; for the first head from the connect.
HEAD_S = 32.0
# How long and how much is read on after an early answer, for a client that looks only when it has sent all.
LINGER_S = 5.0
LINGER_BYTES_MAX = 16 * 1024 * 1024
# The same for somebody who was not understood, and so is nobody yet.
REFUSED_LINGER_S = 1.0

# What has become of the answer to the current request.
_NONE, _AWAITED, _BEGUN, _WHOLE, _SWITCHED = range(5)
# How the body of an answer is framed: there is none, by its length, in chunks, by the connection's end.
_EMPTY, _COUNTED, _CHUNKED, _ENDLESS = range(4)


class ServerConnection:
    """A client's connection, and the Inbound of its current request.

    `next_request` is called in a loop; between two calls the answer is sent. It owns the stream until
    `detach`; whoever made it calls `aclose` at the end, also after a cancellation. With `deadlines` the wait
    between two requests is ended by its `run`, otherwise by a scope around each; whoever gave them uses it as
    a context, which ends that watch however the block is left, and closes nothing. What is sent without a
    wait goes to `tls`, where the stream is a wrapper of ours around that. With `readiness`, a client that
    leaves while its answer takes its time is noticed without a task.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        deadlines: Deadlines | None = None,
        tls: TLSStream | None = None,
        readiness: Readiness | None = None,
    ) -> None:
        self.peer: Hashable = None
        """Whose doing it is that something comes (`turns`), for whoever knows to say."""
        self._stream = stream
        # What sends without a wait.
        self._tls = stream if isinstance(stream, TLSStream) else tls
        self._readiness = readiness
        self._deadlines = deadlines
        self._idle = deadlines.watch(self) if deadlines is not None else None
        self._received = Received(stream)
        self._fields: Fields | None = None
        self._request: RequestHead | None = None
        # The reader of the request's body, until its end was reached; none is made for no body.
        self._body: CountedBody | ChunkedBody | None = None
        self._body_read = False
        # The body was asked for, so some of it may be gone to where it belongs; of one that is not read.
        self._body_begun = False
        # More of its chunks are here than are taken apart at once.
        self._crowded = False
        self._awaits_continue = False
        self._answer = _NONE
        self._framing = _EMPTY
        self._left = 0
        self._requests = 0
        # This exchange is the last one: the request was refused, or is not read to its end, or says so.
        self._last = False
        # A send did not finish, or the answer was given up: only a cut is left.
        self._torn = False
        # Of body bytes that were sent without a wait: the kernel did not take all.
        self._unsent_bytes = 0
        # The stream is closed, or somebody else's.
        self._released = False
        self._raw: RawStream | None = None
        self._interim: trio.Event | None = None
        self._attendance: Attendance | None = None
        self._stand_by: StandBy[ServerConnection] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._released:
            self._release()

    @property
    def raw_head(self) -> bytes:
        """The current request's head as it came."""
        request = self._request
        assert request is not None, "there is a request"
        return b"%s %s HTTP/1.1\r\n%s" % (request.method, request.target, request.fields.raw)

    @property
    def idle_until(self) -> float:
        """When its wait for another request ends, on trio's clock; infinite while it does not wait."""
        return self._idle.due_at if self._idle is not None else math.inf

    def end_idle(self) -> None:
        """Close it, if it waits for another request; its task finds its client gone."""
        if self._idle is not None and self._deadlines is not None:
            self._deadlines.expire(self._idle)

    # -- requests ------------------------------------------------------------------------------------------

    async def next_request(self) -> RequestHead | None:
        """Return the next request's head; None once the connection is over, and then it is closed.

        Raises BadRequest for what must not be read further. It can be answered like a request, and then the
        next call ends the connection. Cancelled, the connection can only be closed.

        While it waits, requests are begun and answered as `stand_by` says. When one of them needs a task to
        go on, that one's head is returned, and `take_begun` tells what was begun.
        """
        while True:
            if self._requests and not self._may_go_on():
                await self.aclose()
                return None
            self._requests += 1
            try:
                raw = self._received.take_head()
                if raw is not None:
                    # It came with the one before; who sends many at once must not keep the others out.
                    await trio.lowlevel.checkpoint()
                elif self._requests > 1 and self._stand_by is not None and self._stand_by.may_sleep:
                    if (head := await self._stand_by.sleep(self, self._idle)) is not None:
                        return head
                    continue
                else:
                    raw = await self._receive_head()
                if raw is None:
                    await self.aclose()
                    return None
                common = fairness()
                if len(raw) > LONG_HEAD_BYTES:
                    # However many send such heads, strangers among them, one is read in a pass.
                    await common.wait_alone(self.peer)
                elif not common.admits():
                    await common.wait(self.peer)
                return self.begin_request(raw)
            except BadRequest:
                self._refuse()
                raise

    async def _receive_head(self) -> bytes | None:
        """Return a whole head; None when the client has nothing more to ask."""
        raw = None
        if self._requests > 1 and not self._received.held:
            if not await self._receive_idle():
                return None
            raw = self._received.take_head()
            if raw is not None:
                return raw
        began = bool(self._received.held)
        with trio.move_on_after(HEAD_S) as scope:
            while raw is None:
                if not await self._received.receive():
                    return None
                if not began:
                    began = True
                    scope.deadline = trio.current_time() + HEAD_S
                raw = self._received.take_head()
        if raw is None and began:
            raise BadRequest(408, f"the request's head was not whole {HEAD_S:.0f} s after its first byte")
        return raw

    async def _receive_idle(self) -> bool:
        """Wait for another request to begin; False when none does, within IDLE_S."""
        idle, deadlines = self._idle, self._deadlines
        if idle is None or deadlines is None:
            with trio.move_on_after(IDLE_S):
                return await self._received.receive()
            return False
        deadlines.begin(idle, IDLE_S)
        try:
            return await self._received.receive()
        finally:
            idle.due_at = math.inf

    def begin_request(self, raw: bytes) -> RequestHead:
        """Begin with the request whose whole head this is; raises BadRequest (for `next_request`)."""
        self._request = request = read_request_head(raw, self._fields)
        self._fields = fields = request.fields
        self._answer = _AWAITED
        length = fields.body_length
        if length == 0:
            self._body_read = True
            return request
        self._body_read = self._body_begun = False
        if fields.upgrade is not None:
            # Whose bytes would follow the head, the body's or the new protocol's?
            raise BadRequest(400, "an upgrade cannot have a body")
        self._crowded = False
        self._body = ChunkedBody(CHUNKS_AT_ONCE_MAX) if length is None else CountedBody(length)
        self._awaits_continue = b"expect" in fields.by_name
        return request

    def _refuse(self) -> None:
        """Get ready to answer a request that was not understood."""
        self._received.take_rest()
        self._request = None
        self._body = None
        self._body_read = False
        self._awaits_continue = False
        self._answer = _NONE
        self._last = True

    def _may_go_on(self) -> bool:
        """Whether another request may follow on this connection."""
        if self._torn or self._released or self._last:
            return False
        return self._answer == _WHOLE and self._body_read

    # -- requests that need no task ------------------------------------------------------------------------

    def stand_by(
        self,
        stream: TLSStream,
        readiness: Readiness,
        begin: Callable[[ServerConnection, RequestHead], Begun | None],
    ) -> None:
        """From the next request on, have `begin` called for those that came whole and have no body.

        It is called in the midst of everything, while the connection's task waits in `next_request`. `stream`
        is the one that this connection was made with, or the one below that. Does nothing where there is no
        socket to watch.
        """
        socket = tls_socket(stream)
        if socket is not None:
            self._stream = self._received.stream = stream
            self._stand_by = StandBy(
                stream, socket.fileno(), self._received, begin, readiness, self._deadlines
            )

    def take_begun(self) -> Begun | None:
        """What was begun of the request that `next_request` returned; the caller's to go on with."""
        stand_by = self._stand_by
        if stand_by is None:
            return None
        begun, stand_by.begun = stand_by.begun, None
        return begun

    def answer_nowait(self, head: ResponseHead, body: bytes) -> bool:
        """End what was begun with a whole answer; False when a part of it is not out yet (see hand_over).

        At most QUICK_ANSWER_BYTES_MAX of body. Raises InboundBroken when the client is gone.
        """
        assert self._stand_by is not None, "it stands by"
        data = self._framed(self._begin_answer(head, whole=True), body, True)
        try:
            sent = self._stand_by.send_answer(data, last=self._last)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self._torn = True
            raise InboundBroken(GONE) from exc
        if not sent:
            self._torn = True  # until flush
        return sent

    async def flush(self) -> None:
        """Send what `answer_nowait` left; raises InboundBroken."""
        self._torn = False
        await self._write(b"")

    def hand_over(self, fault: Exception | None = None) -> None:
        """Wake the connection's task to go on with what was begun, or to raise the fault that came of it."""
        assert self._stand_by is not None, "it stands by"
        self._stand_by.hand_over(fault)

    # -- the request's body --------------------------------------------------------------------------------

    async def receive_body(self) -> bytes:
        """Return body bytes as they come; b"" at the clean end. Answers `Expect: 100-continue` first.

        Raises InboundBroken: CANCEL when the client is gone, PROTOCOL when the framing is broken.
        """
        self._body_begun = True
        while True:
            if self._crowded:
                # However many bring such bodies, one of them is taken apart in a pass.
                await fairness().wait_alone(self.peer)
                self._crowded = False
            data = self.receive_body_nowait()
            if data is not None:
                return data
            if self._crowded:
                continue
            if self._awaits_continue:
                await self._send_continue()
            if not self._received.ended:
                try:
                    received = await self._stream.receive_some(BODY_BYTES_MAX)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    received = b""
                self._received.ended = not received
            if self._received.ended:
                self._last = True
                raise InboundBroken(GONE)
            if len(received) <= SMALL_PIECE_BYTES and not (common := fairness()).admits():
                # To be read then, or again, should this be cancelled while it waits.
                self._received.feed(bytes(received))
                await common.wait(self.peer)
            elif data := self._read(bytes(received)):
                return data

    def receive_body_nowait(self) -> bytes | None:
        """Return body bytes that are already here, b"" at the clean end, None when there is a wait."""
        while not self._body_read:
            if self._crowded or not self._received.held:
                return None
            if data := self._read(self._received.take_rest(BODY_BYTES_MAX)):
                self._body_begun = True
                return data
        return b""

    def _read(self, received: bytes) -> bytes:
        """Return the body's bytes among received ones, which may be none."""
        body = self._body
        assert body is not None, "a body that is not read has a reader"
        self._awaits_continue = False
        try:
            data = body.feed(received)
        except BodyError as exc:
            self._last = True
            failure = Failure(StreamCode.PROTOCOL, Processed.MAYBE, "the request's body is malformed")
            raise InboundBroken(failure) from exc
        if body.reached:
            # What lies behind the body is not this request's. After trailers nothing is: h11 takes bare LFs
            # among them, and a server in front of us may see another end.
            self._body_read = True
            self._body = None
            self._last = self._last or body.trailers
        if body.rest:
            self._received.put_back(body.rest)
            self._crowded = not body.reached
        return data

    # -- the answer ----------------------------------------------------------------------------------------

    async def send_head(self, head: ResponseHead, data: bytes = b"", *, end: bool = False) -> None:
        """Send the answer's head, and in the same write body bytes and the end that are there already.

        The framing is decided here: a Content-Length in `head` is kept, any other body is chunked. Raises
        InboundBroken when the client is gone.
        """
        await self._send(self._begin_answer(head, whole=end), data, end)

    async def send_body(self, data: bytes, *, end: bool = False) -> None:
        """Send body bytes at once (in one chunk where the answer is chunked), and the end when `end`."""
        await self._send(b"", data, end)

    def send_body_nowait(self, data: bytes) -> bool:
        """See Inbound. What the kernel does not take is held, and nothing more sent until it is gone."""
        tls = self._tls
        if tls is None or self._torn or self._released or self._unsent_bytes:
            return False
        if self._framing == _COUNTED and len(data) > self._left:
            return False
        try:
            sent = tls.send_nowait(self._framed(b"", data, False))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._torn = True
            return False
        if not sent:
            self._unsent_bytes = len(data)
        return sent

    async def end(self) -> None:
        """End the answer cleanly; after an upgrade close the connection cleanly."""
        if self._raw is not None:
            await self._close()
        elif self._answer == _BEGUN:
            await self._send(b"", b"", True)

    @property
    def held_bytes(self) -> int:
        """What it takes of memory: itself, and what is in hand for a client that does not take it now."""
        tls = self._tls
        return 0 if tls is None else held_bytes(tls, self._received, framed=self._framing == _CHUNKED)

    @property
    def awaits_answer(self) -> bool:
        """Whether a request was read of whose answer nothing was sent."""
        return self._answer == _AWAITED and not (self._torn or self._released)

    async def answer(self, head: ResponseHead, body: bytes) -> None:
        """Send a whole answer."""
        await self.send_head(head, body, end=True)

    def upgraded(self) -> RawStream:
        """Return the raw stream after a 101 was sent; what the client sent before it comes first."""
        assert self._answer == _SWITCHED, "upgraded() without a 101"
        first, ended = self._received.take_rest(), self._received.ended
        self._raw = RawStream(self._stream, first, ended=ended, tls=self._tls)
        return self._raw

    def _begin_answer(self, head: ResponseHead, *, whole: bool) -> bytes:
        """Return the bytes of an answer's head, with the framing and the connection's state added to it."""
        assert self._answer <= _AWAITED, "an answer for each request"
        request = self._request
        if head.status == 101:
            assert request is not None, "a 101 answers a request"
            assert request.upgrade is not None, "a 101 that was asked for"
            self._answer = _SWITCHED
            return head.encode()
        if not self._body_read:
            # Behind an answer that goes on, the body may still be wanted.
            if not (whole and self._read_to_its_end()):
                self._last = True
            self._awaits_continue = False
        if self._deadlines is not None and self._deadlines.ending:
            self._last = True
        if request is not None and b"close" in request.fields.connection:
            self._last = True
        encoded = head.encode()
        if head.passes is not encoded:
            # One that just passes has nothing of it.
            if b"close" in connection_tokens(head.headers):
                self._last = True
            encoded = _without_framing(head).encode()
        self._answer = _BEGUN
        ours = b""
        length = head.body_length
        has_body = head.has_body(request.method if request is not None else b"")
        if length is not None:
            self._framing = _COUNTED if has_body else _EMPTY
            self._left = length
        elif request is None:
            # Whoever was not understood may not know what chunks are.
            self._framing = _ENDLESS
        else:
            self._framing = _CHUNKED if has_body else _EMPTY
            # After HEAD as well: it stands for what a GET would get.
            if head.status not in BODILESS_STATUSES:
                ours = b"Transfer-Encoding: chunked\r\n"
        if self._last:
            ours += b"Connection: close\r\n"
        return b"%s%s\r\n" % (encoded[:-2], ours) if ours else encoded

    def _read_to_its_end(self) -> bool:
        """Whether a request that is not read to its end can be without a wait."""
        if self._body_begun or self._request is None or self._awaits_continue:
            return self._body_read
        # Nobody wants this body (its answer is whole); a small one has come with its head.
        try:
            while self.receive_body_nowait():
                pass
        except InboundBroken:
            return False
        return self._body_read

    async def _send(self, first: bytes, data: bytes, end: bool) -> None:
        if self._interim is not None:
            # While that is on its way the connection counts as torn.
            await self._interim.wait()
        if self._torn or self._released:
            raise InboundBroken(GONE)
        unsent, self._unsent_bytes = self._unsent_bytes, 0
        if unsent:
            # It is on its way (send_body_nowait), and a part of it waits for the next send.
            assert len(data) == unsent, "what was not sent without a wait comes again"
            data = b""
        first = self._framed(first, data, end)
        if first or unsent:
            await self._write(first)

    def _framed(self, first: bytes, data: bytes, end: bool) -> bytes:
        """Return what is to be sent: `first`, and body bytes as they are framed."""
        framing = self._framing
        if framing == _CHUNKED:
            if data:
                last = b"\r\n0\r\n\r\n" if end else b"\r\n"
                first = b"".join((first, b"%x\r\n" % len(data), data, last))
            elif end:
                first += b"0\r\n\r\n"
        elif framing == _COUNTED:
            self._left = left = self._left - len(data)
            if left and (end or left < 0):
                self._torn = True
                raise FramingFault("the answer's body has another length than its head says")
            first += data
        elif framing == _ENDLESS:
            first += data
        if end:
            self._answer = _WHOLE
        return first

    async def _send_continue(self) -> None:
        """Send the 100 that the client waits for; whoever sends the answer waits until it is out."""
        self._awaits_continue = False
        self._interim = done = trio.Event()
        try:
            await self._write(b"HTTP/1.1 100 \r\n\r\n")
        finally:
            self._interim = None
            done.set()

    async def _write(self, data: bytes) -> None:
        if self._torn or self._released:
            raise InboundBroken(GONE)
        self._torn = True  # until all of it is sent
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise InboundBroken(GONE) from exc
        self._torn = False

    # -- leaving -------------------------------------------------------------------------------------------

    def watch(self, on_gone: OnGone, *, body_is_read: bool = False) -> None:
        """See Inbound. It takes Deadlines to watch, and up to QUIET_S until that begins."""
        if self._deadlines is not None and not body_is_read:
            self._attendance = Attendance(
                self._received, self._fields, on_gone, self._deadlines, self._tls, self._readiness
            )

    async def unwatch(self) -> None:
        """See Inbound. Cancelled, it waits all the same: nobody may read before the attendant has left."""
        attendance, self._attendance = self._attendance, None
        if attendance is not None:
            await attendance.end()

    async def wait_disconnect(self) -> None:
        """Return once the client is gone. What it sends meanwhile is kept, up to EARLY_BYTES_MAX and a bit.

        Only while nobody is in `receive_body`. Cancelled, nothing is lost.
        """
        await self._received.wait_end()

    def detach(self) -> tuple[trio.abc.Stream, bytes]:
        """Hand the stream over, with the bytes behind the request's head; it is the caller's now."""
        self._release()
        return self._stream, self._received.take_rest()

    async def cut(self, failure: Failure | None = None) -> None:
        """Close the connection so that it can be taken for nothing but a failure."""
        if self._released:
            return
        self._release()
        await trio.aclose_forcefully(self._stream)

    async def drop(self, failure: Failure) -> None:
        """Cut an answer that has begun and is not whole; behind a whole one may be the next request."""
        if self._answer in {_BEGUN, _SWITCHED}:
            await self.cut(failure)

    async def aclose(self) -> None:
        """Close the connection: cleanly when every answer is whole, by a cut otherwise.

        An answer that came before its request was read gets time to arrive (LINGER_S). Cancelled, the
        stream is closed all the same.
        """
        if self._torn or self._answer not in {_NONE, _WHOLE}:
            await self.cut()
            return
        try:
            if not self._released and self._last and not self._body_read:
                await self._linger()
        finally:
            # Cancelled, it closes before its first checkpoint.
            await self._close()  # noqa: ASYNC102

    async def _close(self) -> None:
        if self._released:
            return
        self._release()
        with suppress(trio.BrokenResourceError):
            await self._stream.aclose()

    def _release(self) -> None:
        self._released = True
        if self._attendance is not None:
            # Nobody attends to a client that was cut, or its socket may be closed by then.
            self._attendance.stop()
        if self._stand_by is not None:
            # Who closes an idle connection is not the task that waits for its next request.
            self._stand_by.wake()
        if self._idle is not None and self._deadlines is not None:
            self._deadlines.leave(self._idle)
            self._idle = None

    async def _linger(self) -> None:
        """Read on, so that what is unread does not make TCP take back the answer."""
        refused = self._request is None
        left = LINGER_BYTES_MAX
        with (
            trio.move_on_after(REFUSED_LINGER_S if refused else LINGER_S),
            suppress(trio.BrokenResourceError),
        ):
            if isinstance(self._stream, trio.abc.HalfCloseableStream):
                await self._stream.send_eof()
            data = self._received.take_rest()
            while left > 0 and not self._received.ended:
                left -= len(data)
                # The end of the body is where nothing is unread any more.
                if data and not refused:
                    try:
                        self._read(data)
                    except InboundBroken:
                        refused = True
                    if self._body_read:
                        return
                    # Its end is not looked for where that takes long.
                    refused = refused or self._crowded
                data = bytes(await self._stream.receive_some(BODY_BYTES_MAX))
                self._received.ended = not data


def _without_framing(head: ResponseHead) -> ResponseHead:
    """The head of an answer without what is decided here."""
    ours = {b"connection", b"transfer-encoding"}
    return ResponseHead.of(
        head.status, head.reason, tuple([header for header in head.headers if header[0] not in ours])
    )
