"""Requests for approval in memory, with the answers of the real ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import attrs
import trio

from proxy.hub.approvals.request import LIFE_S, NewRequest, Request, State
from proxy.hub.approvals.requests.errors import refusal_of
from proxy.hub.approvals.view import Change, View
from proxy.hub.store.engines.errors import NotFoundError, StoreUnavailableError

NOW = 1_800_000_000.0
VIEW = View(
    summary="deletes Deployment web, at least 6 pods",
    flags=("scales to 0",),
    changes=(Change("spec.replicas", "3", "0"), Change("metadata.labels.old", '"x"', None)),
    left_out=("spec.clusterIP",),
    notes=("dependants are not tried out",),
)


def request_id(number: int) -> str:
    """Return the id of the first request, and so on."""
    return f"0199a1b2-0000-7cc3-98c4-{number:012x}"


@attrs.define
class FakeRequests:
    """The requests that a test has opened, the oldest first."""

    found: list[Request] = attrs.Factory(list)
    mark: int = 0
    in_memory: list[tuple[str, str, Callable[[], None]]] = attrs.Factory(list)
    """What was revoked while the store was away."""
    away: bool = False
    """Whether the store cannot be read or written."""

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
        number = len(self.found) + 1
        new = NewRequest(
            agent_id=agent_id,
            cluster_id=cluster_id,
            plan=f"{number:064x}",
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
        at = NOW + number
        request = Request(request_id(number), new, state, 0, at, at + LIFE_S)
        self.found.append(request)
        self.mark += 1
        return request

    @property
    def open_states(self) -> Mapping[State, int]:
        counts = Counter(request.state for request in self.found if request.state.open)
        return {state: counts[state] for state in State if state.open}

    @property
    def oldest_pending(self) -> float | None:
        return min((each.created_at for each in self.found if each.state is State.PENDING), default=None)

    async def get(self, request_id: str) -> Request:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailableError("the database cannot be written")
        for request in self.found:
            if request.id == request_id:
                return request
        raise NotFoundError(f"there is no request {request_id!a}")

    async def find_all(
        self,
        *,
        states: Collection[State],
        agent_id: str | None,
        cluster_id: str | None,
        offset: int,
        limit: int,
    ) -> Sequence[Request]:
        await trio.lowlevel.checkpoint()
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
        return self._put(
            request,
            state=state,
            decided_by=by,
            answer=answer,
            decided_at=NOW,
            valid_until=NOW + request.new.valid_for_s if approve else None,
        )

    async def revoke(self, request_id: str, *, by: str) -> Request:
        request = await self.get(request_id)
        if request.state not in {State.PENDING, State.APPROVED, State.USING, State.USED}:
            raise refusal_of(request, None)
        return self._put(request, state=State.REVOKED, decided_by=by, ended_at=NOW)

    def revoke_in_memory(self, request_id: str, *, by: str, settled: Callable[[], None]) -> None:
        self.in_memory.append((request_id, by, settled))

    def _put(self, request: Request, **changed: Any) -> Request:
        put = attrs.evolve(request, **changed)
        self.found[self.found.index(request)] = put
        self.mark += 1
        return put
