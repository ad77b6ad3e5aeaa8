"""The store's credentials of agents: API keys, enrolment codes, and the agents' own key pairs.

The store has only a hash of an API key or a code, and only the public half of an agent's own key.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import sqlalchemy as sa

from auth.keys import KeyFormatError, PublicKey
from proxy.hub.store.database import Database, among, find, find_agent, new_id, select_as_text
from proxy.hub.store.engines.errors import ConflictError, InvalidError, NotFoundError
from proxy.hub.store.entities import Agent, AgentKey, AgentState, ApiKey, Code, Credential
from proxy.hub.store.federation import drop_unused_issuers
from proxy.hub.store.migrations import tables as t
from proxy.hub.store.names import shown
from proxy.process.untrusted_json import read_json

# Of each kind. An agent has one key, two during a change, or one for each replica. More keys than this point
# to a pipeline that leaks them.
KEYS_PER_AGENT_MAX = 16
# A code is made for immediate use.
CODE_LIFETIME_S = 15 * 60.0
CODES_PER_AGENT_MAX = 8


class Credentials(Database):
    """Keys and codes of agents."""

    def credentials(self, agent: str) -> list[ApiKey | AgentKey]:
        """All keys of an agent, the revoked ones too, oldest first; raises NotFoundError."""
        with self._read() as connection:
            agent_id = find(connection, t.agents, "agent", agent).id
            rows = connection.execute(sa.select(t.api_keys).where(t.api_keys.c.agent_id == agent_id))
            found: list[ApiKey | AgentKey] = [api_key_of(row) for row in rows]
            rows = connection.execute(
                select_as_text(t.agent_keys, "jwk").where(t.agent_keys.c.agent_id == agent_id)
            )
            found += agent_keys_of(rows, [])
        return sorted(found, key=lambda key: key.created_at)

    def add_api_key(self, agent: str, *, key_hash: str, key_hint: str) -> str:
        """Give an agent another API key and return the key's id; raises NotFoundError, ConflictError."""
        with self._change() as connection:
            return self._add_key(connection, find_agent(connection, agent).id, key_hash, key_hint)

    def revoke_key(self, agent: str, key_id: str) -> None:
        """Revoke one key of an agent, of either kind; raises NotFoundError, ConflictError."""
        with self._change() as connection:
            agent_id = find(connection, t.agents, "agent", agent).id
            for table in (t.api_keys, t.agent_keys):
                mine = sa.and_(table.c.id == key_id, table.c.agent_id == agent_id)
                key = connection.execute(sa.select(table.c.revoked_at).where(mine)).first()
                if key is not None:
                    break
            else:
                raise NotFoundError(
                    f"agent {agent} has no key {shown(key_id)}: `hawse admin agent key list {agent}` lists "
                    "the ids of its keys"
                )
            if key.revoked_at is not None:
                raise ConflictError(f"key {key_id} of agent {agent} is revoked already")
            connection.execute(sa.update(table).where(mine).values(revoked_at=self._clock()))

    def add_code(self, agent: str, code_hash: str) -> Code:
        """Add a code with which the agent may register one key; raises NotFoundError, ConflictError."""
        now = self._clock()
        with self._change() as connection:
            agent_id = str(find_agent(connection, agent).id)
            codes = t.enrolment_codes
            connection.execute(sa.delete(codes).where(codes.c.expires_at <= now))
            mine = sa.select(sa.func.count()).select_from(codes).where(codes.c.agent_id == agent_id)
            count = connection.scalar(mine)
            if count is not None and count >= CODES_PER_AGENT_MAX:
                raise ConflictError(
                    f"agent {agent} has {count} unused codes, the most it may have: use one, or withdraw them"
                )
            code = Code(new_id(), agent_id, now, now + CODE_LIFETIME_S)
            connection.execute(
                sa.insert(codes).values(
                    id=code.id,
                    agent_id=agent_id,
                    hash=code_hash,
                    created_at=now,
                    expires_at=code.expires_at,
                )
            )
            return code

    def withdraw_codes(self, agent: str) -> int:
        """End all of an agent's codes and return how many there were; raises NotFoundError."""
        codes = t.enrolment_codes
        with self._change() as connection:
            agent_id = find(connection, t.agents, "agent", agent).id
            return connection.execute(sa.delete(codes).where(codes.c.agent_id == agent_id)).rowcount

    def redeem_code(self, code_hash: str, key: PublicKey) -> str:
        """Register a key with a code, which is used up by that, and return the key's id.

        An agent that did not receive the answer may repeat the request: for the lifetime of a code it gets
        the same id. Raises NotFoundError when the code does not exist or has expired, ConflictError when its
        agent may not register a key, and InvalidError for a key that was registered before.
        """
        now = self._clock()
        with self._change() as connection:
            codes = t.enrolment_codes
            code = connection.execute(sa.select(codes).where(codes.c.hash == code_hash)).first()
            if code is None and (key_id := _registered_lately(connection, key, now)) is not None:
                return key_id
            if code is None or code.expires_at <= now:
                raise NotFoundError("the code was used, or has expired")
            agent = connection.execute(sa.select(t.agents).where(t.agents.c.id == code.agent_id)).one()
            if agent.state != AgentState.ACTIVE:
                raise ConflictError(f"agent {agent.name} is {agent.state}")
            if connection.execute(sa.select(t.agent_keys.c.id).where(t.agent_keys.c.kid == key.kid)).first():
                raise InvalidError("the key was registered before: make a new one")
            self._refuse_too_many(connection, t.agent_keys, agent.id)
            key_id = new_id()
            connection.execute(
                sa.insert(t.agent_keys).values(
                    id=key_id, agent_id=agent.id, kid=key.kid, jwk=key.to_jwk(), created_at=now
                )
            )
            connection.execute(sa.delete(codes).where(codes.c.id == code.id))
            return key_id

    def _add_key(self, connection: sa.Connection, agent_id: str, key_hash: str, key_hint: str) -> str:
        self._refuse_too_many(connection, t.api_keys, agent_id)
        key_id = new_id()
        connection.execute(
            sa.insert(t.api_keys).values(
                id=key_id, agent_id=agent_id, hint=key_hint, hash=key_hash, created_at=self._clock()
            )
        )
        return key_id

    def _refuse_too_many(self, connection: sa.Connection, table: sa.Table, agent_id: str) -> None:
        usable = connection.scalar(
            sa.select(sa.func.count())
            .select_from(table)
            .where(table.c.agent_id == agent_id, table.c.revoked_at.is_(None))
        )
        if usable is not None and usable >= KEYS_PER_AGENT_MAX:
            raise ConflictError(f"the agent has {usable} keys, the most it may have: revoke one first")

    def _revoke_all(self, connection: sa.Connection, agent_id: str, now: float) -> None:
        """Revoke all credentials of an agent."""
        for table in (t.api_keys, t.agent_keys):
            connection.execute(
                sa.update(table)
                .where(table.c.agent_id == agent_id, table.c.revoked_at.is_(None))
                .values(revoked_at=now)
            )
        for table in (t.enrolment_codes, t.federation_rules):
            connection.execute(sa.delete(table).where(table.c.agent_id == agent_id))
        drop_unused_issuers(connection)


