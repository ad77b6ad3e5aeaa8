"""The server's side of one HTTP/1.1 connection, over any trio stream.

h11 parses and frames; this file adds what a front needs beside that: the strict check of each head before h11
sees it, deadlines for the head and nothing else, and an end that fits what was said.

Theory of operation. Received bytes first stand in a scanner. A head is cut off, checked, and given to a fresh
h11 connection (0.7 µs; so nothing of one request can outlive it in there). Body bytes go into h11 as they
are asked for; what lies behind the end of the body goes back to the scanner, and is the next request, or the
first bytes of an upgraded stream. So bytes that a client sends too early wait in one place until it is clear
what they are, and after a refused upgrade they are just the next request.

There are three ways to leave. After a whole answer to a whole request: the next request. After a whole answer
to a request that was not read to its end, or not understood: read on for a bounded while before closing,
because closing with unread bytes makes TCP send a reset, which can overtake the answer. After anything else:
cut, without TLS's close_notify, so that nobody takes the end for a clean one.
"""

from __future__ import annotations

from contextlib import suppress

import h11
import trio

from proxy.exchange import Failure, InboundBroken, Processed, StreamCode
from proxy.head import RequestHead, ResponseHead
from proxy.strict import BadRequest, HeadScanner, check_request_head
from proxy.wire import BODY_BYTES_MAX, H11_BYTES_MAX, BodyEnd, RawStream, pull_body

# Longer than the 90 s after which Go's clients close an idle connection: if we closed first, a POST could
# meet the closing socket, and Go does not send a POST again.
IDLE_S = 120.0
# kube-apiserver's ReadHeaderTimeout, from the first byte of a head; for the first head from the connect.
HEAD_S = 32.0
# What a client sends while its answer is still to come: pipelined requests, or bytes before a 101. Beyond
# this nothing is read, so that a client that leaves then is noticed when the answer is sent.
EARLY_BYTES_MAX = 64 * 1024
# How long and how much is read on after an early answer, for a client that looks only when it has sent all.
LINGER_S = 5.0
LINGER_BYTES_MAX = 16 * 1024 * 1024
# The same for somebody who was not understood, and so is nobody yet.
REFUSED_LINGER_S = 1.0
# What is kept for the record of a head that was refused.
REFUSED_HEAD_BYTES_MAX = 4096

_GONE = Failure(StreamCode.CANCEL, Processed.MAYBE, "the client is gone")


