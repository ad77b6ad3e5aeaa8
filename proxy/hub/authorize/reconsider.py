"""Authorizes an open call again, after a change of the directory or the policies."""

from __future__ import annotations

from auth.jws import TokenError
from auth.principal import Principal
from proxy.hub.authorize.access import Denied, decide
from proxy.hub.authorize.admission import Call
from proxy.hub.authorize.decisions import Verdict, judge
from proxy.hub.store.entities import Snapshot


def reconsider(current: Snapshot, call: Call, now: float) -> Verdict | str:
    """Return the verdict of the current policies, or why the call has lost its agent, cluster or identity.

    `now` is in epoch seconds.
    """
    try:
        decided = decide(current, call.claims, call.cluster.name)
    except TokenError as error:
        return error.reason
    if isinstance(decided, Denied):
        return decided.message
    agent, cluster = decided
    if cluster.id != call.cluster.id:
        return f'the cluster "{cluster.name}" of this call was removed'
    lost = _lost_groups(call.agent.principal, agent.principal)
    if lost:
        return f"agent:{agent.name} is no longer in {', '.join(lost)}"
    return judge(current.bundle, agent, cluster, call.info, now)


def _lost_groups(before: Principal | None, now: Principal | None) -> list[str]:
    """Return the groups of an open call that its agent no longer has."""
    if before is now or before is None:
        return []
    kept = now.groups if now is not None else ()
    return [group for group in before.groups if group not in kept]
