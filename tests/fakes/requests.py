"""Requests for approval in memory: a model of the store's, and a service for tests of what is above it.

The model is what the state machine compares the table with (tests/proxy/hub/approvals/requests).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import attrs
import trio

from proxy.hub.approvals.request import LIFE_S, NewRequest, Request, State
from proxy.hub.approvals.requests.errors import (
    NotOpenError,
    ShownDiffersError,
    TooLargeError,
    TooManyRequestsError,
)
from proxy.hub.approvals.requests.memory import Listener
from proxy.hub.store.engines.errors import NotFoundError, StoreUnavailableError


@attrs.define(eq=False)
class Model:
    """The requests of all hubs; the caller sets the clock."""

    now: float = 1_790_000_000.0
    rows: dict[str, Request] = attrs.Factory(dict)
    users: dict[str, str] = attrs.Factory(dict)
    """By the id of a request in use: the hub that uses it."""

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        for request in self.rows.values():
            if request.state is State.PENDING and request.expires_at <= self.now:
                self._move(request, State.EXPIRED, ended_at=request.expires_at)
            elif request.state is State.APPROVED and (request.valid_until or 0.0) <= self.now:
                self._move(request, State.EXPIRED, ended_at=request.valid_until)

    def _move(self, request: Request, state: State, **changes: Any) -> Request:
        moved = attrs.evolve(request, state=state, changes=request.changes + 1, **changes)
        self.rows[request.id] = moved
        return moved

    def get(self, request_id: str) -> Request:
        if request_id not in self.rows:
            raise NotFoundError(f"there is no request {request_id!a}")
        return self.rows[request_id]

    def find(self, agent_id: str, plan: str) -> Request | None:
        same = [
            each
            for each in self.rows.values()
            if (each.new.agent_id, each.new.plan) == (agent_id, plan) and self._met(each)
        ]
        same.sort(key=lambda each: (each.state.open, each.ended_at or 0.0))
        return same[-1] if same else None

    def _met(self, request: Request) -> bool:
        ended = request.ended_at or 0.0
        match request.state:
            case State.PENDING | State.APPROVED | State.USING:
                return True
            case State.DENIED:
                return ended > self.now - 600
            case State.USED:
                return ended > self.now - 10
        return False

    def open(self, new: NewRequest, request_id: str) -> Request:
        if (found := self.find(new.agent_id, new.plan)) is not None:
            return found
        mine = [each for each in self.rows.values() if each.new.agent_id == new.agent_id]
        if sum(each.state.open for each in mine) >= 20:
            raise TooManyRequestsError("20 open")
        if sum(each.created_at > self.now - 3600 for each in mine) >= 60:
            raise TooManyRequestsError("60 an hour")
        denied = sorted(
            each.decided_at or 0.0
            for each in mine
            if each.state is State.DENIED and (each.new.policy, each.new.rule) == (new.policy, new.rule)
        )[-3:]
        if len(denied) == 3 and denied[2] - denied[0] <= 600 and denied[2] > self.now - 600:
            raise TooManyRequestsError("3 denials")
        opened = Request(request_id, new, State.PENDING, 0, self.now, self.now + LIFE_S)
        self.rows[request_id] = opened
        return opened

    def decide(self, request_id: str, *, approve: bool, by: str, answer: str, shown: str) -> Request:
        request = self.get(request_id)
        if request.state is not State.PENDING:
            raise NotOpenError(f"request {request_id} was {request.state}")
        decided = {"decided_by": by, "answer": answer, "decided_at": self.now}
        if not approve:
            return self._move(request, State.DENIED, ended_at=self.now, **decided)
        if shown != request.new.shown:
            raise ShownDiffersError("not what was shown")
        if request.new.view.too_large:
            raise TooLargeError("too large")
        until = min(self.now + request.new.valid_for_s, request.expires_at)
        return self._move(request, State.APPROVED, valid_until=until, **decided)

    def use(self, request_id: str, boot: str) -> bool:
        request = self.rows.get(request_id)
        if request is None or request.state is not State.APPROVED:
            return False
        self.users[request_id] = boot
        self._move(request, State.USING)
        return True

    def _used_by(self, request_id: str, boot: str) -> Request | None:
        request = self.rows.get(request_id)
        mine = request is not None and request.state is State.USING and self.users[request_id] == boot
        return request if mine else None

    def give_back(self, request_id: str, boot: str) -> bool:
        if (request := self._used_by(request_id, boot)) is None:
            return False
        if request.uses_returned >= 10:
            self._move(request, State.USED, ended_at=self.now)
            return False
        self._move(request, State.APPROVED, uses_returned=request.uses_returned + 1)
        self.wait(0)
        return True

    def spend(self, request_id: str, boot: str) -> None:
        if (request := self._used_by(request_id, boot)) is not None:
            self._move(request, State.USED, ended_at=self.now)

    def end(self, request_id: str, state: State, why: str, boot: str) -> bool:
        request = self.rows.get(request_id)
        if request is None or not (
            request.state in (State.PENDING, State.APPROVED) or self._used_by(request_id, boot) is not None
        ):
            return False
        self._move(request, state, because=why, ended_at=self.now)
        return True

    def revoke(self, request_id: str, by: str) -> Request:
        request = self.get(request_id)
        if not (request.state.open or request.state is State.USED):
            raise NotOpenError(f"request {request_id} was {request.state}")
        return self._move(request, State.REVOKED, because=f"revoked by {by}", ended_at=self.now)

    def spend_of_dead(self, boot: str) -> None:
        """The hub of this boot has died."""
        for request_id in [*self.rows]:
            if (request := self._used_by(request_id, boot)) is not None:
                self._move(request, State.USED, ended_at=self.now, because="the hub that used it has ended")


@attrs.define(eq=False)
class FakeRequests:
    """The service in memory (as proxy.hub.approvals.requests.service.Requests); nothing takes time."""

    model: Model = attrs.Factory(Model)
    boot: str = "boot-a"
    fault: str = ""
    """While it is set, whatever needs the store raises StoreUnavailableError with it."""
    mark: int = 0
    unspent: set[str] = attrs.Factory(set)
    _events: dict[str, list[trio.Event]] = attrs.Factory(dict)
    _listeners: list[Listener] = attrs.Factory(list)
    _revoked: set[str] = attrs.Factory(set)

    def wait(self, seconds: float) -> None:
        """Let time pass for the requests; it has nothing to do with trio's clock."""
        before = dict(self.model.rows)
        self.model.wait(seconds)
        for request_id, request in self.model.rows.items():
            if before.get(request_id) is not request:
                self._tell(request_id)

    async def _begin(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.fault:
            raise StoreUnavailableError(self.fault)

    def _tell(self, request_id: str) -> None:
        self.mark += 1
        for event in self._events.pop(request_id, []):
            event.set()
        for listener in self._listeners:
            listener(frozenset({request_id}))

    async def find(self, agent_id: str, plan: str) -> Request | None:
        await self._begin()
        return self.model.find(agent_id, plan)

    async def open(self, new: NewRequest, *, eid: str = "") -> Request:
        await self._begin()
        request_id = f"{len(self.model.rows):016x}"
        opened = self.model.open(new, request_id)
        if opened.id == request_id:
            self._tell(request_id)
        return opened

    async def use(self, request_id: str) -> bool:
        await self._begin()
        used = self.model.use(request_id, self.boot)
        self._tell(request_id)
        return used

    async def give_back(self, request_id: str) -> bool:
        if self.fault:
            self.unspent.add(request_id)
            return False
        returned = self.model.give_back(request_id, self.boot)
        self._tell(request_id)
        return returned

    async def spend(self, request_id: str) -> None:
        if self.fault:
            self.unspent.add(request_id)
            return
        self.model.spend(request_id, self.boot)
        self._tell(request_id)

    async def end(self, request_id: str, state: State, why: str) -> bool:
        await self._begin()
        ended = self.model.end(request_id, state, why, self.boot)
        self._tell(request_id)
        return ended

    def changed(self, request: Request) -> trio.Event:
        event = trio.Event()
        now = self.model.rows.get(request.id)
        if now is None or now.changes != request.changes:
            event.set()
        else:
            self._events.setdefault(request.id, []).append(event)
        return event

    def revoked(self, request_id: str) -> bool:
        row = self.model.rows.get(request_id)
        return request_id in self._revoked or (row is not None and row.state is State.REVOKED)

    async def get(self, request_id: str) -> Request:
        await self._begin()
        return self.model.get(request_id)

    async def find_all(
        self,
        *,
        states: Collection[State] = (),
        agent_id: str | None = None,
        cluster_id: str | None = None,
        offset: int = 0,
        limit: int = 100,
    ) -> Sequence[Request]:
        await self._begin()
        found = [
            each
            for each in reversed(self.model.rows.values())
            if (not states or each.state in states)
            and agent_id in (None, each.new.agent_id)
            and cluster_id in (None, each.new.cluster_id)
        ]
        return found[offset : offset + limit]

    async def every_open(self) -> Sequence[Request]:
        return await self.find_all(states=[State.PENDING, State.APPROVED])

    async def decide(self, request_id: str, *, approve: bool, by: str, answer: str, shown: str) -> Request:
        await self._begin()
        decided = self.model.decide(request_id, approve=approve, by=by, answer=answer, shown=shown)
        self._tell(request_id)
        return decided

    async def revoke(self, request_id: str, *, by: str) -> Request:
        await self._begin()
        revoked = self.model.revoke(request_id, by)
        self._tell(request_id)
        return revoked

    def revoke_in_memory(self, request_id: str, *, by: str, settled: Callable[[], None]) -> None:
        self._revoked.add(request_id)
        self._tell(request_id)

    @property
    def open_states(self) -> Mapping[State, int]:
        states = State.PENDING, State.APPROVED, State.USING
        found = Counter(each.state for each in self.model.rows.values())
        return {state: found[state] for state in states}

    @property
    def oldest_pending(self) -> float | None:
        pending = (each.created_at for each in self.model.rows.values() if each.state is State.PENDING)
        return min(pending, default=None)

    def on_change(self, listener: Listener) -> None:
        self._listeners.append(listener)
