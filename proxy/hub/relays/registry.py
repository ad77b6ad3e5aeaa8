"""The relays that calls can be sent to: cluster → sessions by relay instance, and sessions at other hubs.

A lookup is a dictionary access and never waits. If a cluster has no relay, it is offline at once, and the
call is answered 503. A cluster may have several instances. A new session of an instance supersedes the old
one, since a relay that dials again knows that its old socket is dead. The exception is a session that is
going away: the relay dialled the new one for that reason, and the old one stays until its streams end.

Where several hubs run, the sessions that other hubs have are here too. They are only for calls that begin at
this hub. All else (the limits of a cluster, the drain, forwarded calls) is about this hub's own sessions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress

import attrs

from audit.record import Relay as RecordedRelay
from proxy.hub.relays.contexts import TokenContexts
from proxy.hub.relays.reachable import ReachableRelay
from proxy.hub.relays.relay_wait import RelayWait
from proxy.kubernetes.statement import Statement
from tunnel import CloseCode, Session, SessionClosed

# The most that limits.relays_per_cluster allows, and their successors in a rollout. More is a
# misconfiguration that would only cost memory.
INSTANCES_PER_CLUSTER_MAX = 16
# Sessions of one instance that drain beside its current one. A relay dials once for each GOAWAY.
LEAVING_PER_INSTANCE_MAX = 8
# Draining sessions of a cluster, over all instance names: four instances with LEAVING_PER_INSTANCE_MAX each.
# Without this bound, a relay that sends GOAWAY in each session could hold any number of the hub's
# connections.
LEAVING_PER_CLUSTER_MAX = 32


class TooManyInstancesError(Exception):
    """A cluster's relays exceed INSTANCES_PER_CLUSTER_MAX."""


@attrs.define(eq=False)
class LiveRelay:
    """A relay instance and its session, while the session lives."""

    cluster_id: str
    cluster_name: str
    instance: str
    boot: str
    version: str
    address: str
    connected_at: float
    """Epoch seconds."""
    session: Session
    contexts: TokenContexts
    kid: str = ""
    """The id of the relay key it authenticated with."""
    statement: Statement = attrs.Factory(Statement)
    """Its last statement."""
    recorded: RecordedRelay = attrs.field(init=False)
    """As the audit events of its calls name it."""

    @recorded.default
    def _recorded(self) -> RecordedRelay:
        return RecordedRelay(self.instance, self.version)

    def announce_keys(self) -> None:
        """Send the relay the hub's new keys and time, as far as it does not have them."""
        with suppress(SessionClosed):
            self.contexts.announce(time.time())

    @property
    def usable(self) -> bool:
        """Whether a new stream may be opened."""
        return self.session.may_open

    @property
    def load(self) -> tuple[bool, int]:
        """The load that a new stream would meet; lower is better."""
        return self.doubtful, self.session.stream_count

    @property
    def doubtful(self) -> bool:
        """Whether another relay is preferable: this one is silent, or its API server is."""
        return self.session.away or self.statement.api_server is False

    @property
    def rank(self) -> tuple[bool, bool, bool, int]:
        """See ReachableRelay."""
        return self.doubtful, self.session.draining, False, self.session.stream_count

    @property
    def leaving(self) -> bool:
        """Whether it drains: it finishes open streams and accepts no new ones."""
        return self.session.draining and not self.session.closed

    @property
    def stays(self) -> bool:
        """Whether it neither drains nor has ended."""
        return not (self.session.closed or self.session.draining)

    def end_with(self, reason: str, code: int = CloseCode.SUPERSEDED) -> None:
        """End the session now, and any wait of its task; the relay receives the first reason."""
        self.session.end(code, reason)


