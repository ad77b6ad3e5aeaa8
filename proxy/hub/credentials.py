"""The part of the store that keeps how agents prove who they are."""

from __future__ import annotations

import sqlalchemy as sa

from proxy.hub import tables as t
from proxy.hub.database import Database, find, find_agent, new_id
from proxy.hub.entities import ApiKey
from proxy.hub.errors import ConflictError, NotFoundError
from proxy.hub.rules import shown

# An agent has one key, two while it changes them; more is a leak in somebody's pipeline.
API_KEYS_PER_AGENT_MAX = 16


class Credentials(Database):
    """API keys of agents."""

    def api_keys(self, agent: str) -> list[ApiKey]:
        """All keys of an agent, the revoked ones too, oldest first; raises NotFoundError."""
        with self._transaction() as connection:
            query = sa.select(t.api_keys).where(
                t.api_keys.c.agent_id == find(connection, t.agents, "agent", agent).id
            )
            return [api_key_of(row) for row in connection.execute(query.order_by(t.api_keys.c.created_at))]

    def add_api_key(self, agent: str, *, key_hash: str, key_hint: str) -> str:
        """Give an agent another API key and return the key's id; raises NotFoundError, ConflictError."""
        with self._transaction() as connection:
            return self._add_key(connection, find_agent(connection, agent).id, key_hash, key_hint)

    def revoke_api_key(self, agent: str, key_id: str) -> None:
        """Revoke one key of an agent; raises NotFoundError, ConflictError."""
        with self._transaction() as connection:
            agent_id = find(connection, t.agents, "agent", agent).id
            key = connection.execute(
                sa.select(t.api_keys).where(t.api_keys.c.id == key_id, t.api_keys.c.agent_id == agent_id)
            ).first()
            if key is None:
                raise NotFoundError(f"agent {agent} has no key {shown(key_id)}")
            if key.revoked_at is not None:
                raise ConflictError(f"key {key_id} of agent {agent} is revoked already")
            connection.execute(
                sa.update(t.api_keys).where(t.api_keys.c.id == key_id).values(revoked_at=self._clock())
            )

    def _add_key(self, connection: sa.Connection, agent_id: str, key_hash: str, key_hint: str) -> str:
        usable = connection.scalar(
            sa.select(sa.func.count())
            .select_from(t.api_keys)
            .where(t.api_keys.c.agent_id == agent_id, t.api_keys.c.revoked_at.is_(None))
        )
        if usable is not None and usable >= API_KEYS_PER_AGENT_MAX:
            raise ConflictError(f"the agent has {usable} keys, the most it may have: revoke one first")
        key_id = new_id()
        connection.execute(
            sa.insert(t.api_keys).values(
                id=key_id, agent_id=agent_id, hint=key_hint, hash=key_hash, created_at=self._clock()
            )
        )
        return key_id


def api_key_of(row: sa.Row[tuple[object, ...]]) -> ApiKey:
    return ApiKey(row.id, row.agent_id, row.hint, row.created_at, row.last_used_at, row.revoked_at)
