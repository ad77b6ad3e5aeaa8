"""Distinguishes an unknown name of a search from a known one without events."""

from __future__ import annotations

from audit.members import Members
from audit.query import Query
from audit.search.filters import Filters
from audit.search.search import SearchReader
from proxy.hub.store.engines.errors import NotFoundError
from proxy.hub.store.entities import Snapshot
from proxy.process.suggestions import near_names


def check_names(reader: SearchReader, current: Snapshot, filters: Filters, until_s: float) -> list[str]:
    """Return notes on names known to the hub without events; raises NotFoundError for an unknown name."""
    notes: list[str] = []
    asked = [
        *(("agent", name) for name in [filters.agent] if name and not reader.holds(Query(agent=name))),
        *(("cluster", name) for name in [filters.cluster] if name and not reader.holds(Query(cluster=name))),
        *(("team", name) for name in filters.team),
    ]
    for kind, name in asked:
        enrolled = _enrolled(current, kind)
        if name in enrolled:
            if kind != "team":
                notes.append(f"{kind} {name!a} is enrolled, but has no events in the trail")
            continue
        if kind == "team":
            some = reader.newest(Query(members=Members(teams=[name])), limit=1, until_s=until_s)
            if some.rows or some.stopped:
                continue
        raise NotFoundError(_unknown(kind, name, enrolled))
    return notes


def _enrolled(current: Snapshot, kind: str) -> set[str]:
    by_name = {
        "agent": current.agents_by_name,
        "cluster": current.clusters_by_name,
        "team": current.teams_by_name,
    }
    return {*by_name[kind]}


def _unknown(kind: str, name: str, known: set[str]) -> str:
    # The table shows agents as `agent:builder`.
    near = near_names(name.removeprefix(f"{kind}:"), sorted(known))
    hint = f"did you mean {' or '.join(near)}?" if near else f"`hawse admin {kind} list` lists the names"
    return f"unknown {kind} {name!a}: it is neither in the trail nor in the hub's store; {hint}"
