"""Decides recorded calls again, by current and by proposed policies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import attrs

from auth.policy.document import name_of
from auth.policy.match import Bundle
from auth.policy.rules import Effect
from auth.policy.text import Source
from auth.request_kind import request_kind_of
from auth.requestinfo import BadTarget, parse

# Kinds of changed calls with a count of their own in a simulation. Further kinds share one count.
CHANGES_MAX = 1000


@attrs.frozen
class Agent:
    """An agent, with the facts that policies use."""

    name: str
    teams: tuple[str, ...] = ()
    owner: str = ""


@attrs.frozen
class Cluster:
    """A cluster, with the facts that policies use."""

    name: str
    labels: Mapping[str, str] = attrs.Factory(dict)
    teams: tuple[str, ...] = ()
    """The teams that the cluster is granted to."""


def merged(
    current: Iterable[str], proposed: Sequence[Source], *, only: bool, without: Iterable[str] = ()
) -> list[Source]:
    """Return the documents in force after applying `proposed` to `current`, without the removed ones."""
    names = {*without, *(name_of(source) for source in proposed)}
    kept = [] if only else [source for source in map(Source, current) if name_of(source) not in names]
    return [*kept, *proposed]


@attrs.frozen
class Recorded:
    """A call as recorded in the trail."""

    agent: str
    cluster: str
    method: str
    target: str
    at: float
    """Epoch seconds."""
    upgrade: bool = False


@attrs.frozen
class Change:
    """Calls of one kind that would be decided differently."""

    effect: Effect
    """The new decision."""
    agent: str
    cluster: str
    verb: str
    resource: str
    namespace: str
    before: str
    after: str


@attrs.define
class Simulation:
    """The decisions for recorded calls under other policies."""

    calls: int = 0
    changes: dict[Change, int] = attrs.Factory(dict)
    newly_denied: int = 0
    newly_asked: int = 0
    newly_allowed: int = 0
    unknown: int = 0
    """Calls of removed agents or clusters, or without a grant now."""
    unreadable: int = 0
    """Calls whose target can't be parsed: it was refused then, or is masked."""


def simulate(
    recorded: Iterable[Recorded],
    agents: Mapping[str, Agent],
    clusters: Mapping[str, Cluster],
    current: Bundle,
    proposed: Bundle,
) -> Simulation:
    """Decide recorded calls by current and by proposed policies, with today's agents and clusters."""
    found = Simulation()
    for call in recorded:
        agent, cluster = agents.get(call.agent), clusters.get(call.cluster)
        if agent is None or cluster is None or not set(agent.teams) & set(cluster.teams):
            found.unknown += 1
            continue
        try:
            info = parse(call.method.encode("utf-8"), call.target.encode("utf-8"))
        except BadTarget:
            found.unreadable += 1
            continue
        if call.upgrade:
            info = info.upgraded()
        found.calls += 1
        before = current.decide(agent, cluster, info, call.at)
        after = proposed.decide(agent, cluster, info, call.at)
        effect = after.effect
        if before.effect is effect:
            continue
        match effect:
            case Effect.DENY:
                found.newly_denied += 1
            case Effect.ASK:
                found.newly_asked += 1
            case Effect.ALLOW:
                found.newly_allowed += 1
        kind = request_kind_of(info)
        resource = f"{kind.resource}/{kind.subresource}" if kind.subresource else kind.resource
        change = Change(
            effect,
            agent.name,
            cluster.name,
            kind.verb,
            kind.path or (f"{resource}.{kind.group}" if kind.group else resource),
            kind.namespace,
            f"{before.policy}/{before.rule}" if before.policy else before.rule,
            f"{after.policy}/{after.rule}" if after.policy else after.rule,
        )
        if change in found.changes or len(found.changes) < CHANGES_MAX:
            found.changes[change] = found.changes.get(change, 0) + 1
    return found
