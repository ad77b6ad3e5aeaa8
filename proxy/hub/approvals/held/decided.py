"""Decides a request again, by the current policies, teams and owners."""

from __future__ import annotations

from auth.policy.ask import Ask
from auth.policy.match import Decision
from auth.requestinfo import RequestInfo
from proxy.hub.approvals.request import Request, State
from proxy.hub.store.entities import Agent, Snapshot


def no_longer_asked(snapshot: Snapshot, request: Request, info: RequestInfo | None, now: float) -> str:
    """Return why a request does not count any more; "" while its rule still asks its approvers.

    `info` is the call of the request; without it, its rule is not looked at, because the use of the request
    decides by it again. `now` is in epoch seconds.
    """
    new = request.new
    agent = snapshot.agents_by_id.get(new.agent_id)
    if agent is None or not agent.active:
        return "its agent is not active any more"
    cluster = snapshot.clusters_by_id.get(new.cluster_id)
    if cluster is None or not snapshot.may_reach(agent, cluster):
        return "its cluster is not granted to the agent any more"
    if info is None:
        return ""
    decision = snapshot.bundle.decide(agent, cluster, info, now)
    if decision.ask is None:
        return f"the policies {decision.effect} the call since bundle {snapshot.bundle.id}"
    return _by_others(request, decision, decision.ask, agent)


def _by_others(request: Request, decision: Decision, ask: Ask, agent: Agent) -> str:
    """Return how the current ask differs from the ask that opened the request; "" if it does not."""
    new = request.new
    rule = f"{decision.policy}/{decision.rule}"
    if rule != f"{new.policy}/{new.rule}":
        return f"{rule} asks for it now"
    if ask.approvers != new.approvers:
        return f"{rule} has other approvers now"
    if new.interactive and not ask.interactive:
        return f"{rule} does not allow interactive calls any more"
    if request.state is State.APPROVED and not ask.may_approve(request.decided_by, agent.owner):
        return f"{request.decided_by} may not approve it any more"
    return ""
