"""One call that waits: from its body to the use of its approval.

Theory of operation. An asked call is a live call from its admission, so a lock, a revocation, a policy or a
limit ends it as any other. Its body is read whole, because the plan is a digest over it. The store may have
an approval, a denial or a pending request for this plan. Without any, the hub makes the preview and opens a
request. Then the call waits until the request changes, its time is over, it is ended, or its client leaves.

An approved call is decided once more, because its token and its snapshot may be old: by the current policies,
by its credential's id, and by its effect, which must be the one of the preview. Then the approval is used:
that is committed before the call's intent, and the intent is durable before the call is forwarded. A crash in
between spends the approval.

A client that has ended its connection is not served, even if its end arrives together with the approval. A
person may have interrupted the command to prevent it.
"""

from __future__ import annotations

import time
from functools import partial

import attrs
import trio
from msgspec.structs import replace

from audit.record import Decision
from auth.policy.ask import Ask
from proxy.exchange.server import ServerConnection
from proxy.hub.approvals.held.answers import NO_STORE, RefusedError, plain_refusal, refusal_of, unavailable
from proxy.hub.approvals.held.asking import Asking
from proxy.hub.approvals.held.decided import no_longer_asked
from proxy.hub.approvals.held.parts import Parts
from proxy.hub.approvals.plan.bindable import check_bindable
from proxy.hub.approvals.plan.body import HeldBody, read_body
from proxy.hub.approvals.plan.refusal import CannotAskError
from proxy.hub.approvals.request import Request, State
from proxy.hub.authorize.admission import Refusal
from proxy.hub.authorize.events import GUARDRAILS
from proxy.hub.calls.calls import CLIENT_LEFT, refusal_response
from proxy.hub.calls.closing import hub_failed
from proxy.hub.calls.live import Approved, LiveCall
from proxy.hub.calls.outcome import CloseReason, Outcome, failed
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.message.failure import Failure, InboundBroken, Processed, StreamCode

_HELD = Failure(StreamCode.CANCEL, Processed.NO, "the client or the hub went away while the call waited")
_UNRECORDED = "the audit trail cannot be written, so an approval can neither be asked for nor used"


class _EndedError(Exception):
    """The hub has ended the call (`LiveCall.ended`)."""


class _LeftError(Exception):
    """The client has ended its connection."""


