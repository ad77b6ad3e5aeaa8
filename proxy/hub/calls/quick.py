"""Small reads without a task: begun where the request is noticed, answered where the relay's answer is.

Most calls of a hub are small, allowed, and answered at once. To wake a task twice for such a call costs more
than the call. So the callback of the client's socket begins it, and the callback of the tunnel's stream ends
it. The client's task (`Calls`) takes over only where the call has to wait. Nothing is decided here:
admission, forwarding and recording are the functions of `Calls`, and every unexpected case is handed to it.
"""

from __future__ import annotations

import time
from collections.abc import Hashable

from audit.ids import new_eid
from auth.jws import TokenError
from proxy.exchange.forward import CloseReason, Outcome
from proxy.exchange.server import ServerConnection
from proxy.exchange.stand_by import QUICK_ANSWER_BYTES_MAX, Begun
from proxy.hub.authorize.admission import Call, Refusal, parse_request
from proxy.hub.calls.calls import (
    Calls,
    ClusterOffline,
    OpenedStream,
    failed,
    hub_failed,
    refusal_response,
)
from proxy.hub.calls.live import Ending, LiveCall
from proxy.message.failure import Failure, InboundBroken, OutboundBroken, Processed, StreamCode
from proxy.message.head import HeadError, RequestHead, ResponseHead
from proxy.message.rewrite import sandboxed

_LEFT = Failure(StreamCode.CANCEL, Processed.MAYBE, "the client or the hub went away")


def begin(calls: Calls, client_ip: str, connection: ServerConnection, head: RequestHead) -> Begun | None:
    """Begin to answer a request without a body; None when `Calls.handle` has to, and nothing was done."""
    now = time.time()
    if calls.hosts is not None:
        placed = calls.placed(head)
        if placed is None:
            return None
        head = placed
    parsed = parse_request(head.method, head.target)
    if not (parsed.small and calls.recorder.healthy):
        return None
    try:
        caller = calls.admission.caller(head, parsed, now)
    except TokenError:
        return None
    # All of this before it is admitted, since then it counts as one of its agent's and is decided.
    cluster = caller.tunnelled
    if cluster is None:
        return None
    relay = calls.registry.session(cluster.id)
    if relay is None:
        return None
    call = calls.admit(head, parsed, caller, client_ip, now)
    if isinstance(call, Refusal):
        return QuickRefusal(connection, head, call)
    eid = new_eid()
    try:
        opened = calls.open_stream(call, eid, relay, now)
    except (ClusterOffline, OutboundBroken):
        # The relay takes no more, or has just gone, or what crosses fits into no head: where else to go, how
        # long to wait and what to say is the task's.
        start = QuickStart(calls, connection, call, eid, now)
        calls.enter(start)
        return start
    except Exception:
        # It was admitted, so it has its record; its client's task answers for it.
        lost = LiveCall(call, eid, connection, now)
        calls.close(lost, calls.opening(lost), hub_failed(connection, lost), time.monotonic())
        raise
    live = QuickCall(calls, connection, call, eid, now, opened)
    calls.enter(live)
    return live


class QuickRefusal:
    """A request that was refused without a task, and recorded so (proxy.exchange.stand_by.Begun).

    The task answers: who is refused much has no claim to be answered fast.
    """

    def __init__(self, connection: ServerConnection, head: RequestHead, refusal: Refusal) -> None:
        self._connection = connection
        self._head = head
        self._refusal = refusal
        connection.hand_over()

    @property
    def peer(self) -> Hashable:
        """See Begun."""
        return self._connection.peer

    async def carry_on(self) -> None:
        """Answer, in the client's own task."""
        await self._connection.answer(*refusal_response(self._head, self._refusal))

    def give_up(self) -> None:
        """See Begun. Nothing is under way."""


class QuickStart(LiveCall):
    """A call that was admitted without a task, and has nowhere to go yet (proxy.exchange.stand_by.Begun)."""

    def __init__(
        self, calls: Calls, connection: ServerConnection, call: Call, eid: str, began_at: float
    ) -> None:
        super().__init__(call, eid, connection, began_at)
        self._calls = calls
        self._connection = connection
        connection.hand_over()

    @property
    def peer(self) -> Hashable:
        """See Begun."""
        return self._connection.peer

    async def carry_on(self) -> None:
        """Go on in the client's own task; see Calls.handle."""
        calls = self._calls
        try:
            await calls.carry(self._connection, self, calls.opening(self), None, self.began_s)
        finally:
            calls.leave(self)

    def give_up(self) -> None:
        """See Begun."""
        calls = self._calls
        try:
            calls.close(self, calls.opening(self), _left(self, _LEFT), self.began_s)
        finally:
            calls.leave(self)


