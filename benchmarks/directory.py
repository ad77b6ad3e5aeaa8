"""A directory of many agents, put into a hub's database beside the hub."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator

import sqlalchemy as sa

from proxy.hub.store.database import new_id
from proxy.hub.store.engines.engine import Location, open_engine
from proxy.hub.store.migrations import tables as t
from proxy.hub.store.versions.version import begin_change

# Rows of one statement.
_AT_ONCE = 1000


def add_agents(location: Location, count: int, team: str) -> None:
    """Add agents to a team in one change, each with the hash of an API key that does not exist."""
    engine = open_engine(location, shared=True)
    try:
        with engine.write() as connection:
            begin_change(connection)
            [team_id] = connection.scalars(sa.select(t.teams.c.id).where(t.teams.c.name == team))
            for numbers in _slices(count):
                _add(connection, numbers, team_id)
    finally:
        engine.close()


def _slices(count: int) -> Iterator[range]:
    for start in range(0, count, _AT_ONCE):
        yield range(start, min(count, start + _AT_ONCE))


def _add(connection: sa.Connection, numbers: range, team_id: str) -> None:
    now, ids = time.time(), {number: new_id() for number in numbers}
    agents = [
        {
            "id": agent_id,
            "name": f"crowd-{number:05}",
            "owner": "bench",
            "state": "active",
            "created_at": now,
            "state_changed_at": now,
        }
        for number, agent_id in ids.items()
    ]
    keys = [
        {
            "id": new_id(),
            "agent_id": agent_id,
            "hint": f"crowd-{number:05}",
            "hash": hashlib.sha256(agent_id.encode()).hexdigest(),
            "created_at": now,
        }
        for number, agent_id in ids.items()
    ]
    connection.execute(sa.insert(t.agents), agents)
    members = [{"agent_id": agent_id, "team_id": team_id} for agent_id in ids.values()]
    connection.execute(sa.insert(t.agent_teams), members)
    connection.execute(sa.insert(t.api_keys), keys)
