"""One exchange from end to end: the request's body one way, the answer the other, or two raw copies.

Theory of operation. The task that calls `forward` carries the answer, from the outbound side to the inbound
one. Beside it runs at most one more task, which carries the request's body. So it is plain who ends what:

- The client leaves: the watch of the inbound side (`Inbound.watch`) notices and gives the outbound side up,
  which ends the first task's wait.
- The client's body breaks: the second task does the same.
- The answer is complete or has failed: the first task cancels the second, also in the middle of an upload
  (an API server that answers 413 reads no further, and its answer has to get through).
- An upload that the API server does not take any more is no failure: it just stops, the answer will tell.

Nothing here has a deadline but the end of an upgraded stream. A watch is silent for hours and a webhook takes
its minute; ending them is not this file's business. A client that does not read stops the copy, and by it the
tunnel's credit for this one stream.

Most requests are a small GET that is answered in one piece, and a task, a nursery or a cancel scope costs as
much as all that forward does for one: so without a body there is none of them. And the pieces of an answer
that goes on, a watch's events above all, wake no task where both sides can do without: they are sent on where
they are received (`_pass_on`), and the first task sleeps until there is a wait, the end or a failure.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from contextlib import suppress

import attrs
import trio

from proxy.exchange.engine import CLIENT_LEAVES_S, SPLICE_DRAIN_S
from proxy.exchange.ports import ByteStream, Inbound, Outbound
from proxy.message.failure import (
    ExchangeBroken,
    Failure,
    InboundBroken,
    OutboundBroken,
    Processed,
    StreamCode,
)
from proxy.message.head import RequestHead, ResponseHead
from tunnel.stream import StreamReset


class CloseReason(enum.Enum):
    """How an exchange ended, for its record."""

    COMPLETE = "complete"
    CLIENT_GONE = "client gone"
    CLIENT_ERROR = "client error"
    UPSTREAM_FAILED = "upstream failed"
    REVOKED = "revoked"
    """What allowed it holds no more: the agent, its credential, the grant or the policy."""
    DEADLINE = "deadline"
    """It was as old, or as long silent, as it may be."""
    OVERLOADED = "overloaded"
    """Memory was short, and its agent's calls held the most."""
    KILLED = "killed"
    """By an operator."""
    HUB_FAILED = "hub failed"
    """By a fault of the hub's own."""


class Tally:
    """What was forwarded so far. A cancelled exchange returns nothing, so its owner reads it here."""

    __slots__ = ("ahead", "bytes_in", "bytes_out", "held", "status", "upgraded")

    def __init__(self) -> None:
        self.status = 0
        """The answer's, once it was begun; 0 before."""
        self.bytes_in = 0
        """From the client: the request's body, then what an upgraded stream carried."""
        self.bytes_out = 0
        self.upgraded = False
        self.ahead: bytes | None = None
        """The piece of the answer that is in hand besides the one that is sent."""
        self.held: trio.Event | None = None
        """While it is there, nothing more is received from either side; its owner sets the event."""


@attrs.frozen
class Outcome:
    """What came of an exchange.

    When it is `unanswered`, nothing was sent to the client, and answering is the caller's (a Status, a RESET,
    or a second try elsewhere when `failure.processed` is NO and there was no body). Otherwise all is said and
    done, and a `failure` means that the client was cut.
    """

    status: int
    bytes_in: int
    bytes_out: int
    close_reason: CloseReason
    failure: Failure | None
    upgraded: bool

    @property
    def unanswered(self) -> bool:
        """Whether the client still waits for an answer."""
        return self.status == 0 and self.close_reason is not CloseReason.CLIENT_GONE


async def forward(
    inbound: Inbound,
    outbound: Outbound,
    request: RequestHead,
    *,
    on_head: Callable[[ResponseHead], ResponseHead],
    tally: Tally | None = None,
) -> Outcome:
    """Carry one exchange to its end.

    The request's head was sent already. The caller closes `outbound` in every case.
    `on_head` turns the answer's head into the one for the client; if it raises ExchangeBroken, that answer
    goes no further, as if it had never come. Cancelled: both sides are left as they are, `inbound` is then
    good for nothing but `cut`.
    """
    exchange = _Exchange(inbound, outbound, request, on_head, tally if tally is not None else Tally())
    if request.upgrade is not None and request.body_length != 0:
        failure = Failure(StreamCode.PROTOCOL, Processed.NO, "an upgrade cannot have a body")
        return exchange.outcome(CloseReason.CLIENT_ERROR, failure)
    return await exchange.run()