def _registered_lately(connection: sa.Connection, key: PublicKey, now: float) -> str | None:
    keys = t.agent_keys.c
    query = (
        sa.select(keys.id)
        .join(t.agents)
        .where(
            keys.kid == key.kid,
            keys.created_at > now - CODE_LIFETIME_S,
            keys.revoked_at.is_(None),
            t.agents.c.state == AgentState.ACTIVE,
        )
    )
    return connection.scalar(query)


def read_keys(
    connection: sa.Connection,
    by_agent: Mapping[str, Agent],
    faults: list[str],
    only: Collection[str] | None = None,
) -> tuple[dict[str, tuple[Agent, ApiKey]], dict[str, tuple[Agent, AgentKey]]]:
    """The keys that are not revoked, of all agents or of some: API keys by hash, agents' own by `kid`."""
    keys, own_keys = t.api_keys.c, t.agent_keys.c
    columns = keys["id", "agent_id", "hint", "hash", "created_at", "revoked_at"]
    api_keys = sa.select(*columns).where(keys.revoked_at.is_(None), among(keys.agent_id, only))
    own = select_as_text(t.agent_keys, "jwk").where(
        own_keys.revoked_at.is_(None), among(own_keys.agent_id, only)
    )
    return (
        {
            row.hash: (by_agent[row.agent_id], api_key_of(row))
            for row in connection.execute(api_keys)
            if row.agent_id in by_agent
        },
        {
            key.public.kid: (by_agent[key.agent_id], key)
            for key in agent_keys_of(connection.execute(own), faults)
            if key.agent_id in by_agent
        },
    )


def owners_of(*held: tuple[Agent, Credential]) -> dict[str, str]:
    """Map the id of each credential to its agent's id."""
    return {credential.id: agent.id for agent, credential in held}


def read_codes(
    connection: sa.Connection, by_agent: Mapping[str, Agent], only: Collection[str] | None = None
) -> dict[str, tuple[Agent, Code]]:
    """The unused codes of all agents or of some, by hash."""
    codes = sa.select(t.enrolment_codes).where(among(t.enrolment_codes.c.agent_id, only))
    return {
        row.hash: (by_agent[row.agent_id], Code(row.id, row.agent_id, row.created_at, row.expires_at))
        for row in connection.execute(codes)
        if row.agent_id in by_agent
    }


def api_key_of(row: sa.Row[tuple[object, ...]]) -> ApiKey:
    """Read a row."""
    return ApiKey(row.id, row.agent_id, row.hint, row.created_at, row.revoked_at)


def agent_keys_of(rows: sa.CursorResult[tuple[object, ...]], faults: list[str]) -> Iterator[AgentKey]:
    """Read rows with their keys as text; rows without a valid Ed25519 key go to `faults`."""
    for row in rows:
        try:
            public = PublicKey.from_jwk(read_json(row.jwk))
            if public.alg != "EdDSA" or not public.kid == public.thumbprint == row.kid:
                raise KeyFormatError("not an Ed25519 key under its thumbprint")
        except (KeyFormatError, ValueError) as error:
            faults.append(f"agent key {shown(row.kid)} is invalid: {error}")
            continue
        yield AgentKey(row.id, row.agent_id, public, row.created_at, row.revoked_at)