class ServerConnection:
    """A client's connection, and the Inbound of its current request.

    `next_request` is called in a loop; between two calls the answer is sent. It owns the stream until
    `detach`; whoever made it calls `aclose` at the end, also after a cancellation.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._scanner = HeadScanner()
        self._h11 = h11.Connection(h11.SERVER)
        self._request: RequestHead | None = None
        self._end = BodyEnd()
        self._requests = 0
        self._eof = False
        # The body was asked for, so some of it may be gone to where it belongs.
        self._body_begun = False
        self._has_body = True
        # This exchange is the last one: the request was refused, or is not read to its end.
        self._last = False
        # A send did not finish, or the answer was given up: only a cut is left.
        self._torn = False
        # The stream is closed, or somebody else's.
        self._released = False
        self._raw: RawStream | None = None
        self._interim: trio.Event | None = None
        self.raw_head = b""
        """The current request's head as it came; of a refused one no more than its beginning."""

    # -- requests ------------------------------------------------------------------------------------------

    async def next_request(self) -> RequestHead | None:
        """Return the next request's head; None once the connection is over, and then it is closed.

        Raises BadRequest for what must not be read further. It can be answered like a request, and then the
        next call ends the connection. Cancelled, the connection can only be closed.
        """
        if self._requests and not await self._finish_exchange():
            await self.aclose()
            return None
        self._requests += 1
        try:
            raw = await self._receive_head()
            if raw is None:
                await self.aclose()
                return None
            self._begin(raw)
        except BadRequest:
            self._refuse()
            raise
        return self._request

    async def _receive_head(self) -> bytes | None:
        """Return a whole head; None when the client has nothing more to ask."""
        raw = self._scanner.take_head()
        if raw is not None:
            await trio.lowlevel.checkpoint()
            return raw
        began = bool(len(self._scanner))
        with trio.move_on_after(HEAD_S if began or self._requests == 1 else IDLE_S) as scope:
            while raw is None:
                if not await self._receive_early():
                    return None
                if not began:
                    began = True
                    scope.deadline = trio.current_time() + HEAD_S
                raw = self._scanner.take_head()
        if raw is None and began:
            raise BadRequest(408, f"the request's head was not whole {HEAD_S:.0f} s after its first byte")
        return raw

    async def _receive_early(self) -> bool:
        """Receive into the scanner; False when there is nothing more to come."""
        if self._eof:
            return False
        try:
            data = await self._stream.receive_some(BODY_BYTES_MAX)
        except trio.BrokenResourceError:
            data = b""
        if not data:
            self._eof = True
            return False
        self._scanner.feed(data)
        return True

    def _begin(self, raw: bytes) -> None:
        self.raw_head = raw
        check_request_head(raw)
        self._h11 = connection = h11.Connection(h11.SERVER, max_incomplete_event_size=H11_BYTES_MAX)
        self._end = BodyEnd()
        self._body_begun = False
        connection.receive_data(raw)
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as exc:
            raise BadRequest(400, "the request's head is malformed") from exc
        assert isinstance(event, h11.Request), "a whole head that passed the strict check"
        self._request = request = RequestHead(event.method, event.target, tuple(event.headers))
        if request.body_length == 0:
            pull_body(connection, self._end)
        elif request.upgrade is not None:
            # Whose bytes would follow the head, the body's or the new protocol's?
            raise BadRequest(400, "an upgrade cannot have a body")

    def _refuse(self) -> None:
        """Get ready to answer a request that was not understood, with an h11 that has seen nothing of it."""
        self.raw_head = (self.raw_head or self._scanner.take_rest())[:REFUSED_HEAD_BYTES_MAX]
        self._h11 = h11.Connection(h11.SERVER)
        self._request = None
        self._last = True
        self._end = BodyEnd()

    async def _finish_exchange(self) -> bool:
        """Whether another request may follow on this connection."""
        if self._torn or self._released or self._raw is not None or self._last:
            return False
        if self._h11.our_state is not h11.DONE:
            # MUST_CLOSE: the client asked for it. Anything else: the answer is not whole.
            return False
        return self._end.reached

    # -- the request's body --------------------------------------------------------------------------------

    async def receive_body(self) -> bytes:
        """Return body bytes as they come; b"" at the clean end. Answers `Expect: 100-continue` first.

        Raises InboundBroken: CANCEL when the client is gone, PROTOCOL when the framing is broken.
        """
        self._body_begun = True
        while True:
            data = self._pull()
            if data is not None:
                if not data:
                    await trio.lowlevel.checkpoint()
                return data
            if self._h11.they_are_waiting_for_100_continue:
                await self._send_continue()
            await self._receive_into_h11()

    def receive_body_nowait(self) -> bytes | None:
        """Return body bytes that are already here, b"" at the clean end, None when there is a wait."""
        data = self._pull()
        if data is None and len(self._scanner):
            self._h11.receive_data(self._scanner.take_rest())
            data = self._pull()
        if data:
            self._body_begun = True
        return data

    def _pull(self) -> bytes | None:
        reached = self._end.reached
        try:
            data = pull_body(self._h11, self._end)
        except h11.RemoteProtocolError as exc:
            self._last = True
            if self._eof:
                raise InboundBroken(_GONE) from exc
            failure = Failure(StreamCode.PROTOCOL, Processed.MAYBE, "the request's body is malformed")
            raise InboundBroken(failure) from exc
        if self._end.reached and not reached:
            # What lies behind the body is not this request's. After trailers nothing is: h11 takes bare LFs
            # among them, and a server in front of us may see another end.
            self._scanner.feed(self._h11.trailing_data[0])
            self._last = self._last or self._end.trailers
        return data

    async def _receive_into_h11(self) -> None:
        if len(self._scanner):
            self._h11.receive_data(self._scanner.take_rest())
            return
        data = b""
        if not self._eof:
            try:
                data = bytes(await self._stream.receive_some(BODY_BYTES_MAX))
            except trio.BrokenResourceError as exc:
                self._last = self._eof = True
                raise InboundBroken(_GONE) from exc
        self._eof = not data
        self._h11.receive_data(data)

    # -- the answer ----------------------------------------------------------------------------------------

    async def send_head(self, head: ResponseHead, data: bytes = b"", *, end: bool = False) -> None:
        """Send the answer's head, and in the same write body bytes and the end that are there already.

        The framing is decided here: a Content-Length in `head` is kept, any other body is chunked. Raises
        InboundBroken when the client is gone.
        """
        headers = list(head.headers)
        event: h11.InformationalResponse | h11.Response
        if head.status == 101:
            event = h11.InformationalResponse(status_code=101, headers=headers, reason=head.reason)
        else:
            if not self._read_to_its_end():
                self._last = True
            if self._last:
                headers.append((b"connection", b"close"))
            event = h11.Response(status_code=head.status, headers=headers, reason=head.reason)
        self._has_body = head.has_body(self._request.method if self._request is not None else b"")
        await self._send(self._h11.send(event), data, end)

    async def send_body(self, data: bytes, *, end: bool = False) -> None:
        """Send body bytes at once (in one chunk where the answer is chunked), and the end when `end`."""
        await self._send(b"", data, end)

    async def end(self) -> None:
        """End the answer cleanly; after an upgrade close the connection cleanly."""
        if self._raw is not None:
            await self._close()
        elif self._h11.our_state is h11.SEND_BODY:
            await self._send(b"", b"", True)

    async def answer(self, head: ResponseHead, body: bytes) -> None:
        """Send a whole answer."""
        await self.send_head(head, body, end=True)

    def upgraded(self) -> RawStream:
        """Return the raw stream after a 101 was sent; what the client sent before it comes first."""
        assert self._h11.our_state is h11.SWITCHED_PROTOCOL, "upgraded() without a 101"
        self._raw = RawStream(self._stream, self._scanner.take_rest(), ended=self._eof)
        return self._raw

    def _read_to_its_end(self) -> bool:
        """Whether the request is read to its end, or can be without a wait."""
        if self._body_begun or self._request is None or self._h11.they_are_waiting_for_100_continue:
            return self._end.reached
        # Nobody wants this body (the answer is a refusal); a small one has come with its head.
        try:
            while self.receive_body_nowait():
                pass
        except InboundBroken:
            return False
        return self._end.reached

    async def _send(self, first: bytes, data: bytes, end: bool) -> None:
        parts = [first] if first else []
        if data and self._has_body:
            parts += self._h11.send_with_data_passthrough(h11.Data(data=data)) or ()
        if end:
            parts += self._h11.send_with_data_passthrough(h11.EndOfMessage()) or ()
        while self._interim is not None:
            await self._interim.wait()
        if parts:
            await self._write(parts[0] if len(parts) == 1 else b"".join(parts))
        else:
            await trio.lowlevel.checkpoint()

    async def _send_continue(self) -> None:
        """Send the 100 that the client waits for; whoever sends the answer waits until it is out."""
        self._interim = done = trio.Event()
        try:
            await self._write(self._h11.send(h11.InformationalResponse(status_code=100, headers=[])))
        finally:
            self._interim = None
            done.set()

    async def _write(self, data: bytes) -> None:
        if self._torn or self._released:
            raise InboundBroken(_GONE)
        self._torn = True  # until all of it is sent
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise InboundBroken(_GONE) from exc
        self._torn = False

    # -- leaving -------------------------------------------------------------------------------------------

    async def wait_disconnect(self) -> None:
        """Return once the client is gone. What it sends meanwhile is kept, up to EARLY_BYTES_MAX and a bit.

        Only while nobody is in `receive_body`. Cancelled, nothing is lost.
        """
        while not self._eof and len(self._scanner) < EARLY_BYTES_MAX:
            await self._receive_early()
        if not self._eof:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()

    def detach(self) -> tuple[trio.abc.Stream, bytes]:
        """Hand the stream over, with the bytes behind the request's head; it is the caller's now."""
        self._released = True
        return self._stream, self._scanner.take_rest()

    async def cut(self, failure: Failure | None = None) -> None:
        """Close the connection so that it can be taken for nothing but a failure."""
        self._torn = True
        if self._released:
            await trio.lowlevel.checkpoint()
            return
        self._released = True
        await trio.aclose_forcefully(self._stream)

    async def aclose(self) -> None:
        """Close the connection: cleanly when every answer is whole, by a cut otherwise.

        An answer that came before its request was read gets time to arrive (LINGER_S). Cancelled, the
        stream is closed all the same.
        """
        answered = self._h11.our_state in {h11.IDLE, h11.DONE, h11.MUST_CLOSE}
        if self._torn or not answered or self._raw is not None:
            await self.cut()
            return
        try:
            if not self._released and self._last and not self._end.reached:
                await self._linger()
        finally:
            # Cancelled, it closes before its first checkpoint.
            await self._close()  # noqa: ASYNC102

    async def _close(self) -> None:
        if self._released:
            await trio.lowlevel.checkpoint()
            return
        self._released = True
        with suppress(trio.BrokenResourceError):
            await self._stream.aclose()

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
            data = self._scanner.take_rest()
            while left > 0 and not self._eof:
                left -= len(data)
                # The end of the body is where nothing is unread any more. (To h11 no bytes are an EOF.)
                if data and not refused:
                    self._h11.receive_data(data)
                    try:
                        while pull_body(self._h11, self._end):
                            pass
                    except h11.RemoteProtocolError:
                        refused = True
                    if self._end.reached:
                        return
                data = bytes(await self._stream.receive_some(BODY_BYTES_MAX))
                self._eof = not data