@attrs.define
class _Exchange:
    inbound: Inbound
    outbound: Outbound
    request: RequestHead
    on_head: Callable[[ResponseHead], ResponseHead]
    tally: Tally
    client_failure: Failure | None = None
    """Why the outbound side was given up."""
    broken: ExchangeBroken | None = None
    """A failure that was found behind a piece of the answer, and is raised when that piece is sent."""
    fault: Exception | None = None
    """A fault of ours while a piece was passed on."""
    answered: bool = False
    """The answer was whole as soon as it began."""

    async def run(self) -> Outcome:
        try:
            if self.request.body_length == 0:
                head = await self._carry_answer()
            else:
                head = await self._carry_both()
            if head is not None:
                return await self._upgrade(head)
        except InboundBroken as exc:
            return await self._client_failed(self.client_failure or exc.failure)
        except ExchangeBroken as exc:
            if self.client_failure is not None:
                return await self._client_failed(self.client_failure)
            # Before the answer was begun the caller has better words for it than a cut.
            if self.tally.status:
                await self.inbound.cut(exc.failure)
            return self.outcome(CloseReason.UPSTREAM_FAILED, exc.failure)
        # A client that leaves as soon as it has the last byte has not failed.
        return self.outcome(CloseReason.COMPLETE, None)

    def outcome(self, reason: CloseReason, failure: Failure | None) -> Outcome:
        tally = self.tally
        if failure is not None and tally.status and failure.processed is not Processed.YES:
            # Once the answer has begun, the request was processed.
            failure = attrs.evolve(failure, processed=Processed.YES)
        return Outcome(tally.status, tally.bytes_in, tally.bytes_out, reason, failure, tally.upgraded)

    async def _client_failed(self, failure: Failure) -> Outcome:
        if failure.code is StreamCode.CANCEL or self.tally.status:
            await self.inbound.cut(failure)
        gone = failure.code is StreamCode.CANCEL
        return self.outcome(CloseReason.CLIENT_GONE if gone else CloseReason.CLIENT_ERROR, failure)

    # -- request and answer --------------------------------------------------------------------------------

    async def _carry_answer(self) -> ResponseHead | None:
        """Carry the answer; returns the head of a 101, with which the exchange goes on."""
        self.inbound.watch(self._give_up)
        try:
            head = await self.outbound.receive_head()
            if head.status == 101:
                return head
            await self._answer(head)
            return None
        finally:
            # Cancelled, it waits no longer than the attendant needs to be cancelled as well.
            await self.inbound.unwatch()  # noqa: ASYNC102

    async def _carry_both(self) -> ResponseHead | None:
        """Carry the request's body beside the answer."""
        broken: ExchangeBroken | None = None
        head: ResponseHead | None = None
        self.inbound.watch(self._give_up, body_is_read=True)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._upload)
                try:
                    head = await self.outbound.receive_head()
                    if head.status != 101:
                        await self._answer(head)
                        head = None
                except ExchangeBroken as exc:
                    # Out of the nursery it goes as it is, not in a group.
                    broken = exc
                nursery.cancel_scope.cancel()
        finally:
            # See _carry_answer.
            await self.inbound.unwatch()  # noqa: ASYNC102
        if broken is not None:
            try:
                raise broken
            finally:
                # Its traceback holds this frame: had the frame the exception, both connections would live on
                # until a garbage collection, hundreds of them when the API server is gone.
                del broken
        return head

    async def _give_up(self, failure: Failure) -> None:
        """The client is gone, or not to be understood: end what the first task waits for."""
        self.client_failure = failure
        # First the side that must not go on; the first task may also be waiting for the client to take more.
        await self.outbound.abandon()
        if failure.code is StreamCode.CANCEL:
            await self.inbound.cut(failure)

    async def _answer(self, head: ResponseHead) -> None:
        """Send the answer.

        One piece is held back while the next one is looked for (never waited for), so that an answer which
        is here as a whole leaves in one write, its end included.
        """
        inbound, outbound, tally = self.inbound, self.outbound, self.tally
        chunk = outbound.receive_body_nowait()
        tally.ahead = ahead = self._look_ahead() if chunk else None
        head = self.on_head(head)
        tally.status = head.status
        if chunk:
            tally.bytes_out += len(chunk)
            self.answered = ahead == b""
            await inbound.send_head(head, chunk, end=self.answered)
            if self.answered:
                return
            chunk = ahead
        else:
            self.answered = chunk is not None
            await inbound.send_head(head, end=self.answered)
            if self.answered:
                return
        while True:
            if tally.held is not None:
                await tally.held.wait()
            if chunk is None:
                if self.broken is not None:
                    broken, self.broken = self.broken, None
                    try:
                        raise broken
                    finally:
                        # See _carry_both.
                        del broken
                chunk = await outbound.receive_body(self._pass_on)
                if self.fault is not None:
                    fault, self.fault = self.fault, None
                    try:
                        raise fault
                    finally:
                        # See _carry_both.
                        del fault
            if not chunk:
                await inbound.end()
                return
            tally.ahead = ahead = self._look_ahead()
            tally.bytes_out += len(chunk)
            await inbound.send_body(chunk, end=ahead == b"")
            if ahead == b"":
                return
            chunk = ahead

    def _pass_on(self, piece: bytes) -> bool:
        """Send a piece of the answer where it was received; False leaves it to the task."""
        if self.tally.held is not None:
            return False
        try:
            if not self.inbound.send_body_nowait(piece):
                return False
        except Exception as exc:
            # Raised here it would end the tunnel, and with it the exchanges of all others.
            self.fault = exc
            return False
        self.tally.bytes_out += len(piece)
        return True

    def _look_ahead(self) -> bytes | None:
        """See receive_body_nowait; but what has come before a failure goes on first."""
        try:
            return self.outbound.receive_body_nowait()
        except ExchangeBroken as exc:
            self.broken = exc
            return None

    async def _upload(self) -> None:
        """Carry the request's body, and then have the client watched."""
        if self.answered:
            # The body was dropped with the whole answer, so its end here would be taken for the body's own.
            return
        try:
            while data := await self.inbound.receive_body():
                self.tally.bytes_in += len(data)
                if self.tally.held is not None:
                    await self.tally.held.wait()
                try:
                    await self.outbound.send_body(data)
                except OutboundBroken:
                    break
            else:
                with suppress(OutboundBroken):
                    await self.outbound.end_body()
        except InboundBroken as exc:
            await self._give_up(exc.failure)
            return
        self.inbound.watch(self._give_up)

    # -- after a 101 ---------------------------------------------------------------------------------------

    async def _upgrade(self, head: ResponseHead) -> Outcome:
        head = self.on_head(head)
        self.tally.status = head.status
        self.tally.upgraded = True
        await self.inbound.send_head(head)
        splice = _Splice(self.inbound.upgraded(), self.outbound.upgraded(), self.tally)
        await splice.run()
        if splice.upstream_ended:
            # All that the API server had to say was said, so the end may look like one.
            with trio.move_on_after(SPLICE_DRAIN_S):
                await self.inbound.end()
            return self.outcome(CloseReason.COMPLETE, None)
        failure = splice.failure or Failure(StreamCode.CANCEL, Processed.YES, "the client ended first")
        await self.inbound.cut(failure)
        upstream = failure.code is not StreamCode.CANCEL
        reason = CloseReason.UPSTREAM_FAILED if upstream else CloseReason.CLIENT_GONE
        return self.outcome(reason, failure)


