"""One exchange without tasks: two ports, two directions, one table.

Theory of operation. An exchange is a request and its answer. It has two ports. The client's port delivers the
request's body and takes the answer. The upstream's port takes the body and delivers the answer. A task does
beforehand what may wait (a dial, a fresh token, a durable record). From then on a port calls the exchange
when bytes come, when it has room again, and when it breaks. The exchange calls the other port. Nothing here
waits, and nothing is kept here: a sink without room pauses its source.

    client port ──data──▶ request direction ──write──▶ upstream port
    client port ◀──head, write── answer direction ◀──answer_head, data── upstream port

Each direction has one half (`tunnel.protocol.state`). Its table has no entry for a second head, or for bytes
behind an end. The request's head does not pass here: the upstream's port sends it, with the first bytes of
the body where they have come.

Only a clean end may look like one, since kubectl believes it. So an exchange ends in one of two ways. Done
with None: the answer is whole, and the kernel has its last byte. Done with a failure: before the answer's
head, the owner words it (a Status, a RESET) or makes another attempt; behind the head, the client is cut.

An exchange is one attempt. Another attempt is another Exchange with the same client port, whose owner has the
request's body delivered again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, ParamSpec, Protocol

import attrs

from proxy.message.failure import Failure, Processed, StreamCode
from proxy.message.head import ResponseHead
from tunnel.protocol.state import BROKEN, ENDED, FLOWING, FRESH, Half, Step, after

__all__ = ["ANSWERED_EARLY", "CLIENT_LEAVES_S", "OVER", "SPLICE_DRAIN_S", "Direction", "Exchange", "Port"]

log = logging.getLogger("hawse")

P = ParamSpec("P")

# After one direction of a raw stream ended where a transport has no half-close (TLS), the other one may
# finish for this long. kube-apiserver itself ends both at once.
SPLICE_DRAIN_S = 1.0
# A client that reads the end over TLS leaves by itself, once it has read what was sent before. Closed while
# it still writes, as kubectl does each 5 s (a ping), TCP would take back what it has not read. The kernel
# holds some 100 KB of that, which take as long as this at 30 kbit/s.
CLIENT_LEAVES_S = 30.0

ANSWERED_EARLY: Final = Failure(
    StreamCode.CANCEL, Processed.YES, "the answer was whole before the request's body"
)
_FAULT: Final = Failure(StreamCode.INTERNAL, Processed.MAYBE, "an internal fault ended the exchange")
_CLIENT_FIRST: Final = Failure(StreamCode.CANCEL, Processed.YES, "the client ended first")

_HEAD: Final = Step.HEAD
_DATA: Final = Step.DATA
_FIN: Final = Step.FIN


class Port(Protocol):
    """One end of an exchange: a client's connection, a tunnel's stream, a pooled connection.

    The contract, beside what the methods say:

    - A port begins paused. It calls `exchange.data` and `exchange.answer_head` only between `resume` and
      `pause`. After `pause` it delivers nothing, not even what it has read. It may call `broken` while it is
      paused, if nothing that came before is lost by that.
    - No method raises. Each may call `room`, `flushed` or `broken` of the exchange before it returns.
    - `resume` may call `data` before it returns, but never within a call of `data` by the same port. After
      each such call, a port checks whether it is paused, and whether `exchange.over`.
    - A port stops at its share of a loop pass, and goes on in the next pass.
    - Once the exchange is over, its ports belong to their owners again. Their `exchange` is then OVER, which
      ignores all calls.
    """

    exchange: Exchange
    """The exchange that the port calls. An Exchange sets it on both of its ports."""

    @property
    def half_closes(self) -> bool:
        """Whether the other direction may go on after `write(…, end=True)`: not over TLS."""
        ...

    def head(self, head: ResponseHead, data: bytes, end: bool) -> bool:
        """Send an answer's head, with the bytes and the end that are there already; else as `write`.

        For a client's port. An interim head (1xx but for 101) may come any number of times before the final
        one, without bytes.
        """
        ...

    def write(self, data: bytes, end: bool) -> bool:
        """Take bytes, all of them, and with `end` the clean end.

        False: it is full, and calls `exchange.room` once it is not. Behind `end` it calls `exchange.flushed`
        as soon as the kernel, or the tunnel's session, has the last byte.
        """
        ...

    def pause(self) -> None:
        """Deliver nothing from here on. What the port has read stays in it: one read at most."""
        ...

    def resume(self) -> None:
        """Deliver again."""
        ...

    def stop(self) -> None:
        """Nothing more is wanted of what this port would deliver; it never calls `data` again.

        Does nothing behind the end. A client's connection reads on and drops what comes, up to a bound, or
        closes after the answer.
        """
        ...

    def cut(self, failure: Failure, drop: bool) -> None:
        """End both directions, so that it can never be taken for a clean end. A second call does nothing.

        What is queued still leaves before that, as far as the port can bound it; with `drop` it does not.
        """
        ...


class Direction:
    """The bytes of one direction: from a source, to a sink."""

    __slots__ = ("flushed", "full", "half", "paused", "sink", "source")

    def __init__(self, source: Port, sink: Port, half: Half, full: bool = False) -> None:
        self.source = source
        self.sink = sink
        self.half = half
        self.paused = True
        """The source delivers nothing now."""
        self.full = full
        """The sink has not reported room since it was full."""
        self.flushed = False
        """The sink has sent the clean end."""

    def wrote(self, room: bool) -> None:
        """Note whether a write that has just returned has left room; its sink may have said so within it."""
        if room:
            self.full = False
        elif self.full and not (self.paused or self.half.at_rest):
            self.paused = True
            self.source.pause()


class Exchange:
    """One request and its answer, between two ports.

    `on_done` is called once: with None, or with why it failed. By then the exchange touches no port any more.
    After a failure without a `status` the client's port is paused and was sent nothing but interim heads. A
    next request never begins within `on_done`, or 10,000 pipelined ones would be one stack.

    `on_half_closed` is called when one direction of a raw stream has ended: call `expire` after so many
    seconds.
    """

    __slots__ = (
        "_awaits_101",
        "_on_done",
        "_on_half_closed",
        "_started",
        "answer",
        "client",
        "held",
        "over",
        "request",
        "spliced",
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
        """`bodiless`: the request has ended already, and its port delivers nothing. `upgrade`: it delivers
        the raw bytes behind a 101, and nothing before that."""
        self.client = client
        self.upstream = upstream
        client.exchange = upstream.exchange = self
        self.request = _ENDED_BEFORE if bodiless else Direction(client, upstream, FLOWING, upgrade)
        self._awaits_101 = upgrade
        self.answer = Direction(upstream, client, FRESH)
        self.status = 0
        """The answer's, once its head was passed on; 0 before."""
        self.spliced: bool = False
        """It was a 101: from there on the directions are raw, and independent."""
        self.held = False
        self.over: bool = False
        self._started = False
        self._on_done = on_done
        self._on_half_closed = on_half_closed

    # -- what the owner calls

    def start(self) -> None:
        """Have the ports deliver, the client's first, so that a body leaves with its head.

        Called again, it resumes what has no reason to be paused any more.
        """
        self._started = True
        try:
            for direction in (self.request, self.answer):
                held = self.held or self.over
                if direction.paused and not (held or direction.full or direction.half.at_rest):
                    direction.paused = False
                    direction.source.resume()
        except Exception as error:
            self.crash(error)

    def hold(self) -> None:
        """Move nothing until `release`."""
        if self.over or self.held:
            return
        self.held = True
        try:
            self._pause(self.request)
            self._pause(self.answer)
        except Exception as error:
            self.crash(error)

    def release(self) -> None:
        """Go on after a `hold`."""
        self.held = False
        if self._started:
            self.start()

    def end(self, failure: Failure, *, drop: bool = True) -> None:
        """End it, because it must not go on; what is queued is dropped, unless told otherwise."""
        self._finish(failure, drop)

    def expire(self) -> None:
        """The time that `on_half_closed` was called with is over."""
        self._finish(None if self.over or self.answer.flushed else _CLIENT_FIRST, False)

    # -- what the ports call

    def answer_head(self, head: ResponseHead, data: bytes = b"", end: bool = False) -> None:
        """The answer's head is here, and the bytes and the end behind it that came with it.

        An interim head may come before, without bytes.
        """
        if self.over:
            return
        answer, status = self.answer, head.status
        try:
            assert not answer.paused, "a head from a port that is paused"
            if status < 200 and status != 101:
                assert answer.half is FRESH, "an interim head behind the answer's"
                self.client.head(head, b"", False)
                return
            # Only in this state there is such a transition.
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
        """Bytes are here, and with `end` the clean end behind them."""
        if self.over:
            return
        direction = self.request if port is self.client else self.answer
        try:
            assert not direction.paused, "bytes from a port that is paused"
            half = direction.half
            if half is BROKEN:
                # Its sink is gone; the source of a raw stream is read on, so that its end is noticed.
                return
            assert half is not FRESH, "bytes of an answer before its head"
            # The other entry of the table keeps it FLOWING.
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
        """The port takes more."""
        if self.over:
            return
        direction = self.answer if port is self.client else self.request
        direction.full = False
        if direction.paused and self._started:
            self.start()

    def flushed(self, port: Port) -> None:
        """The kernel has the last byte of the clean end."""
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
        """Nothing more comes from the port, and it takes nothing."""
        if self.over:
            return
        if self.answer.half is not ENDED:
            # What has come of an answer that breaks off is still for the client.
            self._finish(failure, drop=port is self.client)
        elif port is self.client:
            # Over a raw stream each side may leave once it has all.
            self._finish(None if self.answer.flushed else failure, drop=True)
        else:
            # An answer that is whole outlives its connection.
            self.request.half = after(self.request.half, Step.RESET)
            self.flushed(port)

    def crash(self, error: Exception) -> None:
        """A bug in a port, or here, ends this exchange and no other."""
        client = None if self.over else self.client
        log.error("an exchange with %r failed by a fault of ours", client, exc_info=error)
        self._finish(_FAULT, False)

    # -- within

    def _pause(self, direction: Direction) -> None:
        if not (direction.paused or direction.half.at_rest):
            direction.paused = True
            direction.source.pause()

    def _end_upload(self) -> bool:
        """End the upload behind an answer that is whole. False: the exchange is over by that."""
        request = self.request
        if not (request.half.at_rest or self.spliced):
            request.half = after(request.half, Step.RESET)
            self.client.stop()
            self.upstream.cut(ANSWERED_EARLY, True)
        return not self.over

    def _half_closed(self, patience_s: float) -> None:
        """One direction of a raw stream has ended, and the other one may go on for so long."""
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
                # Where the answer has begun, the request was seen.
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
        """Make a call of the end: a bug in it must not keep the others from being made."""
        try:
            call(*arguments, **named)
        except Exception as error:
            self._log(error)

    def _log(self, error: Exception) -> None:
        log.error("the end of an exchange with %r failed by a fault of ours", self.client, exc_info=error)


def _nothing(_: Failure | None) -> None: ...


_ENDED_BEFORE: Final = Direction.__new__(Direction)
"""The request direction of all exchanges whose request had ended before: nothing crosses it."""
_ENDED_BEFORE.half = ENDED
_ENDED_BEFORE.paused = _ENDED_BEFORE.flushed = True
_ENDED_BEFORE.full = False


OVER: Final = Exchange.__new__(Exchange)
"""The exchange of a port that has none: it ignores whatever the port calls."""
OVER.over = True
OVER.spliced = False
