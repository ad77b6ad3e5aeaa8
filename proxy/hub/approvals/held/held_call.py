"""One call that waits: from its body to the use of its approval.

Theory of operation. An asked call is a live call from its admission, so a lock, a revocation, a policy or a
limit ends it as any other. Its body is read whole, because the plan is a digest over it. The store knows what
the plan meets: an approval, a denial, a request that is pending, or nothing. In the last case the preview is
made, and a request is opened. Then the call waits until the request changes, its time is over, it is ended,
or its client leaves.

An approved call is decided once more, because its token and its snapshot may be old: by the current policies,
by its credential's id, and by its effect, which must be the one of the preview. Then the approval is used:
that is committed before the call's intent, and the intent is durable before the call is forwarded. A crash in
between spends the approval.

A client that has ended its connection is not served, also if its end arrives together with the approval: the
command may have been interrupted because it should not be carried out.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Final

import attrs
import trio
from msgspec.structs import replace

from audit.mask import without_secrets
from audit.record import Decision
from auth.policy.ask import Ask
from proxy.exchange.server import ServerConnection
from proxy.hub.approvals.held.answers import RefusedError, plain_refusal, refusal, refusal_of
from proxy.hub.approvals.held.decided import no_longer_asked
from proxy.hub.approvals.held.parts import Parts
from proxy.hub.approvals.held.slots import NoSlotError, PlanHeldError, Slot
from proxy.hub.approvals.held.words import reason_of, what_of
from proxy.hub.approvals.plan.bindable import check_bindable
from proxy.hub.approvals.plan.body import HeldBody, read_body
from proxy.hub.approvals.plan.plan import Plan, PlanFacts
from proxy.hub.approvals.plan.refusal import CannotAskError
from proxy.hub.approvals.preview.effect import effect_fits
from proxy.hub.approvals.preview.shapes import Preview, PreviewRefused
from proxy.hub.approvals.request import NewRequest, Request, State
from proxy.hub.approvals.requests.errors import TooManyRequestsError
from proxy.hub.authorize.admission import Refusal
from proxy.hub.authorize.events import GUARDRAILS
from proxy.hub.calls.calls import CLIENT_LEFT, hub_failed, refusal_response
from proxy.hub.calls.live import Approved, LiveCall
from proxy.hub.calls.outcome import CloseReason, Outcome, failed
from proxy.hub.store.engines.errors import NotFoundError, StoreUnavailableError
from proxy.message.failure import Failure, InboundBroken, Processed, StreamCode
from proxy.message.status import with_processed

# How long a call waits for another one that uses the approval: it may give it back in a moment.
USING_S: Final = 1.0
# A use is given back or spent within this, also while the hub stops.
SETTLE_S: Final = 5.0

_HELD = Failure(StreamCode.CANCEL, Processed.NO, "the client or the hub went away while the call waited")
_UNRECORDED = "the audit trail cannot be written, so an approval can neither be asked for nor used"
_NO_STORE = "the hub's store is not available, so an approval can neither be asked for nor used"
_CHANGED = "what the call would do has changed since the preview"


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
        """Answer the call; see AskedCalls."""
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
                raise RefusedError(self._unavailable(_UNRECORDED))
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
                    approved = await self._approval(body)
                except RefusedError as error:
                    refused = error
                nursery.cancel_scope.cancel()
        if self.live.ended is not None:
            raise _EndedError
        if self.connection.poll_end():
            raise _LeftError
        if refused is not None:
            raise refused
        assert approved is not None, "nothing else ends the wait"
        return approved

    async def _watch_client(self, waiting: trio.CancelScope) -> None:
        await self.connection.wait_disconnect()
        waiting.cancel()

    async def _approval(self, body: HeldBody) -> Request:
        """Return the approved request, when its effect is still the same; raises RefusedError."""
        live = self.live
        # Balancers count from the request, so the time for the body and the preview is a part of the wait.
        deadline = trio.current_time() + self.ask.wait_s - (time.monotonic() - live.began_s)
        try:
            plan = await self._plan(body)
            with self.parts.slots.slot(live.call.agent.id, plan.digest) as slot:
                while True:
                    request = await self._request(body, plan, slot)
                    if request.state is State.PENDING:
                        await self._wait(request, slot, deadline)
                    elif await self._is_same(request, body):
                        return request
        except StoreUnavailableError as error:
            raise RefusedError(self._unavailable()) from error
        except TooManyRequestsError as error:
            raise RefusedError(plain_refusal(live.call, error.status, str(error))) from error
        except NotFoundError as error:
            raise RefusedError(plain_refusal(live.call, 403, str(error))) from error

    async def _plan(self, body: HeldBody) -> Plan:
        call = self.live.call
        facts = PlanFacts(
            call.agent.id,
            call.cluster.id,
            call.info,
            tuple(call.head.header_values(b"content-type")),
            tuple(call.head.header_values(b"content-encoding")),
            self.live.began_at,
        )
        try:
            return await self.parts.budget.plan(facts, body.data, self.ask)
        except CannotAskError as error:
            raise RefusedError(plain_refusal(call, error.status, error.reason)) from error

    async def _request(self, body: HeldBody, plan: Plan, slot: Slot) -> Request:
        """Return the request that the call meets, pending or approved; open one if there is none.

        Raises RefusedError, also if a request in another state refuses the call.
        """
        requests, agent_id = self.parts.requests, self.live.call.agent.id
        request = await requests.find(agent_id, plan.digest)
        if request is not None and request.state is State.USING:
            with trio.move_on_after(USING_S):
                await requests.changed(request).wait()
            request = await requests.find(agent_id, plan.digest)
        if request is not None and request.state in {State.PENDING, State.APPROVED}:
            why = self._changed(request)
            if not why:
                return request
            await requests.end(request.id, State.CANCELLED, why)
            request = await requests.find(agent_id, plan.digest)
        if request is None:
            self._take(slot)
            request = await requests.open(await self._new_request(body, plan), eid=self.live.eid)
        if request.state not in {State.PENDING, State.APPROVED}:
            raise RefusedError(refusal_of(self.live.call, request))
        return request

    async def _new_request(self, body: HeldBody, plan: Plan) -> NewRequest:
        """Make the preview; raises RefusedError if that shows that the call cannot be made."""
        call, ask = self.live.call, self.ask
        preview = await self._preview(body)
        decision = call.verdict.decision
        bundle = call.verdict.bundle
        return NewRequest(
            agent_id=call.agent.id,
            cluster_id=call.cluster.id,
            method=call.head.method.decode("latin-1"),
            target=call.parsed.target.decode("latin-1"),
            upgrade=call.head.upgrade is not None,
            plan=plan.digest,
            effect=preview.effect,
            what=what_of(call.info),
            reason=reason_of(bundle, decision),
            policy=decision.policy,
            rule=decision.rule,
            bundle=bundle.id,
            approvers=ask.approvers,
            valid_for_s=ask.valid_for_s,
            interactive=not plan.exact,
            view=attrs.evolve(preview.view, claimed_reason=without_secrets(call.caller.claimed_reason)),
        )

    async def _preview(self, body: HeldBody, *, like: str = "") -> Preview:
        live = self.live
        async with self.parts.previews.one(live.call.agent.id):
            made = await self.parts.previewer.preview(live, body.data, self.ask, like=like)
        if isinstance(made, PreviewRefused):
            live.guardrail = made.guardrail
            refused = plain_refusal(live.call, made.status, made.message)
            raise RefusedError(attrs.evolve(refused, details=made.details, reason=made.reason))
        return made

    async def _is_same(self, request: Request, body: HeldBody) -> bool:
        """Return whether the call would do what was approved. Otherwise the request ends as stale."""
        made = await self._preview(body, like=request.new.effect)
        if effect_fits(request.new.effect, made.effect):
            return True
        await self.parts.requests.end(request.id, State.STALE, _CHANGED)
        return False

    async def _wait(self, request: Request, slot: Slot, deadline: float) -> None:
        """Wait until a request changes; raises RefusedError once the time is over."""
        call, slots = self.live.call, self.parts.slots
        if call.head.upgrade is not None and slots.is_twin(slot):
            raise RefusedError(refusal_of(call, request))
        self._take(slot, request)
        with self.parts.waits.until(deadline) as scope:
            await self.parts.requests.changed(request).wait()
        if scope.cancelled_caught:
            if call.head.upgrade is not None:
                slots.time_out(slot)
            raise RefusedError(refusal_of(call, request))

    def _take(self, slot: Slot, request: Request | None = None) -> None:
        """Count the call as held; raises RefusedError if it cannot wait."""
        call = self.live.call
        try:
            slot.take()
        except PlanHeldError as error:
            if request is not None:
                raise RefusedError(refusal_of(call, request)) from error
            message = "the same call waits for an approval already: repeat the command after it is approved"
            causes = {"ApprovalState": State.PENDING.value}
            raise RefusedError(refusal(call, message, causes)) from error
        except NoSlotError as error:
            if request is not None:
                raise RefusedError(refusal_of(call, request)) from error
            raise RefusedError(plain_refusal(call, 403, f"{error}: repeat the command later")) from error

    def _changed(self, request: Request) -> str:
        """Return why a request does not count for this call any more."""
        snapshot = self.parts.calls.directory.current
        return no_longer_asked(snapshot, request, self.live.call.info, time.time())

    # -- after it

    async def _use(self, request: Request) -> None:
        """Forward the call by the request's approval; raises RefusedError, _EndedError and _LeftError."""
        requests, live = self.parts.requests, self.live
        self._decide_again()
        if why := self._changed(request):
            await requests.end(request.id, State.CANCELLED, why)
            because = attrs.evolve(request, state=State.CANCELLED, because=why)
            raise RefusedError(refusal_of(live.call, because))
        try:
            used = await requests.use(request.id)
        except StoreUnavailableError as error:
            raise RefusedError(self._unavailable()) from error
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
        if connection.poll_end():
            raise _LeftError
        self._recorded = True
        opening = await calls.record(connection, live)
        if opening is None:
            return
        if connection.poll_end():
            if live.call.durable:
                calls.recorder.withdraw(opening)
            else:
                self._close(failed(_HELD, CloseReason.CLIENT_GONE, live.tally))
            raise _LeftError
        await calls.carry(connection, live, opening, None, time.monotonic())

    def _settle(self, request_id: str, taken: bool) -> None:
        """Spend the approval if the API server took the call; otherwise give it back."""
        self.parts.nursery.start_soon(self._settled, request_id, taken)

    async def _settled(self, request_id: str, taken: bool) -> None:
        with trio.move_on_after(SETTLE_S, shield=True):
            if taken:
                await self.parts.requests.spend(request_id)
            else:
                await self.parts.requests.give_back(request_id)

    # -- the end of a call that was not forwarded

    def _unavailable(self, why: str = _NO_STORE) -> Refusal:
        return plain_refusal(self.live.call, 503, with_processed(why, Processed.NO))

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