class Registry:
    """This hub's live sessions by cluster id and relay instance, and others' by cluster id and session."""

    def __init__(self) -> None:
        self._clusters: dict[str, dict[str, LiveRelay]] = {}
        self._elsewhere: dict[str, dict[str, ReachableRelay]] = {}
        self.relay_wait = RelayWait()
        self._leaving: list[LiveRelay] = []
        """Draining sessions that a newer session of the instance has replaced."""
        self._watchers: list[Callable[[], None]] = []

    def on_change(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` when a relay has come or gone; it must neither wait nor raise."""
        self._watchers.append(watcher)

    def session(self, cluster_id: str) -> ReachableRelay | None:
        """Return the cluster's usable relay with the least load; None when the cluster is offline.

        A relay that is silent, or has just lost its connection, is the last choice: a request would wait
        until it is back. So is one whose API server does not answer. All its requests fail at once, so it
        would be the least loaded one. A relay of this hub comes before those of other hubs, unless it is the
        last choice or drains: a forwarded call costs CPU at both hubs.
        """
        best: LiveRelay | None = None
        relays = self._clusters.get(cluster_id)
        if relays is not None:
            for relay in relays.values():
                if relay.session.may_open and (best is None or relay.load < best.load):
                    best = relay
        if cluster_id in self._elsewhere and (best is None or best.doubtful or best.session.draining):
            return self.sibling(cluster_id, ())
        return best

    def sibling(self, cluster_id: str, tried: Collection[ReachableRelay]) -> ReachableRelay | None:
        """Return the best usable relay of the cluster that was not tried yet, or None."""
        found = [relay for relay in self._reachable(cluster_id) if relay.usable and relay not in tried]
        return min(found, key=lambda relay: relay.rank, default=None)

    def _reachable(self, cluster_id: str) -> Iterator[ReachableRelay]:
        yield from self._clusters.get(cluster_id, {}).values()
        yield from self._elsewhere.get(cluster_id, {}).values()

    def substitute(self, doubted: ReachableRelay) -> ReachableRelay | None:
        """Return another relay of the cluster that is usable and not doubtful, or None."""
        sibling = self.sibling(doubted.cluster_id, [doubted])
        return None if sibling is None or sibling.doubtful else sibling

    def find(self, cluster_id: str, instance: str, session_id: str) -> LiveRelay | None:
        """Return the relay with this session, even if a newer session has replaced it."""
        current = self._clusters.get(cluster_id, {}).get(instance)
        for relay in (current, *self._leaving):
            if (
                relay is not None
                and (relay.cluster_id, relay.instance) == (cluster_id, instance)
                and relay.session.session_id == session_id
            ):
                return relay
        return None

    def find_session(self, cluster_id: str, session_id: str) -> LiveRelay | None:
        """Return the relay of this hub with this session, even if a newer session has replaced it."""
        for relay in (*self._clusters.get(cluster_id, {}).values(), *self._leaving):
            if relay.cluster_id == cluster_id and relay.session.session_id == session_id:
                return relay
        return None

    def is_away(self, cluster_id: str) -> bool:
        """Whether a relay of the cluster, or the link to its hub, has lost its connection, and may resume."""
        return any(relay.session.detached for relay in self._reachable(cluster_id))

    def relays(self) -> Iterator[LiveRelay]:
        """Every live relay of this hub, for `relay list`, metrics and drain."""
        for instances in list(self._clusters.values()):
            yield from list(instances.values())
        yield from list(self._leaving)

    def elsewhere(self) -> Iterator[ReachableRelay]:
        """Every session at another hub that this one has a route to."""
        for sessions in list(self._elsewhere.values()):
            yield from list(sessions.values())

    def announce_keys(self) -> None:
        """Announce the hub's new key to every relay."""
        for relay in self.relays():
            relay.announce_keys()

    def add_elsewhere(self, session_id: str, relay: ReachableRelay) -> None:
        """Add a session at another hub. A newer route to the same session replaces the older one."""
        self._elsewhere.setdefault(relay.cluster_id, {})[session_id] = relay
        self.relay_wait.arrived(relay.cluster_id)

    def remove_elsewhere(self, session_id: str, relay: ReachableRelay) -> None:
        """Remove a session at another hub, unless a newer route has replaced this one."""
        sessions = self._elsewhere.get(relay.cluster_id, {})
        if sessions.get(session_id) is not relay:
            return
        del sessions[session_id]
        if not sessions:
            del self._elsewhere[relay.cluster_id]

    @contextmanager
    def registered(self, relay: LiveRelay) -> Iterator[LiveRelay | None]:
        """Register the relay for the block; yields the superseded relay, which the caller ends.

        Raises TooManyInstancesError. On exit, a relay that has replaced this one stays.
        """
        instances = self._clusters.setdefault(relay.cluster_id, {})
        replaced = instances.get(relay.instance)
        if replaced is None and len(instances) >= INSTANCES_PER_CLUSTER_MAX:
            raise TooManyInstancesError(
                f"cluster {relay.cluster_name} has {len(instances)} live relays, the most it may have"
            )
        instances[relay.instance] = relay
        superseded = self._displace(replaced) if replaced is not None else None
        self.relay_wait.arrived(relay.cluster_id)
        self._changed()
        try:
            yield superseded
        finally:
            if relay in self._leaving:
                self._leaving.remove(relay)
            if instances.get(relay.instance) is relay:
                del instances[relay.instance]
            if not instances and self._clusters.get(relay.cluster_id) is instances:
                del self._clusters[relay.cluster_id]
            self._changed()

    def _changed(self) -> None:
        for watcher in self._watchers:
            watcher()

    def _displace(self, replaced: LiveRelay) -> LiveRelay | None:
        """Keep the replaced relay if it drains; otherwise return it for the caller to end."""
        if not replaced.leaving:
            return replaced
        self._leaving.append(replaced)
        of_cluster = [
            relay
            for relay in self._leaving
            if relay.cluster_id == replaced.cluster_id and not relay.session.closed
        ]
        of_instance = [relay for relay in of_cluster if relay.instance == replaced.instance]
        for whose, leaving, limit in (
            (f"relay {replaced.instance}", of_instance, LEAVING_PER_INSTANCE_MAX),
            (f"cluster {replaced.cluster_name}", of_cluster, LEAVING_PER_CLUSTER_MAX),
        ):
            if len(leaving) > limit:
                leaving[0].end_with(
                    f"{whose} has {len(leaving)} sessions that go away, the limit is {limit}: "
                    "the oldest is ended",
                    CloseCode.LIMITS,
                )
        return None