@attrs.define
class _Splice:
    """Two raw copies. Each ends its sink when its source ends, or starts the clock for the other one.

    The client is told the upstream's end at once, also over TLS: nothing comes behind it. The upstream is
    told the client's end only where it can still answer, since what it has to say may be under way.
    """

    client: ByteStream
    upstream: ByteStream
    tally: Tally
    upstream_ended: bool = False
    """The upstream ended cleanly, and all of it was sent."""
    failure: Failure | None = None

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._to_upstream, nursery.cancel_scope)
            await self._to_client(nursery.cancel_scope)

    async def _to_upstream(self, both: trio.CancelScope) -> None:
        listening = True
        while True:
            if self.tally.held is not None:
                await self.tally.held.wait()
            try:
                data = await self.client.receive_some()
            except trio.BrokenResourceError:
                self._fail(both, StreamCode.CANCEL, "the client is gone")
                return
            if not listening:
                if not data:
                    return
                continue
            try:
                if not data:
                    if self.upstream.can_half_close:
                        await self.upstream.send_eof()
                    else:
                        self._drain(both, SPLICE_DRAIN_S)
                    return
                await self.upstream.send_all(data)
            except trio.BrokenResourceError:
                # What it has said is still to be delivered, however slowly, and its end comes with that. The
                # client is read all the same: see CLIENT_LEAVES_S.
                listening = False
                continue
            self.tally.bytes_in += len(data)

    async def _to_client(self, both: trio.CancelScope) -> None:
        while True:
            if self.tally.held is not None:
                await self.tally.held.wait()
            try:
                data = await self.upstream.receive_some()
            except StreamReset as exc:
                self._fail(both, exc.code, exc.reason)
                return
            except trio.BrokenResourceError as exc:
                self._fail(both, StreamCode.UPSTREAM_RESET, str(exc) or "the connection broke")
                return
            try:
                if not data:
                    self.upstream_ended = True
                    if not self.client.can_half_close:
                        self._drain(both, CLIENT_LEAVES_S)
                    elif not self.upstream.can_half_close:
                        self._drain(both, SPLICE_DRAIN_S)
                    await self.client.send_eof()
                    return
                await self.client.send_all(data)
            except trio.BrokenResourceError:
                self._fail(both, StreamCode.CANCEL, "the client is gone")
                return
            self.tally.bytes_out += len(data)

    def _drain(self, both: trio.CancelScope, patience_s: float) -> None:
        both.deadline = min(both.deadline, trio.current_time() + patience_s)

    def _fail(self, both: trio.CancelScope, code: StreamCode, reason: str) -> None:
        if self.failure is None and not self.upstream_ended:
            self.failure = Failure(code, Processed.YES, reason)
        both.cancel()
