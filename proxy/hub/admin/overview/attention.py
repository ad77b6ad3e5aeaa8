"""What an operator should look at first, from the facts of the overview."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from proxy.hub.admin.overview.shapes import Attention, ClusterRow, HubFacts, HubRow
from proxy.hub.admin.verbs.answers import time_text
from proxy.hub.store.entities import AdminToken

# Early enough for an operator who looks once a week.
TOKEN_ENDS_SOON_S = 14 * 86400
# A refusal older than this was followed by the operator's apply, or by no further request.
LACKS_RIGHTS_FOR_S = 3600.0
# Names in one message; the others are counted.
NAMED_MAX = 5

_URGENCY = {"critical": 0, "warning": 1, "notice": 2}


def attention(
    clusters: Sequence[ClusterRow],
    facts: Sequence[HubFacts],
    hubs: Sequence[HubRow],
    silent: Sequence[str],
    faults: Sequence[str],
    version: str,
    now: float,
) -> list[Attention]:
    """Return what needs attention, the most urgent first."""
    found = [
        *_of_clusters(clusters),
        *_skew(clusters, hubs, version),
        *_of_hubs(hubs, silent),
        *_lacking(facts, now),
        *(trouble for each in facts for trouble in each.troubles),
        *_faulty(faults),
    ]
    # Several hubs find the same trouble with the database they share.
    return sorted(dict.fromkeys(found), key=lambda each: (_URGENCY[each.severity], each.kind, each.name))


def _of_clusters(clusters: Iterable[ClusterRow]) -> Iterator[Attention]:
    for row in clusters:
        if row.state == "offline":
            text = "no relay is connected: hawse admin cluster check finds out why"
            yield Attention("cluster-offline", "critical", "cluster", row.name, text, row.last_heard_at)
        elif row.state == "degraded" and row.relays < row.expected:
            text = f"{row.relays} of {row.expected} relays are connected"
            yield Attention("relay-missing", "warning", "cluster", row.name, text)
        elif row.state == "degraded":
            text = "its API server does not answer its relays"
            yield Attention("api-server-down", "critical", "cluster", row.name, text)


def _skew(clusters: Iterable[ClusterRow], hubs: Iterable[HubRow], version: str) -> Iterator[Attention]:
    others = Counter(each for row in clusters for each in row.versions if each != version)
    for other, count in sorted(others.items()):
        of = "a cluster runs" if count == 1 else f"{count} clusters run"
        text = f"{of} relays of version {other}, and this hub has {version}"
        yield Attention("version-skew", "notice", "hub", other, text)
    for hub in hubs:
        if hub.living and hub.version != version:
            text = f"it has version {hub.version}, and this hub has {version}"
            yield Attention("version-skew", "notice", "hub", hub.hub, text)


def _of_hubs(hubs: Iterable[HubRow], silent: Iterable[str]) -> Iterator[Attention]:
    for hub in hubs:
        if not hub.living:
            text = "its lease has ended: it was killed, or has lost the database"
            yield Attention("hub-lost", "critical", "hub", hub.hub, text)
    for name in silent:
        text = "it did not answer this hub in time: its live calls are not shown"
        yield Attention("hub-silent", "warning", "hub", name, text)


def _lacking(facts: Iterable[HubFacts], now: float) -> Iterator[Attention]:
    latest: dict[str, float] = {}
    for each in facts:
        for cluster, at in each.lacks_rights.items():
            latest[cluster] = max(at, latest.get(cluster, at))
    for cluster, at in latest.items():
        if at > now - LACKS_RIGHTS_FOR_S:
            text = (
                "its relay was refused the impersonation of an agent: hawse admin cluster rbac "
                f"{cluster} | kubectl apply -f -"
            )
            yield Attention("rbac-to-apply", "warning", "cluster", cluster, text, time_text(at))


def _faulty(faults: Sequence[str]) -> Iterator[Attention]:
    if faults:
        more = f", and {len(faults) - NAMED_MAX} more" if len(faults) > NAMED_MAX else ""
        text = f"rows of the database are invalid and ignored: {'; '.join(faults[:NAMED_MAX])}{more}"
        yield Attention("invalid-rows", "critical", "database", "", text)


def waiting_requests(count: int, oldest: float | None) -> Iterator[Attention]:
    """Yield that requests wait for a person."""
    if count:
        wait = "1 request waits" if count == 1 else f"{count} requests wait"
        text = f"{wait} for approval: hawse admin request list"
        yield Attention("requests-wait", "warning", "request", "", text, time_text(oldest))


def ending_tokens(tokens: Iterable[AdminToken], now: float) -> Iterator[Attention]:
    """Yield the admin tokens that end soon; those that have ended need nothing any more."""
    for token in tokens:
        ends = token.expires_at
        if ends is not None and now <= ends < now + TOKEN_ENDS_SOON_S:
            text = f"the admin token ends at {time_text(ends)}"
            yield Attention("token-ends", "notice", "token", token.name, text)