class QuickCall(LiveCall):
    """A call that was begun without a task (proxy.exchange.stand_by.Begun)."""

    _answered = False
    """The answer is on its way, and at most a part of it is not out."""
    _carried = False
    """By the client's task, as any other call."""
    _faulty = False
    """A fault of ours has ended it, and its task is told."""

    def __init__(
        self,
        calls: Calls,
        connection: ServerConnection,
        call: Call,
        eid: str,
        began_at: float,
        opened: OpenedStream,
    ) -> None:
        super().__init__(call, eid, connection, began_at)
        self._calls = calls
        self._connection = connection
        self.opened = opened
        opened.stream.on_answer(self._look, self._leave_doubted)

    @property
    def peer(self) -> Hashable:
        """See Begun."""
        return self.opened.stream.peer

    def _look(self) -> None:
        """Something of the answer is here: answer the client, or let its task go on."""
        try:
            if self._answer():
                self._end(None if self.failure is None else _left(self, self.failure))
            else:
                self._connection.hand_over()
        except Exception as error:
            # Raised here it would end the session, and with it the calls of all others.
            self._faulty = True
            self._connection.hand_over(error)

    def _leave_doubted(self) -> None:
        """The tunnel is in doubt: let the client's task ask another relay, if there is one."""
        try:
            if self._calls.leave_doubted(self, self.opened, None):
                self.opened.stream.on_answer(None)
                self._connection.hand_over()
        except Exception as error:
            # See _look.
            self._faulty = True
            self._connection.hand_over(error)

    def _answer(self) -> bool:
        """Answer the client; False when there is more to do, or not all of the answer is out.

        A client that is gone needs no answer any more.
        """
        stream = self.opened.stream
        whole = stream.peek_whole_answer()
        if whole is None:
            return False
        encoded, size = whole
        if size > QUICK_ANSWER_BYTES_MAX:
            return False
        try:
            head = ResponseHead.decode(encoded).without_hop()
        except HeadError:
            return False
        # A 403 may be the relay's own, or one that it takes a command to mend.
        if head is None or head.status < 200 or head.status == 403:
            return False
        if head.body_length != size:
            expected = head.body_length if head.has_body(self.call.head.method) else 0
            if expected is not None and expected != size:
                return False
        if self.call.parsed.tail:
            head = sandboxed(head)
            try:
                head.encode()
            except HeadError:
                # It has no room for that line.
                return False
        body = stream.take_whole_answer()
        self._answered = True
        self.tally.status, self.tally.bytes_out = head.status, size
        try:
            return self._connection.answer_nowait(head, body)
        except InboundBroken as error:
            self.failure = error.failure
            return True

    async def carry_on(self) -> None:
        """Go on in the client's own task; see Calls.handle."""
        calls = self._calls
        if self._answered:
            await self._flush()
            return
        self.opened.stream.on_answer(None)
        self._carried = True
        try:
            opening = calls.opening(self)
            # Of what was ended before, the stream is dead already, and the call goes nowhere else.
            await calls.carry(self._connection, self, opening, self.opened, self.began_s)
        finally:
            calls.leave(self)

    async def _flush(self) -> None:
        outcome: Outcome | None = _left(self, _LEFT)
        try:
            await self._connection.flush()
            outcome = None
        except InboundBroken as error:
            outcome = _left(self, error.failure)
        except Exception:
            outcome = hub_failed(self._connection, self)
            raise
        finally:
            self._end(outcome)

    def show(self) -> None:
        """See LiveCall. A small read that is answered at once never needs this."""
        if self.relay is None:
            self.opened.show(self)

    async def end(self, ending: Ending) -> None:
        """See LiveCall. Its task is woken for it, and says what there is to say."""
        if self._carried or self._answered:
            await super().end(ending)
        elif self.ended is None:
            self.ended = ending
            stream = self.opened.stream
            stream.on_answer(None)
            stream.reset(ending.code, processed=Processed.MAYBE, reason=ending.reason)
            stream.close_nowait()
            self._connection.hand_over()

    def give_up(self) -> None:
        """See Begun. After a fault of ours as well."""
        stream = self.opened.stream
        stream.on_answer(None)
        outcome = hub_failed(self._connection, self) if self._faulty else _left(self, _LEFT)
        stream.reset(StreamCode.CANCEL, reason="the hub failed" if self._faulty else "the client is gone")
        stream.close_nowait()
        self._end(outcome)

    def _end(self, outcome: Outcome | None) -> None:
        """Write down what came of it; None is a whole answer."""
        calls, opened = self._calls, self.opened
        try:
            if outcome is None:
                calls.close_read(self, opened, self.began_s)
                return
            opened.show(self)
            calls.close(self, calls.opening(self), outcome, self.began_s)
        finally:
            calls.leave(self)


def _left(live: LiveCall, failure: Failure) -> Outcome:
    """What came of a call whose client has left, or the hub."""
    if live.tally.status:
        # As in proxy.exchange.forward: where its answer began, the request was seen.
        failure = Failure(failure.code, Processed.YES, failure.reason)
    return failed(failure, CloseReason.CLIENT_GONE, live.tally)
