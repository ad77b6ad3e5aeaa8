"""One exchange without tasks: two ports, two directions, one table.

Theory of operation. An exchange is a request and its answer. It has two ports. The client's port delivers the
request's body and takes the answer. The upstream's port takes the body and delivers the answer. A task does
the work that may wait (a dial, a fresh token, a durable record) before the exchange starts. Afterwards a port
calls the exchange when bytes arrive, when it has room again, and when it breaks. The exchange calls the other
port. The exchange never waits and buffers nothing: a full sink pauses its source.

    client port ──data──▶ request direction ──write──▶ upstream port
    client port ◀──head, write── answer direction ◀──answer_head, data── upstream port

Each direction has one half (`tunnel.protocol.state`). Its table has no entry for a second head, or for bytes
after an end. The request's head does not pass through the exchange. The upstream's port sends it, together
with the first bytes of the body if they have arrived.

A cut must never look like a clean end, because kubectl trusts a clean end. So `on_done` gets one of two
values. None: the answer is complete, and the kernel has its last byte. A failure before the answer's head:
the caller sends an error answer (a Status, a RESET) or starts another attempt. A failure after the head: the
client is cut.

An exchange is one attempt. Another attempt is a new Exchange with the same client port. The caller delivers
the request's body again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, ParamSpec, Protocol

import attrs

from proxy.message.failure import Failure, Processed, StreamCode
from proxy.message.head import ResponseHead
from tunnel.protocol.state import BROKEN, ENDED, FLOWING, FRESH, Half, Step, after

__all__ = [
    "ANSWERED_EARLY",
    "CLIENT_LEAVES_S",
    "FAULT",
    "OVER",
    "SHARE_BYTES",
    "SPLICE_DRAIN_S",
    "Direction",
    "Exchange",
    "Port",
]

log = logging.getLogger("hawse")

P = ParamSpec("P")

# Bytes that a port delivers in one loop pass before others run.
SHARE_BYTES = 256 * 1024
# Grace period for the other direction of a raw stream after one has ended, over a transport without
# half-close (TLS). kube-apiserver itself ends both at once.
SPLICE_DRAIN_S = 1.0
# A client that reads the end over TLS closes by itself, after it has read the bytes before the end. If the
# connection is closed while the client still writes (kubectl pings every 5 s), TCP discards the unread bytes.
# The kernel holds some 100 KB of them, which take this long at 30 kbit/s.
CLIENT_LEAVES_S = 30.0

ANSWERED_EARLY: Final = Failure(
    StreamCode.CANCEL, Processed.YES, "the answer was whole before the request's body"
)
FAULT: Final = Failure(StreamCode.INTERNAL, Processed.MAYBE, "an internal fault ended the exchange")
_CLIENT_FIRST: Final = Failure(StreamCode.CANCEL, Processed.YES, "the client ended first")

_HEAD: Final = Step.HEAD
_DATA: Final = Step.DATA
_FIN: Final = Step.FIN


class Port(Protocol):
    """One end of an exchange: a client's connection, a tunnel's stream, a pooled connection.

    The contract, in addition to the methods' own docstrings:

    - A port begins paused. It calls `exchange.data` and `exchange.answer_head` only between `resume` and
      `pause`. After `pause` it delivers nothing, not even bytes that it has already read. It may call
      `broken` while it is paused, if no earlier bytes are lost by that.
    - No method raises. Each may call `room`, `flushed` or `broken` of the exchange before it returns.
    - `resume` may call `data` before it returns, but never within a call of `data` by the same port. After
      each such call, a port checks whether it is paused, and whether `exchange.over`.
    - A port stops at its share of a loop pass, and continues in the next pass.
    - Once the exchange is over, the callers own its ports again. Their `exchange` is then OVER, which
      ignores all calls.
    """

    exchange: Exchange
    """The exchange that the port calls. An Exchange sets it on both of its ports."""

    @property
    def half_closes(self) -> bool:
        """Whether the other direction may continue after `write(…, end=True)`: not over TLS."""
        ...

    def head(self, head: ResponseHead, data: bytes, end: bool) -> bool:
        """Send an answer's head with the body bytes and the end that have arrived; otherwise like `write`.

        Only a client's port implements it. Interim heads (1xx except 101) may precede the final one, in any
        number and without bytes.
        """
        ...

    def write(self, data: bytes, end: bool) -> bool:
        """Take all the bytes, and with `end` the clean end after them.

        False means full: the port calls `exchange.room` once it has room again. After `end` it calls
        `exchange.flushed` as soon as the kernel, or the tunnel's session, has the last byte.
        """
        ...

    def pause(self) -> None:
        """Stop delivering. The port keeps the bytes that it has read: one read at most."""
        ...

    def resume(self) -> None:
        """Start delivering, or continue after `pause`."""
        ...

    def stop(self) -> None:
        """Stop delivering for good: the port never calls `data` again.

        Does nothing after the end. A client's connection reads and drops further bytes, up to a bound, or
        closes after the answer.
        """
        ...

    def cut(self, failure: Failure, drop: bool) -> None:
        """End both directions in a way that is never taken for a clean end. A second call does nothing.

        Queued bytes are sent first, as far as the port can bound that. With `drop` they are discarded.
        """
        ...


class Direction:
    """The bytes of one direction, from a source to a sink."""

    __slots__ = ("flushed", "full", "half", "paused", "sink", "source")

    def __init__(self, source: Port, sink: Port, half: Half, full: bool = False) -> None:
        self.source = source
        self.sink = sink
        self.half = half
        self.paused = True
        """The source is paused."""
        self.full = full
        """The sink was full and has not reported room since."""
        self.flushed = False
        """The sink has sent the clean end."""

    def wrote(self, room: bool) -> None:
        """Note whether the last write left room. The sink may have called `room` within the write."""
        if room:
            self.full = False
        elif self.full and not (self.paused or self.half.at_rest):
            self.paused = True
            self.source.pause()


class Exchange:
    """One request and its answer, between two ports.

    `on_done` is called once: with None, or with the failure. The exchange no longer calls a port by then.
    After a failure without a `status`, the client's port is paused and has sent only interim heads. The next
    request must not begin within `on_done`: 10,000 pipelined requests would nest in one stack.

    `on_half_closed` is called with a number of seconds when one direction of a raw stream has ended. Its
    implementation calls `expire` after that time.
    """

    __slots__ = (
        "_awaits_101",
        "_on_done",
        "_on_half_closed",
        "answer",
        "client",
        "held",
        "over",
        "request",
        "spliced",
        "started",
        "status",
        "upstream",
    )

    def __init__(
        self,
        client: Port,
        upstream: Port,
        on_done: Callable[[Failure | None], None],
        on_half_closed: Callable[[float], None] | None = None,
        *,
        bodiless: bool = False,
        upgrade: bool = False,
    ) -> None:
        """`bodiless`: the request has already ended, and its port delivers nothing. `upgrade`: its port
        delivers only the raw bytes after a 101."""
        self.client = client
        self.upstream = upstream
        client.exchange = upstream.exchange = self
        self.request = _ENDED_BEFORE if bodiless else Direction(client, upstream, FLOWING, upgrade)
        self._awaits_101 = upgrade
        self.answer = Direction(upstream, client, FRESH)
        self.status = 0
        """The answer's status once its head was passed on; 0 before."""
        self.spliced: bool = False
        """The status was 101: the directions are raw and independent from then on."""
        self.held = False
        self.over: bool = False
        self.started = False
        """`start` was called."""
        self._on_done = on_done
        self._on_half_closed = on_half_closed

    # -- calls from the caller

    def start(self) -> None:
        """Resume the ports, the client's first, so that the request's head and body leave in one write.

        A second call resumes the directions that have no reason to stay paused.
        """
        self.started = True
        try:
            for direction in (self.request, self.answer):
                if direction.paused and not (direction.full or direction.half.at_rest):
                    # The request's direction may have ended the exchange.
                    if self.held or self.over:
                        return
                    direction.paused = False
                    direction.source.resume()
        except Exception as error:
            self.crash(error)

    def hold(self) -> None:
        """Pause both directions until `release`."""
        if self.over or self.held:
            return
        self.held = True
        try:
            self._pause(self.request)
            self._pause(self.answer)
        except Exception as error:
            self.crash(error)

    def release(self) -> None:
        """Continue after a `hold`."""
        self.held = False
        if self.started:
            self.start()

    def end(self, failure: Failure, *, drop: bool = True) -> None:
        """End the exchange with a failure. Queued bytes are discarded, unless `drop` is False."""
        self._finish(failure, drop)

    def expire(self) -> None:
        """End the exchange after the time that `on_half_closed` was called with."""
        self._finish(None if self.over or self.answer.flushed else _CLIENT_FIRST, False)

    # -- calls from the ports

    def answer_head(self, head: ResponseHead, data: bytes = b"", end: bool = False) -> None:
        """Take the answer's head, with the body bytes and the end that arrived with it.

        Interim heads may come before it, without bytes.
        """
        if self.over:
            return
        answer, status = self.answer, head.status
        try:
            assert not answer.paused, "a head from a paused port"
            if status < 200 and status != 101:
                assert answer.half is FRESH, "an interim head after the final one"
                self.client.head(head, b"", False)
                return
            # FRESH is the only state with this transition, so the lookup is needed only for the error.
            answer.half = FLOWING if answer.half is FRESH else after(answer.half, _HEAD)
            self.status = status
            self.spliced = status == 101
            if end:
                answer.half = ENDED
                if not (self.request.half.at_rest or self._end_upload()):
                    return
            answer.full = True
            room = self.client.head(head, data, end)
            if not self.over:
                answer.wrote(room)
                if self._awaits_101 and self.spliced:
                    self.room(self.upstream)
        except Exception as error:
            self.crash(error)

    def data(self, port: Port, data: bytes, end: bool = False) -> None:
        """Take bytes, and with `end` the clean end after them."""
        if self.over:
            return
        direction = self.request if port is self.client else self.answer
        try:
            assert not direction.paused, "bytes from a paused port"
            half = direction.half
            if half is BROKEN:
                # The sink is gone. The source of a raw stream is still read, so that its end is noticed.
                return
            assert half is not FRESH, "bytes of an answer before its head"
            # FLOWING bytes without an end leave the half FLOWING: no lookup is needed.
            if half is not FLOWING or end:
                direction.half = after(half, _FIN if end else _DATA)
            if end and direction is self.answer and not self._end_upload():
                return
            direction.full = True
            room = direction.sink.write(data, end)
            if not self.over:
                direction.wrote(room)
                if end and self.spliced and direction is self.request and not self.upstream.half_closes:
                    self._half_closed(SPLICE_DRAIN_S)
        except Exception as error:
            self.crash(error)

    def room(self, port: Port) -> None:
        """Note that the port takes more bytes."""
        if self.over:
            return
        direction = self.answer if port is self.client else self.request
        direction.full = False
        if direction.paused and self.started:
            self.start()

    def flushed(self, port: Port) -> None:
        """Note that the kernel has the last byte before the port's clean end."""
        if self.over:
            return
        direction = self.answer if port is self.client else self.request
        direction.flushed = True
        if self.answer.flushed and (not self.spliced or self.request.flushed):
            self._finish(None, False)
        elif self.spliced and direction is self.answer:
            if not self.client.half_closes:
                self._half_closed(CLIENT_LEAVES_S)
            elif not self.upstream.half_closes:
                self._half_closed(SPLICE_DRAIN_S)

    def broken(self, port: Port, failure: Failure) -> None:
        """Handle a port that neither delivers nor takes bytes any more."""
        if self.over:
            return
        if self.answer.half is not ENDED:
            # The client still gets the part of a broken answer that has arrived.
            self._finish(failure, drop=port is self.client)
        elif port is self.client:
            # On a raw stream each side may leave once it has received everything.
            self._finish(None if self.answer.flushed else failure, drop=True)
        else:
            # A complete answer outlives the connection that brought it.
            self.request.half = after(self.request.half, Step.RESET)
            self.flushed(port)

    def crash(self, error: Exception) -> None:
        """End this exchange after a bug in a port or in the engine. Other exchanges are not affected."""
        client = None if self.over else self.client
        log.error("an exchange with %r failed by a fault of ours", client, exc_info=error)
        self._finish(FAULT, False)

    # -- internal

    def _pause(self, direction: Direction) -> None:
        if not (direction.paused or direction.half.at_rest):
            direction.paused = True
            direction.source.pause()

    def _end_upload(self) -> bool:
        """End the upload after a complete answer. False: the exchange is over now."""
        request = self.request
        if not (request.half.at_rest or self.spliced):
            request.half = after(request.half, Step.RESET)
            self.client.stop()
            self.upstream.cut(ANSWERED_EARLY, True)
        return not self.over

    def _half_closed(self, patience_s: float) -> None:
        """Report that one direction of a raw stream has ended; the other may continue for `patience_s`."""
        if self._on_half_closed is not None:
            try:
                self._on_half_closed(patience_s)
            except Exception as error:
                self.crash(error)

    def _finish(self, failure: Failure | None, drop: bool) -> None:
        if self.over:
            return
        self.over = True
        client, upstream = self.client, self.upstream
        client.exchange = upstream.exchange = OVER
        on_done, self._on_done, self._on_half_closed = self._on_done, _nothing, None
        if failure is not None:
            if self.status and failure.processed is not Processed.YES:
                # Once the answer has begun, the request was processed.
                failure = attrs.evolve(failure, processed=Processed.YES)
            self._leave(upstream.cut, failure, True)
            if self.status:
                self._leave(client.cut, failure, drop)
            else:
                self._leave(self._pause, self.request)
        try:
            on_done(failure)
        except Exception as error:
            self._log(error)

    def _leave(self, call: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> None:
        """Make one of the final calls. A bug in it must not prevent the others."""
        try:
            call(*arguments, **named)
        except Exception as error:
            self._log(error)

    def _log(self, error: Exception) -> None:
        log.error("the end of an exchange with %r failed by a fault of ours", self.client, exc_info=error)


def _nothing(_: Failure | None) -> None: ...


_ENDED_BEFORE: Final = Direction.__new__(Direction)
"""The request direction of all exchanges whose request has no bytes left to deliver."""
_ENDED_BEFORE.half = ENDED
_ENDED_BEFORE.paused = _ENDED_BEFORE.flushed = True
_ENDED_BEFORE.full = False


OVER: Final = Exchange.__new__(Exchange)
"""The exchange of a port without an exchange: it ignores all calls."""
OVER.over = True
OVER.spliced = False
