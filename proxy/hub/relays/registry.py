"""Which relays are here: cluster → live sessions by relay instance.

Looking up a session is a dictionary access and never waits: a cluster whose relays are all away is
offline at once, and the caller answers 503 without a round trip. Several instances of one cluster's
relay stand side by side; a new session of the same instance supersedes its old one, because a relay
that dials again knows better than a half-open socket that it left behind. Not if one of the two has said that
it goes away: then the relay has dialled the new one for that reason, and the old one goes on to its end.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

import attrs

from audit.record import Relay as RecordedRelay
from proxy.hub.relays.contexts import TokenContexts
from proxy.hub.relays.relay_wait import Arrivals
from proxy.kubernetes.statement import Statement
from tunnel import CloseCode, Session, SessionClosed

# As many as limits.relays_per_cluster allows at most, and those that follow them in a rollout; more is a
# misconfiguration that would only cost memory.
INSTANCES_PER_CLUSTER_MAX = 16
# Sessions of one instance that end beside its current one: a relay that is told to go dials once each time.
LEAVING_PER_INSTANCE_MAX = 8
# The same of a cluster, whatever its relays call themselves: as many of each of four in a rollout. A relay
# that says GOAWAY in each session could else hold as many of the hub's connections as it likes.
LEAVING_PER_CLUSTER_MAX = 32


class TooManyInstancesError(Exception):
    """A cluster's relays exceed INSTANCES_PER_CLUSTER_MAX."""


@attrs.define(eq=False)
class LiveRelay:
    """A relay instance with its session, for as long as the session lives."""

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
    """Of the relay key that it proved itself with."""
    statement: Statement = attrs.Factory(Statement)
    """What it has stated last."""
    recorded: RecordedRelay = attrs.field(init=False)
    """As its calls name it in the trail."""

    @recorded.default
    def _recorded(self) -> RecordedRelay:
        return RecordedRelay(self.instance, self.version)

    def announce_keys(self) -> None:
        """Tell the relay of keys that the hub signs with since it was last told, and of the hub's time."""
        with suppress(SessionClosed):
            self.contexts.announce(time.time())

    @property
    def usable(self) -> bool:
        """Whether a new stream may be opened."""
        return self.session.may_open

    @property
    def load(self) -> tuple[bool, int]:
        """What a new stream would meet; the less the better."""
        return self.doubtful, self.session.stream_count

    @property
    def doubtful(self) -> bool:
        """Whether a request is better off elsewhere: nothing comes from it, or from its API server."""
        return self.session.away or self.statement.api_server is False

    @property
    def leaving(self) -> bool:
        """Whether it is still here only to bring to an end what is open."""
        return self.session.draining and not self.session.closed

    @property
    def stays(self) -> bool:
        """Whether it neither goes away nor has been ended."""
        return not (self.session.closed or self.session.draining)

    def end_with(self, reason: str, code: int = CloseCode.SUPERSEDED) -> None:
        """End the session now, whatever the task that owns it waits for; the relay hears the first reason."""
        self.session.end(code, reason)


class Registry:
    """The live sessions, by cluster id and relay instance."""

    def __init__(self) -> None:
        self._clusters: dict[str, dict[str, LiveRelay]] = {}
        self.arrivals = Arrivals()
        self._leaving: list[LiveRelay] = []
        """Those whose place another one has taken, and that go on to their end."""

    def session(self, cluster_id: str) -> LiveRelay | None:
        """Pick a usable relay of the cluster, the least loaded one; None when it is offline.

        One that has just lost its connection, or is in doubt, is the last choice: a request for it waits
        until it is back. So is one whose API server does not answer: all that it is asked fails at once, and
        it would be the least loaded.
        """
        best: LiveRelay | None = None
        relays = self._clusters.get(cluster_id)
        if relays is None:
            return None
        for relay in relays.values():
            if relay.session.may_open and (best is None or relay.load < best.load):
                best = relay
        return best

    def sibling(self, cluster_id: str, tried: Collection[LiveRelay]) -> LiveRelay | None:
        """Pick a usable relay of the cluster that was not tried yet; None when there is none."""
        found = [
            relay
            for relay in self._clusters.get(cluster_id, {}).values()
            if relay.usable and relay not in tried
        ]
        return min(found, key=lambda relay: relay.load, default=None)

    def substitute(self, doubted: LiveRelay) -> LiveRelay | None:
        """Pick another relay of the cluster that can answer, and is not in doubt itself; None when there is
        none."""
        sibling = self.sibling(doubted.cluster_id, [doubted])
        return None if sibling is None or sibling.doubtful else sibling

    def find(self, cluster_id: str, instance: str, session_id: str) -> LiveRelay | None:
        """The relay of this very session, also when another one has taken its place meanwhile."""
        current = self._clusters.get(cluster_id, {}).get(instance)
        for relay in (current, *self._leaving):
            if (
                relay is not None
                and (relay.cluster_id, relay.instance) == (cluster_id, instance)
                and relay.session.session_id == session_id
            ):
                return relay
        return None

    def is_away(self, cluster_id: str) -> bool:
        """Whether a relay of the cluster has lost its connection, and may come back."""
        return any(relay.session.detached for relay in self._clusters.get(cluster_id, {}).values())

    def relays(self) -> Iterator[LiveRelay]:
        """Every live relay, for `relay list`, metrics and drain."""
        for instances in list(self._clusters.values()):
            yield from list(instances.values())
        yield from list(self._leaving)

    def announce_keys(self) -> None:
        """Tell every relay that is here of the hub's new key."""
        for relay in self.relays():
            relay.announce_keys()

    @contextmanager
    def registered(self, relay: LiveRelay) -> Iterator[LiveRelay | None]:
        """Keep the relay in the registry for the block; yields what it superseded, for the caller to end.

        Raises TooManyInstancesError. On leaving, whatever took this relay's place stays.
        """
        instances = self._clusters.setdefault(relay.cluster_id, {})
        replaced = instances.get(relay.instance)
        if replaced is None and len(instances) >= INSTANCES_PER_CLUSTER_MAX:
            raise TooManyInstancesError(
                f"cluster {relay.cluster_name} has {len(instances)} live relays, the most it may have"
            )
        instances[relay.instance] = relay
        superseded = self._displace(replaced) if replaced is not None else None
        self.arrivals.arrived(relay.cluster_id)
        try:
            yield superseded
        finally:
            if relay in self._leaving:
                self._leaving.remove(relay)
            if instances.get(relay.instance) is relay:
                del instances[relay.instance]
            if not instances and self._clusters.get(relay.cluster_id) is instances:
                del self._clusters[relay.cluster_id]

    def _displace(self, replaced: LiveRelay) -> LiveRelay | None:
        """Let the one that was replaced go on if it is leaving; returns it if it is to be ended instead."""
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
