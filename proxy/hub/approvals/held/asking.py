"""Asks for the approval of one call: from its plan to the request that approves it."""

from __future__ import annotations

import time
from typing import Final

import attrs
import trio

from audit.mask import without_secrets
from auth.policy.ask import Ask
from proxy.hub.approvals.held.answers import (
    NO_STORE,
    RefusedError,
    plain_refusal,
    refusal,
    refusal_of,
    unavailable,
)
from proxy.hub.approvals.held.decided import no_longer_asked
from proxy.hub.approvals.held.parts import Parts
from proxy.hub.approvals.held.slots import NoSlotError, PlanHeldError, Slot
from proxy.hub.approvals.held.words import reason_of, what_of
from proxy.hub.approvals.plan.body import HeldBody
from proxy.hub.approvals.plan.plan import Plan, PlanFacts
from proxy.hub.approvals.plan.refusal import CannotAskError
from proxy.hub.approvals.preview.effect import effect_fits
from proxy.hub.approvals.preview.shapes import Preview, PreviewRefused
from proxy.hub.approvals.request import NewRequest, Request, State
from proxy.hub.approvals.requests.errors import TooManyRequestsError
from proxy.hub.calls.live import LiveCall
from proxy.hub.store.engines.errors import NotFoundError, StoreUnavailableError

# How long a call waits for another one that uses the approval: it may give it back in a moment.
USING_S: Final = 1.0

_CHANGED = "what the call would do has changed since the preview"


@attrs.define(eq=False)
class Asking:
    """A call that waits for its approval. Its task cancels `approval` once the call is ended."""

    parts: Parts
    live: LiveCall
    ask: Ask
    body: HeldBody

    async def approval(self) -> Request:
        """Return the approved request, when its effect is still the same; raises RefusedError."""
        live = self.live
        # Balancers count from the request, so the time for the body and the preview is a part of the wait.
        deadline = trio.current_time() + self.ask.wait_s - (time.monotonic() - live.began_s)
        try:
            plan = await self._plan()
            with self.parts.slots.slot(live.call.agent.id, plan.digest) as slot:
                while True:
                    request = await self._request(plan, slot)
                    if request.state is State.PENDING:
                        await self._wait(request, slot, deadline)
                    elif await self._is_same(request):
                        return request
        except StoreUnavailableError as error:
            raise RefusedError(unavailable(live.call, NO_STORE)) from error
        except TooManyRequestsError as error:
            raise RefusedError(plain_refusal(live.call, error.status, str(error))) from error
        except NotFoundError as error:
            raise RefusedError(plain_refusal(live.call, 403, str(error))) from error

    async def _plan(self) -> Plan:
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
            return await self.parts.budget.plan(facts, self.body.data, self.ask)
        except CannotAskError as error:
            raise RefusedError(plain_refusal(call, error.status, error.reason)) from error

    async def _request(self, plan: Plan, slot: Slot) -> Request:
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
            decision = self.live.call.verdict.decision
            # A preview costs requests to the cluster, so a call that may not ask gets none.
            await requests.check_limits(agent_id, decision.policy, decision.rule)
            request = await requests.open(await self._new_request(plan), eid=self.live.eid)
        if request.state not in {State.PENDING, State.APPROVED}:
            raise RefusedError(refusal_of(self.live.call, request))
        return request

    async def _new_request(self, plan: Plan) -> NewRequest:
        """Make the preview; raises RefusedError if that shows that the call cannot be made."""
        call, ask = self.live.call, self.ask
        preview = await self._preview()
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

    async def _preview(self, *, like: str = "") -> Preview:
        live = self.live
        made = await self.parts.previewer.preview(live, self.body.data, self.ask, like=like)
        if isinstance(made, PreviewRefused):
            live.guardrail = made.guardrail
            refused = plain_refusal(live.call, made.status, made.message)
            raise RefusedError(
                attrs.evolve(refused, details=made.details, reason=made.reason, note=made.note)
            )
        return made

    async def _is_same(self, request: Request) -> bool:
        """Return whether the call would do what was approved. Otherwise the request ends as stale."""
        made = await self._preview(like=request.new.effect)
        if effect_fits(request.new.effect, made.effect):
            return True
        await self.parts.requests.end(request.id, State.STALE, _CHANGED)
        return False

    async def _wait(self, request: Request, slot: Slot, deadline: float) -> None:
        """Wait until a request changes; raises RefusedError once the time is over."""
        call, slots = self.live.call, self.parts.slots
        if call.head.upgrade is not None and slots.is_fallback(request.id):
            raise RefusedError(refusal_of(call, request))
        self._take(slot, request)
        with self.parts.waits.until(deadline) as scope:
            await self.parts.requests.changed(request).wait()
        if scope.cancelled_caught:
            if call.head.upgrade is not None:
                slots.time_out(request.id)
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
