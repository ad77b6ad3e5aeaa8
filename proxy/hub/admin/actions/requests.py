"""Actions on requests for approval: an agent's calls that wait for a person."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Protocol

import attrs
import msgspec

from auth.policy.ask import ANY_PERSON, NOT_OWNER, OWNER, Ask
from proxy.hub.admin.verbs import shapes
from proxy.hub.admin.verbs.answers import Done, Payload, known, time_text
from proxy.hub.admin.verbs.call import Call
from proxy.hub.admin.verbs.listing import PAGE_ROWS_MAX
from proxy.hub.admin.verbs.verb import verb
from proxy.hub.approvals.kubectl import body_is, call_of, kubectl_of
from proxy.hub.approvals.request import Request, State
from proxy.hub.store.directory import Changes
from proxy.hub.store.engines.errors import ConflictError, ForbiddenError, InvalidError
from proxy.hub.store.entities import Snapshot
from proxy.hub.store.names import shown
from proxy.hub.store.roles import Role

# A few screens of a terminal.
PAGE_ROWS = 100
# Open requests are few, 20 an agent. For requests that ended months ago, search the trail.
OFFSET_MAX = 100_000
# The agent reads it in an answer of a bounded size.
BECAUSE_CHARACTERS_MAX = 200
# A digest has 64 characters.
SHOWN_CHARACTERS_MAX = 128
_APPROVERS: Mapping[str, str] = {
    OWNER: "the agent's owner",
    NOT_OWNER: "any approver but the agent's owner",
    ANY_PERSON: "any approver",
}


class RequestsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    state: str = ""
    """Only requests in this state, or in one of several, with commas between them."""
    agent: str | None = None
    cluster: str | None = None
    offset: Annotated[int, msgspec.Meta(ge=0, le=OFFSET_MAX)] = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=PAGE_ROWS_MAX)] = PAGE_ROWS


class Approval(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    shown: Annotated[str, msgspec.Meta(max_length=SHOWN_CHARACTERS_MAX)]
    """The field `shown` of the request as the person has read it."""


class Denial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    because: str
    """The agent reads it."""


class Requests(Protocol):
    """The part of the requests that the API uses (proxy.hub.approvals.requests.service.Requests)."""

    @property
    def mark(self) -> int: ...
    @property
    def oldest_pending(self) -> float | None: ...
    @property
    def open_states(self) -> Mapping[State, int]: ...
    async def get(self, request_id: str) -> Request: ...
    async def find_all(
        self,
        *,
        states: Collection[State],
        agent_id: str | None,
        cluster_id: str | None,
        offset: int,
        limit: int,
    ) -> Sequence[Request]: ...
    async def decide(
        self, request_id: str, *, approve: bool, by: str, answer: str, shown: str
    ) -> Request: ...
    async def revoke(self, request_id: str, *, by: str) -> Request: ...
    def revoke_in_memory(self, request_id: str, *, by: str, settled: Callable[[], None]) -> None: ...


@attrs.frozen
class RequestActions:
    """The requests for approval."""

    directory: Changes
    requests: Requests
    settled: Callable[[], None] | None = None
    """Set for one revocation that the store cannot take."""

    @property
    def _now(self) -> Snapshot:
        return self.directory.current

    @verb(
        "GET",
        "/v1/requests",
        "list",
        "requests",
        Role.APPROVER,
        query=RequestsQuery,
        with_call=True,
        answer=shapes.Requests,
    )
    async def list_all(self, query: RequestsQuery, call: Call) -> Done:
        """List the requests for approval, the newest first, and count the open ones by state."""
        agent, cluster = query.agent, query.cluster
        found = await self.requests.find_all(
            states=_states(query.state),
            agent_id=None if agent is None else known(self._now.agents_by_name, "agent", agent).id,
            cluster_id=None if cluster is None else known(self._now.clusters_by_name, "cluster", cluster).id,
            offset=query.offset,
            limit=query.limit + 1,
        )
        rows = [self._row(request, call) for request in found[: query.limit]]
        counts = {str(state): count for state, count in self.requests.open_states.items()}
        return Done({"requests": rows, "more": len(found) > query.limit, "open": counts})

    @verb(
        "GET",
        "/v1/requests/{name}",
        "get",
        "requests",
        Role.APPROVER,
        with_call=True,
        answer=shapes.RequestDetail,
    )
    async def get(self, request_id: str, call: Call) -> Done:
        """Show a request: what the call would do, and what is not seen of it."""
        return Done(self._detail(await self.requests.get(request_id), call))

    @verb(
        "POST",
        "/v1/requests/{name}/approve",
        "approve",
        "requests",
        Role.APPROVER,
        by_person=True,
        body=Approval,
        with_call=True,
        answer=shapes.RequestDetail,
    )
    async def approve(self, request_id: str, approval: Approval, call: Call) -> Done:
        """Approve a request as it was shown; the rule names who may."""
        request = await self.requests.get(request_id)
        if request.state is State.PENDING and (why := self._may_not(request, call)):
            raise ConflictError(why) if request.new.view.too_large else ForbiddenError(why)
        approved = await self.requests.decide(
            request_id, approve=True, by=call.person, answer="", shown=approval.shown
        )
        return Done(self._detail(approved, call), note=self._note(approved, call))

    @verb(
        "POST",
        "/v1/requests/{name}/deny",
        "deny",
        "requests",
        Role.APPROVER,
        body=Denial,
        with_call=True,
        answer=shapes.RequestDetail,
        revokes=True,
    )
    async def deny(self, request_id: str, denial: Denial, call: Call) -> Done:
        """Deny a request. Each approver may, and an admin. The agent gets the reason."""
        because = denial.because.strip()
        if not 1 <= len(because) <= BECAUSE_CHARACTERS_MAX or not because.isprintable():
            raise InvalidError(f"`because` is 1 to {BECAUSE_CHARACTERS_MAX} printable characters")
        if self.settled is not None:
            return self._revoke_in_memory(request_id, call, self.settled)
        denied = await self.requests.decide(
            request_id, approve=False, by=_decider(call), answer=because, shown=""
        )
        return Done(self._detail(denied, call), note=f"{self._note(denied, call)} because={because}")

    @verb(
        "POST",
        "/v1/requests/{name}/revoke",
        "revoke",
        "requests",
        Role.APPROVER,
        with_call=True,
        answer=shapes.RequestDetail,
        revokes=True,
    )
    async def revoke(self, request_id: str, call: Call) -> Done:
        """Revoke an approval, and end a call that runs under it. Each approver may, and an admin."""
        if self.settled is not None:
            return self._revoke_in_memory(request_id, call, self.settled)
        revoked = await self.requests.revoke(request_id, by=_decider(call))
        return Done(self._detail(revoked, call), note=self._note(revoked, call))

    def _revoke_in_memory(self, request_id: str, call: Call, settled: Callable[[], None]) -> Done:
        """Revoke a request that cannot be read, nor used, while the store is away."""
        self.requests.revoke_in_memory(request_id, by=_decider(call), settled=settled)
        return Done({"id": request_id, "state": str(State.REVOKED)}, note=f"request={request_id}")

    def _row(self, request: Request, call: Call) -> Payload:
        new = request.new
        view = new.view
        may_not = self._may_not(request, call)
        return {
            "id": request.id,
            "state": str(request.state),
            "agent": self._agent(request)[0],
            "owner": self._agent(request)[1],
            "cluster": self._cluster(request),
            "what": new.what,
            "reason": new.reason,
            "claimed_reason": view.claimed_reason,
            "rule": f"{new.policy}/{new.rule}",
            "approvers": list(new.approvers),
            "interactive": new.interactive,
            "summary": view.summary,
            "flags": list(view.flags),
            "too_large": view.too_large,
            "shown": "" if request.view_deleted else new.shown,
            "created_at": time_text(request.created_at),
            "expires_at": time_text(request.expires_at),
            "decided_by": request.decided_by,
            "answer": request.answer,
            "decided_at": time_text(request.decided_at),
            "valid_until": time_text(request.valid_until),
            "ended_at": time_text(request.ended_at),
            "may_approve": not may_not,
            "may_not": may_not,
        }

    def _detail(self, request: Request, call: Call) -> Payload:
        view = request.new.view
        return {
            **self._row(request, call),
            "bundle": request.new.bundle,
            "valid_for_s": request.new.valid_for_s,
            "uses_returned": request.uses_returned,
            "changes": [attrs.asdict(change) for change in view.changes],
            "left_out": list(view.left_out),
            "notes": list(view.notes),
            "body": view.body,
            "body_is": body_is(request.new),
            "call": call_of(request.new),
            "kubectl": kubectl_of(request.new, self._cluster(request)),
            "because": request.because,
            "view_deleted": request.view_deleted,
        }

    def _cluster(self, request: Request) -> str:
        cluster = self._now.clusters_by_id.get(request.new.cluster_id)
        return request.new.cluster_id if cluster is None else cluster.name

    def _agent(self, request: Request) -> tuple[str, str]:
        """Return the agent's name and owner."""
        agent = self._now.agents_by_id.get(request.new.agent_id)
        return (request.new.agent_id, "") if agent is None else (agent.name, agent.owner)

    def _may_not(self, request: Request, call: Call) -> str:
        """Return why the caller may not approve the request now; "" if they may."""
        if request.state is not State.PENDING:
            return f"the request is {request.state}"
        if request.new.view.too_large:
            return "the difference is too large to be shown, so it cannot be approved: ask for smaller steps"
        allowed = who_may_approve(request.new.approvers)
        if not call.person:
            return (
                f"approving takes a token of the role approver, and this rule lets {allowed} approve: "
                "hawse admin token add NAME --role approver --person PERSON"
            )
        owner = self._agent(request)[1]
        if not Ask(request.new.approvers).may_approve(call.person, owner):
            return f"{call.person} is not among the approvers: the rule lets {allowed} approve"
        return ""

    def _note(self, request: Request, call: Call) -> str:
        person = f" person={call.person}" if call.person else ""
        return f"request={request.id} agent={self._agent(request)[0]} state={request.state}{person}"


def who_may_approve(approvers: Sequence[str]) -> str:
    """Return the approvers of a rule in words."""
    return " or ".join(_APPROVERS.get(each, each) for each in approvers)


def _decider(call: Call) -> str:
    """Return who denies or revokes, as the request names them."""
    return call.person or f"the admin token {call.operator}"


def _states(text: str) -> frozenset[State]:
    try:
        return frozenset(State(each.strip()) for each in text.split(",") if each.strip())
    except ValueError:
        raise InvalidError(f"{shown(text)} is no state: choose {', '.join(State)}") from None
