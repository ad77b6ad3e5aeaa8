"""What the context of forwarded calls names, judged by this hub's own snapshot."""

from __future__ import annotations

import attrs

from auth.principal import Principal
from proxy.hub.authorize.access import why_inactive
from proxy.hub.hop.call_context import CallContext
from proxy.hub.relays.registry import LiveRelay, Registry
from proxy.hub.store.entities import Snapshot
from proxy.hub.store.versions.version import Version
from proxy.message.failure import Failure, Processed, StreamCode


@attrs.frozen(eq=False)
class Reach:
    """Where a forwarded call goes, and as whom."""

    relay: LiveRelay
    principal: Principal
    """The identity in the relay's token."""


@attrs.define(eq=False)
class Target:
    """An agent and a relay's session. It is the note of the link's context."""

    stated: CallContext
    _judged: Version | None = None
    """The version by which it was judged last. A reference to its snapshot would keep that in memory."""
    _verdict: Reach | Failure | None = None

    def judge(self, snapshot: Snapshot, registry: Registry) -> Reach | Failure:
        """Return where its calls go by a snapshot, or why they are refused; once for each version."""
        verdict = self._verdict
        if verdict is None or self._judged is not snapshot.version:
            self._judged = snapshot.version
            self._verdict = verdict = self._judge(snapshot, registry)
        return verdict

    def awaits(self, version: Version) -> bool:
        """Whether a version is older than the one that the first hub has decided by."""
        return self._judged is not version and version.number < self.stated.version

    def _judge(self, snapshot: Snapshot, registry: Registry) -> Reach | Failure:
        stated, claimed = self.stated, self.stated.principal
        agent = snapshot.agents_by_id.get(claimed.agent_id)
        cluster = snapshot.clusters_by_id.get(stated.cluster)
        if agent is None or cluster is None:
            what = "agent" if agent is None else "cluster"
            return _revoked(f"the {what} of this call was removed")
        own = agent.principal
        if own is None or not agent.active:
            return _revoked(why_inactive(agent))
        if (own.name, own.org) != (claimed.name, claimed.org):
            return _revoked(f"{claimed.user} of {claimed.org} is another agent here")
        if lost := [group for group in claimed.groups if group not in own.groups]:
            return _revoked(f"{own.user} is no longer in {', '.join(lost)}")
        if not snapshot.may_reach(agent, cluster):
            return _revoked(f'cluster "{cluster.name}" is not granted to a team of {own.user} any more')
        relay = registry.find_session(cluster.id, stated.session)
        if relay is None:
            return Failure(StreamCode.REFUSED, Processed.NO, "the relay has left this hub")
        # The agent may have got another team since: its call goes on with those that it began with.
        return Reach(relay, own if own == claimed else claimed)


def _revoked(reason: str) -> Failure:
    return Failure(StreamCode.REVOKED, Processed.NO, reason)
