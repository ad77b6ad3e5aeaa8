"""The server's side of one HTTP/1.1 connection, over any trio stream.

`http_server` parses and frames. This file adds the stream, a deadline for heads, and the ways to end.

Theory of operation. A task reads heads, and sends the server's own answers. For an exchange with an upstream
it lends the connection to a port (`as_port`), and reads and sends nothing meanwhile. After `serve_parked`
most requests begin without the task (`parked_connection`).

There are three ways to leave. After a complete answer to a complete request: the next request. After a
complete answer to a request that was malformed or not read to its end: read on for a bounded time before
closing, because closing with unread bytes makes TCP send a reset, which can overtake the answer. After
anything else: cut, without TLS's close_notify, so that the end is never taken for a clean one.

Reading, sending and leaving are one class: each depends on the stream's state (`_Link`), which the others
change.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Final, Self

import trio

from proxy.exchange.client_port import ClientPort
from proxy.exchange.deadlines import IDLE_S, Deadlines
from proxy.exchange.http_server import ServerHTTP
from proxy.exchange.http_state import AWAITED, DONE, IDLE, REFUSED, WITHHELD
from proxy.exchange.next_pass import NextPass
from proxy.exchange.parked_connection import Begun, ParkedConnection, Readable
from proxy.exchange.received import Received
from proxy.exchange.wire import held_bytes
from proxy.message.body import BODY_BYTES_MAX
from proxy.message.failure import GONE, InboundBroken
from proxy.message.head import LONG_HEAD_BYTES, RequestHead, ResponseHead
from proxy.message.strict import BadRequest
from tunnel.net.connect import TLSStream, close_forcefully, tls_socket
from tunnel.net.fairness import SMALL_PIECE_BYTES, fairness
from tunnel.net.readiness import Readiness

# kube-apiserver's ReadHeaderTimeout, from the first byte of a head. A client may take as long until the first
# byte of a connection. Between two requests it has IDLE_S.
HEAD_S = 32.0
# How long to read on after an early answer, for a client that reads only after it has sent everything. The
# bytes are bounded by LINGER_BYTES_MAX.
LINGER_S = 5.0
# The same after a malformed request, whose sender is not known.
REFUSED_LINGER_S = 1.0


class _Link(enum.Enum):
    """The state of the stream."""

    OPEN = "open"
    SENDING = "sending"
    """A send is in progress. A cancelled send leaves this state: the connection can only be cut."""
    CLOSED = "closed"
    """Closed, or detached."""


_OPEN: Final = _Link.OPEN
_SENDING: Final = _Link.SENDING
_CLOSED: Final = _Link.CLOSED


class ServerConnection:
    """A client's connection. Call `next_request` in a loop, and answer between two calls.

    It owns the stream until `detach`. Its owner calls `aclose` at the end, also after a cancellation. With
    `deadlines`, their `run` ends the wait between two requests, and the owner uses the connection as a
    context, which leaves them. Otherwise a cancel scope ends each wait. Ports send to `tls` if the stream is
    a wrapper of ours around it. They need `readiness` and `passes`.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        deadlines: Deadlines | None = None,
        tls: TLSStream | None = None,
        readiness: Readiness | None = None,
        passes: NextPass | None = None,
    ) -> None:
        self.peer: Hashable = None
        """The fairness key of the connection's peer."""
        self._stream = stream
        # Ports send to it without a wait.
        self._tls = stream if isinstance(stream, TLSStream) else tls
        self._readiness = readiness
        self._passes = passes
        self._deadlines = deadlines
        self._idle = deadlines.watch(self) if deadlines is not None else None
        self.http = ServerHTTP()
        """The received bytes, their parser, and the framing of sent bytes."""
        self.received = Received(stream, self.http)
        """What has arrived, for the connection's task."""
        self._link = _OPEN
        self._interim: trio.Event | None = None
        self._port: ClientPort | None = None
        self.parked: ParkedConnection | None = None
        """Serves requests while the task is parked; set by `serve_parked`."""
        self.on_port_cut: Callable[[], None] | None = None
        """Called when a port has cut this connection."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._link is not _CLOSED:
            self._release()

    @property
    def raw_head(self) -> bytes:
        """The current request's head as received."""
        request = self.http.request
        assert request is not None, "there is a request"
        return b"%s %s HTTP/1.1\r\n%s" % (request.method, request.target, request.fields.raw)

    @property
    def idle_until(self) -> float:
        """When its wait for the next request ends, on trio's clock; infinite while it does not wait."""
        return self._idle.due_at if self._idle is not None else math.inf

    def end_idle(self) -> None:
        """Close it if it waits for the next request; its task finds its client gone."""
        if self._idle is not None and self._deadlines is not None:
            self._deadlines.expire(self._idle)

    # -- requests ------------------------------------------------------------------------------------------

    async def next_request(self) -> RequestHead | None:
        """Return the next request's head; None once the connection has ended, and then it is closed.

        Raises BadRequest for a malformed request. It can be answered, and then the next call ends the
        connection. After a cancelled call, the connection can only be closed.

        While it waits, requests are served as `serve_parked` says. If one of them needs the task, its head is
        returned, and `take_begun` returns what was begun.
        """
        http = self.http
        while True:
            # Before the first head there is no exchange that could be complete.
            if not (self._link is _OPEN and (http.outgoing is IDLE or http.may_go_on)):
                await self.aclose()
                return None
            try:
                raw = http.take_head()
                if raw is not None:
                    # It arrived with the last one. A client that pipelines must not delay the others.
                    await trio.lowlevel.checkpoint()
                elif self.parked is not None and self.parked.may_park:
                    if (head := await self._park(self.parked)) is not None:
                        return head
                    continue
                else:
                    raw = await self._receive_head()
                if raw is None:
                    await self.aclose()
                    return None
                common = fairness()
                if len(raw) > LONG_HEAD_BYTES:
                    # Each loop pass parses at most one long head, by any client.
                    await common.wait_alone(self.peer)
                elif not common.admits():
                    await common.wait(self.peer)
                return http.begin_request(raw)
            except BadRequest:
                http.refuse()
                raise

    async def _park(self, parked: ParkedConnection) -> RequestHead | None:
        assert self._watched_port() is not None, "its socket was watched before"
        return await parked.park(self._idle, self.peer, self._idle_s)

    async def _receive_head(self) -> bytes | None:
        """Return a complete head; None when the client sends no more requests."""
        if not (self.http.held or await self._receive_idle()):
            return None
        raw = self.http.take_head()
        if raw is not None:
            return raw
        with trio.move_on_after(HEAD_S):
            while raw is None:
                if not await self.received.receive():
                    return None
                raw = self.http.take_head()
        if raw is None:
            raise BadRequest(408, f"the request's head was not whole {HEAD_S:.0f} s after its first byte")
        return raw

    @property
    def _idle_s(self) -> float:
        """How long the client may take to begin its next request."""
        return HEAD_S if self.http.outgoing is IDLE else IDLE_S

    async def _receive_idle(self) -> bool:
        """Wait for the next request's first bytes; False if none arrive in time."""
        idle, deadlines = self._idle, self._deadlines
        if idle is None or deadlines is None:
            with trio.move_on_after(self._idle_s):
                return await self.received.receive()
            return False
        deadlines.begin(idle, self._idle_s)
        try:
            return await self.received.receive()
        finally:
            idle.due_at = math.inf

    # -- exchanges of ports --------------------------------------------------------------------------------

    def serve_parked(
        self, stream: Readable, begin: Callable[[ServerConnection, RequestHead], Begun | None]
    ) -> None:
        """Call `begin` for the following requests, while the connection's task waits in `next_request`.

        `begin` returns None for a request that needs the task. It is called among the callbacks of other
        sockets, so it must not wait. `stream` is the one that this connection was made with, or the one below
        that. Another call replaces both. Does nothing where there is no socket to watch.
        """
        if self._link is not _OPEN:
            # The exchange of an earlier request has cut it.
            return
        parked = self.parked
        if parked is not None:
            parked.port.peer = self.peer
            parked.serve(stream, partial(begin, self))
        elif (port := self._watched_port()) is not None:
            self.parked = ParkedConnection(port, self.http, self._deadlines, stream, partial(begin, self))
        else:
            return
        if isinstance(stream, TLSStream):
            self._stream = self.received.stream = stream

    def take_begun(self) -> Begun | None:
        """Return what was begun of the request that `next_request` returned; the caller carries it on."""
        parked = self.parked
        if parked is None:
            return None
        begun, parked.begun = parked.begun, None
        return begun

    @contextmanager
    def as_port(
        self, *, begin: bool = True, keep_body: bool = False, body: bytes = b""
    ) -> Iterator[ClientPort]:
        """Serve the exchange of the current request as a port. The connection must be TLS over a socket.

        In the block, the connection's task neither reads nor sends while an exchange runs. Without `begin`
        the port continues with a request for which it had an exchange before. With `keep_body`, another
        attempt can deliver the body again. `body` is the whole one, if `receive_body` has returned its end.
        Raises InboundBroken if the connection was closed.
        """
        if self._link is not _OPEN:
            raise InboundBroken(GONE)
        port = self._watched_port()
        assert port is not None, "the connection has no socket to watch"
        if begin:
            port.begin(keep_body=keep_body, body=body)
        try:
            yield port
        finally:
            self.on_port_cut = None
            port.unwatch()

    def _watched_port(self) -> ClientPort | None:
        port, tls, readiness, passes = self._port, self._tls, self._readiness, self._passes
        if port is not None and port.watched:
            return port
        socket = None if tls is None else tls_socket(tls)
        if tls is None or readiness is None or passes is None or socket is None:
            return None
        watch = readiness.watch(socket.fileno(), _nothing)
        if port is not None:
            port.rewatch(watch)
        else:
            self._port = port = ClientPort(
                self.http, tls, watch, passes, self.peer, self._port_cut, self._deadlines
            )
        port.peer = self.peer
        return port

    def _port_cut(self) -> None:
        """Note that the port has cut the connection."""
        if self._link is not _CLOSED:
            self._release()
        if self.on_port_cut is not None:
            self.on_port_cut()

    # -- the request's body --------------------------------------------------------------------------------

    async def receive_body(self) -> bytes:
        """Return body bytes as they arrive; b"" at the clean end. Answers `Expect: 100-continue` first.

        Raises InboundBroken: CANCEL when the client is gone, PROTOCOL for a malformed body.
        """
        http = self.http
        while True:
            if http.crowded:
                # Each loop pass parses at most one such body, of any client.
                await fairness().wait_alone(self.peer)
                http.crowded = False
            data = http.receive_body()
            if data is not None:
                return data
            if http.incoming is WITHHELD:
                await self._send_continue()
            try:
                received = bytes(await self._stream.receive_some(BODY_BYTES_MAX))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                received = b""
            if not received:
                http.ended = True
            elif len(received) <= SMALL_PIECE_BYTES and not (common := fairness()).admits():
                # They stay in the buffer, also if this is cancelled while it waits.
                http.feed(received)
                await common.wait(self.peer)
            elif data := http.feed_body(received):
                return data

    # -- the answer ----------------------------------------------------------------------------------------

    async def send_head(self, head: ResponseHead, data: bytes = b"", *, end: bool = False) -> None:
        """Send the answer's head, and in the same write the first body bytes and with `end` the end.

        This method decides the framing: a Content-Length in `head` is kept, any other body is chunked. Raises
        InboundBroken when the client is gone.
        """
        await self._until_sendable()
        if self._deadlines is not None and self._deadlines.ending:
            self.http.persistent = False
        await self._write(self.http.send_head(head, data, end=end))

    async def send_body(self, data: bytes, *, end: bool = False) -> None:
        """Send body bytes at once (as one chunk if the answer is chunked), and with `end` the end."""
        await self._until_sendable()
        framed = self.http.send_body(data, end=end)
        if framed:
            await self._write(framed)

    @property
    def held_bytes(self) -> int:
        """The memory that it uses, with the bytes that the client has not taken yet."""
        tls, port = self._tls, self._port
        if port is not None:
            return port.held_bytes
        return 0 if tls is None else held_bytes(tls, self.http, framed=self.http.sends_chunks)

    @property
    def awaits_answer(self) -> bool:
        """Whether a request was read, and nothing of its answer was sent."""
        return self.http.outgoing is AWAITED and self._link is _OPEN

    async def answer(self, head: ResponseHead, body: bytes) -> None:
        """Send a complete answer."""
        await self.send_head(head, body, end=True)

    async def _until_sendable(self) -> None:
        """Wait until no other send is in progress; raises InboundBroken."""
        if self._interim is not None:
            # The stream is in use while the 100 is sent.
            await self._interim.wait()
        if self._link is not _OPEN:
            raise InboundBroken(GONE)

    async def _send_continue(self) -> None:
        """Send the 100 that the client waits for."""
        data = self.http.send_continue()
        self._interim = done = trio.Event()
        try:
            await self._write(data)
        finally:
            self._interim = None
            done.set()

    async def _write(self, data: bytes) -> None:
        if self._link is not _OPEN:
            raise InboundBroken(GONE)
        self._link = _SENDING
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise InboundBroken(GONE) from exc
        if self._link is _SENDING:
            self._link = _OPEN

    # -- leaving -------------------------------------------------------------------------------------------

    async def wait_disconnect(self) -> None:
        """Return once the client is gone, or has sent EARLY_BYTES_MAX before its answer. Bytes are kept.

        Must not be called while a task is in `receive_body`. A cancelled call loses nothing.
        """
        await self.received.wait_end()

    def detach(self) -> tuple[trio.abc.Stream, bytes]:
        """Return the stream, and the bytes after the request's head. The caller owns both now."""
        self._release()
        return self._stream, self.http.take_rest()

    async def cut(self) -> None:
        """Close the connection in a way that is never taken for a clean end."""
        if self._link is _CLOSED:
            return
        self._release()
        await close_forcefully(self._tls or self._stream)

    async def aclose(self) -> None:
        """Close the connection: cleanly if every answer is complete, otherwise by a cut.

        An answer that was sent before its request was read gets LINGER_S to arrive. A cancelled call closes
        the stream too.
        """
        http = self.http
        if self._link is _SENDING or http.outgoing not in {IDLE, REFUSED, DONE}:
            await self.cut()
            return
        try:
            if self._link is _OPEN and not http.persistent and http.incoming is not DONE:
                await self._linger()
        finally:
            # Cancelled, it closes before its first checkpoint.
            await self._close()  # noqa: ASYNC102

    async def _close(self) -> None:
        if self._link is _CLOSED:
            return
        self._release()
        tls = self._tls
        if tls is not None and self.http.ended:
            # A client that has ended its direction needs only our close_notify, which is short.
            try:
                ended = tls.send_close_notify_nowait()
            except trio.BrokenResourceError:
                ended = True
            if ended:
                await close_forcefully(tls)
                return
        with suppress(trio.BrokenResourceError):
            await self._stream.aclose()

    def _release(self) -> None:
        self._link = _CLOSED
        if self.parked is not None:
            # An idle connection is closed by another task than the one that waits for its next request.
            self.parked.close()
        if self._port is not None:
            self._port.leave()
        if self._idle is not None and self._deadlines is not None:
            self._deadlines.leave(self._idle)
            self._idle = None

    async def _linger(self) -> None:
        """Read on: unread bytes would make TCP send a reset, which can overtake the answer."""
        http = self.http
        with (
            trio.move_on_after(REFUSED_LINGER_S if http.request is None else LINGER_S),
            suppress(trio.BrokenResourceError),
        ):
            if isinstance(self._stream, trio.abc.HalfCloseableStream):
                await self._stream.send_eof()
            while not http.drain():
                if not await self.received.receive():
                    return


def _nothing() -> None: ...
