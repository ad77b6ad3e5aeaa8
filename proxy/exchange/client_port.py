"""A client's HTTP/1.1 connection as the client's port of an exchange, without a task.

The connection's socket is watched. Received bytes are fed into the connection without I/O (`http_server`).
During an exchange they are the request's body, raw bytes after a 101, or early bytes of the next request.
Between two exchanges `on_idle` is called for them.

The bytes that the exchange writes are encrypted and given to the kernel at once. The port keeps only bytes
that the kernel does not take, and then watches the socket for room. No task sends.

A client that ends its direction may still read its answer, so it counts as gone only QUIET_S later. A client
whose connection breaks is gone at once.

Both directions are one class: they share the watch of the socket, and a failure of either ends both.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial

import trio

from proxy.exchange.deadlines import Deadlines
from proxy.exchange.engine import OVER, Exchange
from proxy.exchange.http_server import ServerHTTP
from proxy.exchange.http_state import DONE, WITHHELD
from proxy.exchange.kept_body import KeptBody, WholeBody
from proxy.exchange.next_pass import NextPass
from proxy.exchange.wire import CLIENT_BYTES_AT_ONCE, held_bytes
from proxy.message.body import BODY_BYTES_MAX
from proxy.message.failure import GONE, Failure, InboundBroken
from proxy.message.head import ResponseHead
from tunnel.net.readiness import Watch
from tunnel.net.timers import Timer, timers_of_this_run
from tunnel.net.tls import TLSStream

# How long a client that has ended its direction may still receive its answer. Half of the second within which
# the request of a client that has left must be cancelled upstream.
QUIET_S = 0.5
# How long a client may take to receive the bytes of an answer before it is cut. The kernel and this port hold
# some 250 KB of them, which take this long at 64 kbit/s.
CUT_WITHIN_S = 30.0


class ClientPort:
    """The client's side of one exchange after another (a Port).

    `watch` watches the connection's socket and calls this port from now on. The caller begins a request on
    `http`, makes an Exchange, and starts it. `on_idle` is called when bytes arrive while no exchange runs.
    `on_cut` is called once the connection is cut. While the `deadlines` are ending, each answer is the
    connection's last.
    """

    __slots__ = (
        "_answered",
        "_at_once",
        "_body",
        "_busy",
        "_cut_timer",
        "_cutting",
        "_deadlines",
        "_ending",
        "_http",
        "_keeps_body",
        "_on_cut",
        "_paused",
        "_scheduled",
        "_stopped",
        "_tls",
        "_watch",
        "broken_by",
        "bytes_delivered",
        "closed",
        "exchange",
        "on_idle",
        "passes",
        "peer",
    )

    def __init__(
        self,
        http: ServerHTTP,
        tls: TLSStream,
        watch: Watch,
        passes: NextPass,
        peer: Hashable,
        on_cut: Callable[[], None],
        deadlines: Deadlines | None = None,
    ) -> None:
        self.exchange: Exchange = OVER
        self.closed = False
        """This port has cut the connection."""
        self.bytes_delivered = 0
        """The delivered bytes of this request's body, and the raw bytes after a 101."""
        self.broken_by: Failure | None = None
        """The client's failure that broke the exchange of this request."""
        # The body of this request, kept for another attempt; None until its first piece.
        self._body: KeptBody | None = None
        self._keeps_body = True
        self._answered = False
        self._http = http
        self._tls = tls
        self._watch = watch
        self.passes = passes
        self.peer = peer
        """The fairness key of the client."""
        self.on_idle: Callable[[], None] = self.unlisten
        """Called when bytes arrive while no exchange runs."""
        self._on_cut = on_cut
        self._deadlines = deadlines
        self._paused = True
        self._stopped = False
        # `_go_on` is to be called in a later pass.
        self._scheduled = False
        # A delivery is in progress, in an outer call.
        self._busy = False
        # The clean end was written, but the kernel does not have all of it yet.
        self._ending = False
        # The connection is cut once the kernel has the queued bytes.
        self._cutting = False
        # Cuts the connection if the kernel does not take these bytes in time.
        self._cut_timer: Timer | None = None
        # Smaller reads from a client that sends tiny TLS records: each record takes 2 µs.
        self._at_once = CLIENT_BYTES_AT_ONCE
        watch.call = self._on_input

    def begin(self, *, keep_body: bool = True, body: bytes = b"") -> None:
        """Reset for the request that was just begun. Call it before making the Exchange.

        Without `keep_body`, a request can be sent again only while nothing of its body was delivered. `body`
        is the whole body if a task has read it.
        """
        self._keeps_body = keep_body
        self._paused = True
        self._stopped = self._ending = False
        self.broken_by = None
        self.bytes_delivered = 0
        self._body = WholeBody(body) if body else None
        self._answered = False
        if not self._watch.listening:
            self._listen(True)

    @property
    def whole(self) -> bool:
        """Whether the request can be sent again: it has no answer, and its delivered bytes are kept."""
        body = self._body
        return not self._answered and (not self.bytes_delivered if body is None else body.whole)

    def rewind(self) -> None:
        """Deliver the body from its beginning to the next Exchange; only while it is `whole`."""
        self._paused = True
        self.broken_by = None
        self.bytes_delivered = 0
        if self._body is not None:
            self._body.rewind()

    def attend(self) -> None:
        """Notice the client's end in the exchange that starts now. An earlier wait may have delayed that."""
        if self._http.ended:
            self._leave_soon()
        else:
            self._listen(not self._http.full)

    def rewatch(self, watch: Watch) -> None:
        """Use this watch of the socket, after `unwatch`."""
        self._watch = watch
        watch.call = self._on_input

    def unwatch(self) -> None:
        """End the watch, so that a task can read the socket."""
        watch = self._watch
        watch.end()
        # The watch refers to this port. The cycle would last until a garbage collection.
        watch.call = _nothing

    def leave(self) -> None:
        """Leave a connection that is closed by its task."""
        self.closed = True
        self._end_cutting()
        self.unwatch()
        self.on_idle = self._on_cut = _nothing

    @property
    def watched(self) -> bool:
        """Whether this port watches the socket."""
        return not self._watch.ended

    def unlisten(self) -> None:
        """Do not watch for input until the next exchange."""
        self._listen(False)

    @property
    def cutting(self) -> bool:
        """Whether bytes from before a cut are still queued."""
        return self._cutting

    @property
    def held_bytes(self) -> int:
        """The memory that the connection uses, with the bytes that the client has not taken yet, and the kept
        body."""
        kept = 0 if self._body is None else self._body.held_bytes
        return kept + held_bytes(self._tls, self._http, framed=self._http.sends_chunks)

    # -- calls from the exchange

    @property
    def half_closes(self) -> bool:
        """See Port. The connection is TLS."""
        return False

    def head(self, head: ResponseHead, data: bytes, end: bool) -> bool:
        """See Port. Interim heads are dropped: not every HTTP/1.1 client expects one."""
        if head.status < 200 and head.status != 101:
            return True
        # An answered request is not sent again. The rest of a replay is still to be delivered.
        self._answered = True
        if self._body is not None and not self._body.replays:
            self._body = None
        if self._deadlines is not None and self._deadlines.ending:
            self._http.persistent = False
        encoded = self._http.send_head(head, data, end=end)
        return self._send_raw(encoded, end) if head.status == 101 else self._send(encoded, end)

    def write(self, data: bytes, end: bool) -> bool:
        """See Port."""
        if not self.exchange.spliced:
            return self._send(self._http.send_body(data, end=end), end)
        return self._send_raw(data, end)

    def _send_raw(self, data: bytes, end: bool) -> bool:
        """Send bytes after a 101, and with `end` the clean end of our direction."""
        room = self._send(data, False) if data else True
        if not end or self.exchange.over:
            return room
        self._ending = True
        try:
            sent = self._tls.send_close_notify_nowait()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            if room:
                # The kernel has all the bytes. A client that leaves before the end has not failed.
                self.exchange.flushed(self)
            self._lost()
            return False
        return self._sent(sent)

    def pause(self) -> None:
        """See Port. The socket is watched until it has input; then the watch stops."""
        self._paused = True

    def resume(self) -> None:
        """See Port."""
        self._paused = False
        self._deliver()

    def stop(self) -> None:
        """See Port. The caller drops the rest of the body after the answer (`ServerHTTP.drain`)."""
        self._stopped = self._paused = True

    def cut(self, failure: Failure, drop: bool) -> None:
        """See Port. It takes up to CUT_WITHIN_S if bytes are queued."""
        if self.closed or self._cutting:
            if drop:
                self._close()
            return
        self._stopped = self._paused = True
        self._cutting = True
        if drop or self._send(b"", False):
            self._close()
        elif not self.closed:
            self._listen(False)
            self._cut_timer = timer = timers_of_this_run().timer(self._close)
            timer.by(trio.current_time() + CUT_WITHIN_S)

    # -- sending

    def _send(self, data: bytes, end: bool) -> bool:
        """Give bytes to the kernel; return whether it took all of them."""
        self._ending = end
        try:
            sent = self._tls.send_nowait(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._lost()
            return False
        # As `_sent`, without a call: most answers leave in one write.
        if not sent:
            self._watch.when_room(self._on_room)
        elif end:
            self._ending = False
            self.exchange.flushed(self)
        return sent

    def _sent(self, sent: bool) -> bool:
        """Report the end once the kernel has it. Without room, watch the socket for room."""
        if not sent:
            self._watch.when_room(self._on_room)
        elif self._ending:
            self._ending = False
            self.exchange.flushed(self)
        return sent

    def _on_room(self) -> None:
        """Send unsent bytes, since the kernel takes more."""
        try:
            if self._send(b"", self._ending):
                if self._cutting:
                    self._close()
                else:
                    self.exchange.room(self)
        except Exception as error:
            self.exchange.crash(error)

    # -- receiving

    def _on_input(self) -> None:
        """Handle received bytes, or the client's end."""
        exchange = self.exchange
        if exchange.over:
            if not (self._cutting or self.closed):
                self.on_idle()
            return
        try:
            if self._stopped or (self._http.incoming is DONE and not exchange.spliced):
                self._take_early()
            elif not self._paused:
                self._deliver(True)
            elif exchange.started:
                self._listen(False)
            else:
                # A dial may take seconds: keep the beginning of the body, and notice the client's end.
                self._take_early()
        except Exception as error:
            exchange.crash(error)

    def take_in(self) -> bool:
        """Feed received bytes; return whether there were any. The client's end counts."""
        data = self._receive(CLIENT_BYTES_AT_ONCE)
        if data is None:
            return False
        if data:
            self._http.feed(data)
        return True

    def _receive(self, at_once: int) -> bytes | None:
        """Return received bytes, b"" at the client's end, None if none have arrived."""
        try:
            data = self._tls.receive_nowait(at_once)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._lost()
            return None
        if data == b"":
            self._http.ended = True
            self._listen(False)
        return data

    def _take_early(self) -> None:
        """Keep bytes that arrive early, up to a bound, and notice the client's end."""
        http = self._http
        if not self.take_in():
            return
        if http.ended:
            self._leave_soon()
        elif http.full:
            self._listen(False)

    def _receive_dense(self) -> bytes | None:
        """Receive bytes of a body or a raw stream. The read after a large one may be larger."""
        data = self._receive(self._at_once)
        if data is not None:
            dense = len(data) > CLIENT_BYTES_AT_ONCE // 2
            self._at_once = BODY_BYTES_MAX if dense else CLIENT_BYTES_AT_ONCE
        return data

    def _deliver(self, received: bool = False) -> None:
        """Pass on the received bytes until the port is paused. `received`: the socket has input."""
        if self._busy:
            return
        self._busy = True
        try:
            if self.exchange.spliced:
                self._deliver_raw(received)
            else:
                self._deliver_body(received)
        except InboundBroken as broken:
            self._break(broken.failure)
        finally:
            self._busy = False

    def _deliver_body(self, received: bool) -> None:
        http, exchange = self._http, self.exchange
        body = self._body
        if body is None and self._keeps_body and not self._answered:
            self._body = body = KeptBody()
        while not (self._paused or exchange.over):
            data = body.next() if body is not None and body.replays else http.receive_body()
            if data is None and (received or self._tls.has_unread):
                received = False
                fed = self._receive_dense()
                if fed is not None:
                    data = http.feed_body(fed) if fed else http.receive_body()
            if data is None:
                if self.exchange is not exchange:
                    # The connection broke.
                    return
                if http.incoming is WITHHELD:
                    self._send(http.send_continue(), False)
                self._listen(True)
                return
            end = http.incoming is DONE and not (body is not None and body.replays)
            if body is not None:
                body.keep(data)
            self.bytes_delivered += len(data)
            if end:
                # Another delivery may be scheduled, and would find the end again.
                self._paused = True
            exchange.data(self, data, end)
            if end:
                # Further input is the next request, or the client's end.
                self._listen(not (http.ended or http.full))
                if http.ended:
                    self._leave_soon()
                return
            if http.crowded:
                http.crowded = False
                self._listen(False)
                if not self._scheduled:
                    self._scheduled = True
                    self.passes.soon(self.peer, self._go_on)
                return

    def _deliver_raw(self, received: bool) -> None:
        http, exchange = self._http, self.exchange
        while not (self._paused or exchange.over):
            if http.held:
                data: bytes | None = http.take_rest()
            elif http.ended:
                self._stopped = True
                exchange.data(self, b"", True)
                return
            elif received or self._tls.has_unread:
                received = False
                data = self._receive_dense()
            else:
                data = None
            if data is None:
                if self.exchange is exchange:
                    self._listen(True)
                return
            if data:
                self.bytes_delivered += len(data)
                exchange.data(self, data)

    def _go_on(self) -> None:
        """Deliver more of the received bytes, in a separate loop pass."""
        self._scheduled = False
        if self.exchange.over or self._paused:
            return
        try:
            self._deliver()
        except Exception as error:
            self.exchange.crash(error)

    # -- the ends

    def _listen(self, listening: bool) -> None:
        watch = self._watch
        if watch.listening is not listening and not watch.ended:
            watch.listen(listening)

    def _lost(self) -> None:
        """Handle a broken connection."""
        self._http.ended = True
        if self._cutting:
            self._close()
            return
        self._listen(False)
        self._break(GONE)

    def _leave_soon(self) -> None:
        """Treat the client, which has ended, as gone if the exchange still runs after QUIET_S."""
        self.passes.later(QUIET_S, partial(self._leave, self.exchange))

    def _leave(self, exchange: Exchange) -> None:
        """Break the exchange of a client that ended QUIET_S ago, if it still runs.

        On a raw stream the client's end is delivered instead.
        """
        if self.exchange is exchange and not exchange.spliced:
            self._break(GONE)

    def _break(self, failure: Failure) -> None:
        if not self.exchange.over:
            self.broken_by = failure
            self.exchange.broken(self, failure)

    def _close(self) -> None:
        """Cut the connection now."""
        if not self.closed:
            self.closed = True
            self._end_cutting()
            self._watch.end()
            self._tls.close_nowait()
            self._on_cut()

    def _end_cutting(self) -> None:
        self._cutting = False
        timer, self._cut_timer = self._cut_timer, None
        if timer is not None:
            # A pending timer refers to this port, and would keep its buffers in memory.
            timer.end()


def _nothing() -> None: ...