@attrs.define(eq=False)
class HeldCall:
    """A call that a rule asks about, in the task of its connection."""

    parts: Parts
    connection: ServerConnection
    live: LiveCall
    ask: Ask
    _recorded: bool = False
    """Its closing event is made, or `Calls.carry` makes it."""

    async def carry(self) -> None:
        """Answer the call; see AskedCalls. An internal fault is recorded and raised, as by `Calls.carry`."""
        connection, live = self.connection, self.live
        live.failure = _HELD
        outcome = failed(_HELD, CloseReason.CLIENT_GONE, live.tally)
        try:
            await self._carry()
        except CLIENT_LEFT:
            raise
        except Exception:
            outcome = hub_failed(connection, live)
            raise
        finally:
            live.body = b""
            if not self._recorded:
                self._close(outcome)

    async def _carry(self) -> None:
        calls, live = self.parts.calls, self.live
        try:
            if not calls.recorder.healthy:
                raise RefusedError(unavailable(live.call, _UNRECORDED))
            with await self._read() as body:
                live.body = body.data
                await self._use(await self._hold(body))
        except RefusedError as error:
            await self._refuse(error.refusal)
        except _LeftError:
            # Its connection is cut, since it has a request without an answer.
            if not self._recorded:
                self._close(failed(_HELD, CloseReason.CLIENT_GONE, live.tally))
        except _EndedError:
            # An ended call is not forwarded. Its client gets the reason.
            self._recorded = True
            await calls.carry(self.connection, live, calls.opening(live), None, live.began_s)

    # -- before the approval

    async def _read(self) -> HeldBody:
        """Read the body; raises RefusedError, _EndedError and _LeftError."""
        call = self.live.call
        try:
            check_bindable(call.info, self.ask)
            with self.live.interruptible():
                length = call.head.body_length
                return await read_body(self.connection, length, self.parts.budget, call.agent.id)
        except CannotAskError as error:
            raise RefusedError(plain_refusal(call, error.status, error.reason)) from error
        except InboundBroken as broken:
            if broken.failure.code is not StreamCode.PROTOCOL:
                raise _LeftError from broken
            raise RefusedError(plain_refusal(call, 400, broken.failure.reason)) from broken
        raise _EndedError

    async def _hold(self, body: HeldBody) -> Request:
        """Return the request that approves the call; raises RefusedError, _EndedError and _LeftError."""
        approved: Request | None = None
        refused: RefusedError | None = None
        with self.live.interruptible():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_client, nursery.cancel_scope)
                try:
                    approved = await Asking(self.parts, self.live, self.ask, body).approval()
                except RefusedError as error:
                    refused = error
                nursery.cancel_scope.cancel()
        if self.live.ended is not None:
            raise _EndedError
        if self.connection.received.poll_end():
            raise _LeftError
        if refused is not None:
            raise refused
        assert approved is not None, "nothing else ends the wait"
        return approved

    async def _watch_client(self, waiting: trio.CancelScope) -> None:
        await self.connection.wait_disconnect()
        waiting.cancel()

    # -- after it

    async def _use(self, request: Request) -> None:
        """Forward the call by the request's approval; raises RefusedError, _EndedError and _LeftError."""
        requests, live = self.parts.requests, self.live
        self._decide_again()
        snapshot = self.parts.calls.directory.current
        if why := no_longer_asked(snapshot, request, live.call.info, time.time()):
            await requests.end(request.id, State.CANCELLED, why)
            because = attrs.evolve(request, state=State.CANCELLED, because=why)
            raise RefusedError(refusal_of(live.call, because))
        try:
            used = await requests.use(request.id)
        except StoreUnavailableError as error:
            raise RefusedError(unavailable(live.call, NO_STORE)) from error
        if not used:
            raise RefusedError(refusal_of(live.call, attrs.evolve(request, state=State.USED)))
        verdict = live.call.verdict
        recorded = Decision("allow", verdict.decision.rule, verdict.decision.policy, verdict.bundle.id)
        live.approved = approved = Approved(request.id, recorded, partial(self._settle, request.id))
        live.forwarded_s = time.monotonic()
        self.parts.using.add(request.id)
        try:
            await self._forward()
        finally:
            # Without an answer, only the failure shows whether the API server has seen the call.
            approved.settle(taken=live.failure is None or live.failure.processed is not Processed.NO)
            self.parts.using.discard(request.id)

    def _decide_again(self) -> None:
        """End the call if it would be refused now; raises _EndedError."""
        calls, live = self.parts.calls, self.live
        ending = calls.judge(live)
        if ending is not None:
            live.end(ending)
        calls.forwarding.recheck(live)
        if live.ended is not None:
            raise _EndedError

    async def _forward(self) -> None:
        """Record the intent of an approved call, and forward it."""
        calls, live, connection = self.parts.calls, self.live, self.connection
        # The commit has taken a while.
        self._decide_again()
        if connection.received.poll_end():
            raise _LeftError
        self._recorded = True
        opening = await calls.record(connection, live)
        if opening is None:
            return
        if connection.received.poll_end():
            self._close(failed(_HELD, CloseReason.CLIENT_GONE, live.tally))
            raise _LeftError
        await calls.carry(connection, live, opening, None, time.monotonic())

    def _settle(self, request_id: str, taken: bool) -> None:
        """Spend the approval if the API server took the call; otherwise give it back."""
        self.parts.nursery.start_soon(self._settled, request_id, taken)

    async def _settled(self, request_id: str, taken: bool) -> None:
        # Both shield themselves, also while the hub stops.
        if taken:
            await self.parts.requests.spend(request_id)
        else:
            await self.parts.requests.give_back(request_id)

    # -- the end of a call that was not forwarded

    async def _refuse(self, refused: Refusal) -> None:
        calls, live = self.parts.calls, self.live
        event = replace(calls.opening(live), note=refused.note or refused.message)
        if live.guardrail:
            event = replace(event, decision=Decision("deny", live.guardrail, GUARDRAILS))
        self._recorded = True
        calls.refused(event, refused.status)
        await self.connection.answer(*refusal_response(live.call.head, refused))

    def _close(self, outcome: Outcome) -> None:
        calls, live = self.parts.calls, self.live
        self._recorded = True
        calls.close(live, calls.opening(live), outcome, live.began_s)
