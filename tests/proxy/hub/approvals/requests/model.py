"""A model in memory of the requests in the store: what the state machine compares the table with."""

from __future__ import annotations

from typing import Any

import attrs

from proxy.hub.approvals.request import LIFE_S, NewRequest, Request, State
from proxy.hub.approvals.requests.errors import (
    NotOpenError,
    ShownDiffersError,
    TooLargeError,
    TooManyRequestsError,
)
from proxy.hub.store.engines.errors import NotFoundError


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
