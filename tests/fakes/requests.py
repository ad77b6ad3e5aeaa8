"""Requests for approval in memory, for calls that wait, for the admin API and for the console."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import attrs
import trio

from proxy.hub.approvals.request import LIFE_S, NewRequest, Request, State
from proxy.hub.approvals.requests.errors import TooManyRequestsError, refusal_of
from proxy.hub.approvals.view import Change, View
from proxy.hub.store.engines.errors import NotFoundError, StoreUnavailableError

APPROVER = "eve@example.com"
NOW = 1_800_000_000.0
VIEW = View(
    summary="deletes Deployment web, at least 6 pods",
    flags=("scales to 0",),
    changes=(Change("spec.replicas", "3", "0"), Change("metadata.labels.old", '"x"', None)),
    left_out=("spec.clusterIP",),
    notes=("dependants are not tried out",),
)


def request_id(number: int) -> str:
    """Return the id of the first request, and so on. As real ones, it is hexadecimal."""
    return f"a-{number}"


@attrs.define(eq=False)
class FakeRequests:
    """The requests of one hub, with the answers of the real ones; time stands still."""

    found: list[Request] = attrs.Factory(list)
    """All of them, the oldest first."""
    mark: int = 0
    log: list[str] = attrs.Factory(list)
    """The transitions, in order."""
    in_memory: list[tuple[str, str, Callable[[], None]]] = attrs.Factory(list)
    """What was revoked while the store was away."""
    away: bool = False
    """Whether the store cannot be read or written."""
    over_limit: str = ""
    """Why the agent may open no request; "" if it may."""
    lose_use: bool = False
    """Another hub takes the grant first."""
    using: trio.Event | None = None
    """Set: a use waits for it, as for a slow commit."""
    uses: int = 0
    """How many have waited for it."""
    steps: int = 0
    """How often the store was read or written."""
    on_step: Callable[[int], object] = bool
    """Called before each, with its number."""
    _events: dict[str, trio.Event] = attrs.Factory(dict)

    # -- for the test

    def add(
        self,
        agent_id: str,
        cluster_id: str,
        *,
        approvers: tuple[str, ...] = ("any",),
        view: View = VIEW,
        state: State = State.PENDING,
        reason: str = "deletions in shop need a look",
    ) -> Request:
        """Open a request."""
        new = NewRequest(
            agent_id=agent_id,
            cluster_id=cluster_id,
            plan=f"{len(self.found) + 1:064x}",
            effect="e" * 64,
            what="delete deployments.apps shop/web",
            reason=reason,
            policy="shop",
            rule="risky",
            bundle="7",
            approvers=approvers,
            valid_for_s=900,
            interactive=False,
            view=view,
        )
        return self._add(new, state)

    @property
    def states(self) -> list[State]:
        return [each.state for each in self.found]

    def approve(self, request_id: str = "a-1", *, by: str = APPROVER) -> None:
        self.change(request_id, State.APPROVED, decided_by=by)

    def deny(self, answer: str, request_id: str = "a-1") -> None:
        self.change(request_id, State.DENIED, answer=answer)

    def change(self, request_id: str, state: State, **changed: Any) -> Request:
        """Move a request, and wake what waits for it."""
        request = self.one(request_id)
        self.log.append(f"{request.state}→{state} {request_id}")
        put = attrs.evolve(request, state=state, changes=request.changes + 1, **changed)
        self.found[self.found.index(request)] = put
        self.mark += 1
        if (event := self._events.pop(request_id, None)) is not None:
            event.set()
        return put

    def one(self, request_id: str) -> Request:
        """Return a request; raises NotFoundError."""
        for request in self.found:
            if request.id == request_id:
                return request
        raise NotFoundError(f"there is no request {request_id!a}")

    def _add(self, new: NewRequest, state: State = State.PENDING) -> Request:
        number = len(self.found) + 1
        at = NOW + number
        request = Request(request_id(number), new, state, 0, at, at + LIFE_S)
        self.found.append(request)
        self.log.append(f"open {request.id}")
        self.mark += 1
        return request

    async def _answer(self) -> None:
        await trio.lowlevel.checkpoint()
        self.steps += 1
        self.on_step(self.steps)
        if self.away:
            raise StoreUnavailableError("the database is away")

    # -- for the call that waits

    async def find(self, agent_id: str, plan: str) -> Request | None:
        await self._answer()
        mine = [each for each in self.found if (each.new.agent_id, each.new.plan) == (agent_id, plan)]
        answering = [each for each in mine if each.state.open]
        answering += [each for each in mine if each.state in {State.DENIED, State.USED}]
        return answering[0] if answering else None

    async def check_limits(self, agent_id: str, policy: str, rule: str) -> None:
        await self._answer()
        if self.over_limit:
            raise TooManyRequestsError(self.over_limit)

    async def open(self, new: NewRequest, *, eid: str = "") -> Request:
        found = await self.find(new.agent_id, new.plan)
        if found is not None:
            return found
        await self.check_limits(new.agent_id, new.policy, new.rule)
        return self._add(new)

    async def use(self, request_id: str) -> bool:
        await self._answer()
        if self.using is not None:
            self.uses += 1
            with trio.CancelScope(shield=True):
                await self.using.wait()
        if self.lose_use or self.one(request_id).state is not State.APPROVED:
            return False
        self.change(request_id, State.USING)
        return True

    async def give_back(self, request_id: str) -> bool:
        returned = self.one(request_id).uses_returned
        self.change(request_id, State.APPROVED, uses_returned=returned + 1)
        return True

    async def spend(self, request_id: str) -> None:
        self.change(request_id, State.USED)

    async def end(self, request_id: str, state: State, why: str) -> bool:
        await self._answer()
        if self.one(request_id).state not in {State.PENDING, State.APPROVED}:
            return False
        self.change(request_id, state, because=why)
        return True

    async def every_open(self) -> Sequence[Request]:
        await self._answer()
        return [each for each in self.found if each.state in {State.PENDING, State.APPROVED}]

    def changed(self, request: Request) -> trio.Event:
        if self.one(request.id).changes != request.changes:
            event = trio.Event()
            event.set()
            return event
        return self._events.setdefault(request.id, trio.Event())

    def revoked(self, request_id: str) -> bool:
        return self.one(request_id).state is State.REVOKED

    # -- for approvers

    @property
    def open_states(self) -> Mapping[State, int]:
        counts = Counter(self.states)
        return {state: counts[state] for state in State if state.open}

    @property
    def oldest_pending(self) -> float | None:
        return min((each.created_at for each in self.found if each.state is State.PENDING), default=None)

    async def get(self, request_id: str) -> Request:
        await self._answer()
        return self.one(request_id)

    async def find_all(
        self,
        *,
        states: Collection[State],
        agent_id: str | None,
        cluster_id: str | None,
        offset: int,
        limit: int,
    ) -> Sequence[Request]:
        await self._answer()
        fitting = [
            each
            for each in reversed(self.found)
            if (not states or each.state in states)
            and agent_id in (None, each.new.agent_id)
            and cluster_id in (None, each.new.cluster_id)
        ]
        return fitting[offset:][:limit]

    async def decide(self, request_id: str, *, approve: bool, by: str, answer: str, shown: str) -> Request:
        request = await self.get(request_id)
        if request.state is not State.PENDING:
            raise refusal_of(request, None)
        if approve and shown != request.new.shown:
            raise refusal_of(request, shown)
        state = State.APPROVED if approve else State.DENIED
        return self.change(
            request_id,
            state,
            decided_by=by,
            answer=answer,
            decided_at=NOW,
            valid_until=NOW + request.new.valid_for_s if approve else None,
        )

    async def revoke(self, request_id: str, *, by: str) -> Request:
        request = await self.get(request_id)
        if request.state not in {State.PENDING, State.APPROVED, State.USING, State.USED}:
            raise refusal_of(request, None)
        return self.change(request_id, State.REVOKED, decided_by=by, ended_at=NOW)

    def revoke_in_memory(self, request_id: str, *, by: str, settled: Callable[[], None]) -> None:
        self.in_memory.append((request_id, by, settled))
