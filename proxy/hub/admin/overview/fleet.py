"""The clusters of the overview, from the relays that are connected and those that were."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from proxy.hub.admin.overview.shapes import ClusterRow, HubFacts, State
from proxy.hub.admin.verbs.answers import time_text
from proxy.hub.relays.operations import RelayInfo
from proxy.hub.store.entities import Cluster, RelayInstance

# A relay that is gone for longer was taken away for good.
EXPECTED_FOR_S = 24 * 3600.0
# In a rollout the new relay connects before the old one leaves: a pod has 10 minutes to become ready.
SUCCEEDS_WITHIN_S = 600.0


def cluster_rows(
    clusters: Iterable[Cluster],
    relays: Iterable[RelayInfo],
    instances: Iterable[RelayInstance],
    facts: Sequence[HubFacts],
    now: float,
) -> list[ClusterRow]:
    """Return a row for each cluster, by name."""
    connected: dict[str, list[RelayInfo]] = defaultdict(list)
    for relay in relays:
        connected[relay.cluster].append(relay)
    known: dict[str, list[RelayInstance]] = defaultdict(list)
    for instance in instances:
        known[instance.cluster_id].append(instance)
    return [
        _row(cluster, connected[cluster.name], known[cluster.id], facts, now)
        for cluster in sorted(clusters, key=lambda cluster: cluster.name)
    ]


def _row(
    cluster: Cluster,
    connected: Sequence[RelayInfo],
    instances: Sequence[RelayInstance],
    facts: Sequence[HubFacts],
    now: float,
) -> ClusterRow:
    staying = [relay for relay in connected if not relay.leaving]
    # A draining tunnel beside the new one of the same relay is no second relay.
    up = len({relay.instance for relay in staying})
    missing = missing_relays(staying, instances, now)
    round_trips = [each.rtt_ms[cluster.name] for each in facts if cluster.name in each.rtt_ms]
    heard = max((instance.last_seen_at for instance in instances), default=None)
    return ClusterRow(
        name=cluster.name,
        mode=str(cluster.mode),
        state=_state(up, missing, bool(connected or instances), _api_down(cluster, staying, facts)),
        relays=up,
        expected=up + missing,
        last_heard_at=None if up else time_text(heard),
        rtt_ms=min(round_trips, default=None),
        calls=sum(each.calls.get(cluster.name, 0) for each in facts),
        versions=sorted({bare(relay.version) for relay in staying}),
    )


def _state(up: int, missing: int, was_there: bool, api_down: bool) -> State:
    if not up:
        return "offline" if was_there else "new"
    return "degraded" if missing or api_down else "online"


def _api_down(cluster: Cluster, staying: Sequence[RelayInfo], facts: Sequence[HubFacts]) -> bool:
    """Whether no relay reaches the API server, as far as the hubs say."""
    saying = [each for each in facts if cluster.name in each.rtt_ms or cluster.name in each.api_down]
    return bool(staying and saying) and all(cluster.name in each.api_down for each in saying)


def missing_relays(connected: Collection[RelayInfo], instances: Iterable[RelayInstance], now: float) -> int:
    """Return how many relays were lost within EXPECTED_FOR_S and have no successor.

    A pod has another name after a rollout, so the new relay succeeds an old one: each relay that connected
    after, or at most SUCCEEDS_WITHIN_S before another was last seen, succeeds one of those.
    """
    here = {relay.instance for relay in connected}
    lost = sorted(
        instance.last_seen_at
        for instance in instances
        if instance.instance not in here and instance.last_seen_at > now - EXPECTED_FOR_S
    )
    successors = sorted(relay.connected_at for relay in connected)
    missing = 0
    for last_seen_at in reversed(lost):
        # The latest loss takes the latest successor; one that came too early for it is too early for none
        # of the earlier losses alone.
        if successors and successors[-1] >= last_seen_at - SUCCEEDS_WITHIN_S:
            successors.pop()
        else:
            missing += 1
    return missing


def bare(software: str) -> str:
    """Return the version of `hawse/0.1.0`."""
    return software.removeprefix("hawse/")


def shortest(relays: Iterable[RelayInfo]) -> Mapping[str, float]:
    """Return the shortest round trip to a relay by cluster, of those that are known."""
    found: dict[str, float] = {}
    for relay in relays:
        if relay.rtt_ms is not None:
            found[relay.cluster] = min(relay.rtt_ms, found.get(relay.cluster, relay.rtt_ms))
    return found
