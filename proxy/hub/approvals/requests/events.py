"""The trail's events about requests."""

from __future__ import annotations

from audit.events import new_event
from audit.record import Actor, ActorType, Approval, Cluster, Decision, Event, Kind
from proxy.hub.approvals.request import State
from proxy.hub.approvals.requests.moves import Moved
from proxy.hub.store.entities import Snapshot

_ENDED = {
    State.EXPIRED: "expired",
    State.CANCELLED: "cancelled",
    State.STALE: "stale",
    State.REVOKED: "revoked",
}


def event_of(moved: Moved, snapshot: Snapshot) -> Event | None:
    """Return a transition's event; None for the end of a use, which the call's closing event records."""
    request, new = moved.request, moved.request.new
    match request.state:
        case State.PENDING:
            kind, effect, note = Kind.REQUEST_OPENED, "ask", f"asks to {new.what}"
        case State.APPROVED if moved.decides:
            kind, effect, note = Kind.REQUEST_DECIDED, "allow", f"approved by {moved.by}: {new.what}"
        case State.DENIED:
            kind, effect, note = Kind.REQUEST_DECIDED, "deny", f"denied by {moved.by}: {request.answer}"
        case State.USING | State.APPROVED | State.USED:
            if not moved.note:
                return None
            kind, effect, note = Kind.REQUEST_USED, "", moved.note
        case State.EXPIRED | State.CANCELLED | State.STALE | State.REVOKED:
            why = f": {request.because}" if request.because else ""
            kind, effect, note = Kind.REQUEST_ENDED, "", f"{_ENDED[request.state]}{why}"
    agent, cluster = snapshot.agents_by_id.get(new.agent_id), snapshot.clusters_by_id.get(new.cluster_id)
    return new_event(
        kind,
        Actor(
            ActorType.AGENT,
            "" if agent is None else agent.name,
            new.agent_id,
            "" if agent is None else agent.owner,
            () if agent is None else agent.teams,
        ),
        org=snapshot.org,
        cluster=Cluster(new.cluster_id, "" if cluster is None else cluster.name),
        decision=Decision(effect, new.rule, new.policy, new.bundle) if effect else None,
        approval=Approval(request.id, new.shown, moved.by),
        serves=moved.serves,
        note=f"request {request.id} {note}",
    )
