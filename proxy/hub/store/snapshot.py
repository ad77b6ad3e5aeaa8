"""Reads a snapshot of the store. Every row is checked again, and each invalid row alone is ignored.

A snapshot is read after every change, and most rows are unchanged. So the entities made from rows are cached
from one reading to the next. That leaves the fetching of the rows, about half of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Generic, TypeVar

import attrs
import sqlalchemy as sa

from audit.store import TrailMark
from auth.keys import KeyFormatError, PublicKey
from auth.policy.match import Bundle
from auth.principal import IdentityError, Principal, slug
from proxy.hub.store.credentials import owners_of, read_codes, read_keys
from proxy.hub.store.database import select_as_text
from proxy.hub.store.entities import AdminToken, Agent, AgentState, Cluster, Mode, Snapshot, Team
from proxy.hub.store.errors import InvalidError
from proxy.hub.store.federation import read_federation
from proxy.hub.store.migrations import tables as t
from proxy.hub.store.names import check_labels, shown
from proxy.hub.store.roles import Role
from proxy.hub.store.version import read_version
from proxy.process.untrusted_json import read_json

T = TypeVar("T")
Connection = sa.Connection
Faults = tuple[str, ...]

_AGENT = t.agents.c["id", "name", "owner", "state", "created_at"]


@attrs.define(eq=False)
class RowCache(Generic[T]):
    """Caches the entities of the last reading, keyed by the row and everything else they are made from."""

    _before: dict[Hashable, T] = attrs.Factory(dict)
    _now: dict[Hashable, T] = attrs.Factory(dict)

    def begin(self) -> None:
        """Begin a reading: entries that are not used in it are dropped after it."""
        self._before, self._now = self._now, {}

    def of(self, row: Hashable, make: Callable[[], T]) -> T:
        """Return the cached entity of the row, or make it."""
        made = self._before.get(row)
        self._now[row] = made = make() if made is None else made
        return made


@attrs.define(eq=False)
class SnapshotReader:
    """Reads snapshots of one store."""

    org: str
    _agents: RowCache[tuple[Agent | None, Faults]] = attrs.Factory(RowCache)
    _clusters: RowCache[tuple[Cluster | None, Faults]] = attrs.Factory(RowCache)

    def read(self, connection: Connection, bundle: Bundle, faults: list[str]) -> Snapshot:
        """Read a snapshot in the connection's transaction; raises ValueError if that is not possible at all.

        `faults` holds those of the bundle; those of other rows are added.
        """
        by_team = {team.id: team for team in _read_teams(connection, faults)}
        by_agent = {agent.id: agent for agent in self._read_agents(connection, by_team, faults)}
        by_cluster = {cluster.id: cluster for cluster in self._read_clusters(connection, by_team, faults)}
        api_keys, agent_keys = read_keys(connection, by_agent, faults)
        issuers, rules = read_federation(connection, by_agent, faults)
        return Snapshot(
            org=self.org,
            version=read_version(connection),
            teams_by_name={team.name: team for team in by_team.values()},
            agents_by_id=by_agent,
            agents_by_name={agent.name: agent for agent in by_agent.values()},
            clusters_by_id=by_cluster,
            clusters_by_name={cluster.name: cluster for cluster in by_cluster.values()},
            api_keys_by_hash=api_keys,
            agent_keys_by_kid=agent_keys,
            codes_by_hash=read_codes(connection, by_agent),
            issuers_by_url=issuers,
            rules_by_issuer=rules,
            admin_tokens_by_hash=_read_admin_tokens(connection, faults),
            credentials=owners_of(
                *api_keys.values(), *agent_keys.values(), *chain.from_iterable(rules.values())
            ),
            bundle=bundle,
            trail=read_trail(connection),
            faults=tuple(faults),
        )

    def _read_agents(
        self, connection: Connection, by_team: Mapping[str, Team], faults: list[str]
    ) -> Iterator[Agent]:
        members = _grouped(connection, t.agent_teams.c.agent_id, t.agent_teams.c.team_id)
        self._agents.begin()
        # Not all columns: else each time of last use would make a new entity.
        for row in connection.execute(sa.select(*_AGENT)):
            teams = tuple((team_id, by_team.get(team_id)) for team_id in members.get(row.id, ()))
            agent, found = self._agents.of((tuple(row), teams), partial(self._agent, row, dict(teams)))
            faults.extend(found)
            if agent is not None:
                yield agent

    def _agent(
        self, row: sa.Row[tuple[object, ...]], of: Mapping[str, Team | None]
    ) -> tuple[Agent | None, Faults]:
        if None in of.values():
            # Without this group, a rule that denies it would not apply.
            return None, (f"agent {shown(row.name)} is in a team that is invalid",)
        names = tuple(sorted(team.name for team in of.values() if team is not None))
        try:
            principal = Principal(row.id, row.name, self.org, names) if names else None
            state = AgentState(row.state)
        except (IdentityError, ValueError) as error:
            return None, (f"agent {shown(row.name)} is invalid: {error}",)
        agent = Agent(
            id=row.id,
            name=row.name,
            owner=row.owner,
            state=state,
            teams=names,
            team_ids=frozenset(of),
            created_at=row.created_at,
            principal=principal,
        )
        return agent, ()

    def _read_clusters(
        self, connection: Connection, by_team: Mapping[str, Team], faults: list[str]
    ) -> Iterator[Cluster]:
        granted = _grouped(connection, t.cluster_grants.c.cluster_id, t.cluster_grants.c.team_id)
        keys: dict[str, list[tuple[str, str]]] = {}
        for row in connection.execute(
            select_as_text(t.relay_keys, "jwk").order_by(t.relay_keys.c.created_at)
        ):
            keys.setdefault(row.cluster_id, []).append((row.kid, row.jwk))
        self._clusters.begin()
        # JSON as text is hashable, as the cache needs.
        for row in connection.execute(select_as_text(t.clusters, "labels")):
            teams = tuple(by_team[team] for team in granted.get(row.id, ()) if team in by_team)
            own = tuple(keys.get(row.id, ()))
            cluster, found = self._clusters.of((tuple(row), teams, own), partial(_cluster, row, teams, own))
            faults.extend(found)
            if cluster is not None:
                yield cluster


def _grouped(
    connection: Connection, key: sa.Column[str], value: sa.Column[str]
) -> Mapping[str, tuple[str, ...]]:
    """Group values by key, in a stable order."""
    found: dict[str, list[str]] = {}
    for one, other in connection.execute(sa.select(key, value)):
        found.setdefault(one, []).append(other)
    return {one: tuple(sorted(others)) for one, others in found.items()}


def _read_teams(connection: Connection, faults: list[str]) -> Iterator[Team]:
    for row in connection.execute(sa.select(t.teams)):
        try:
            slug("team", row.name)
        except IdentityError as error:
            faults.append(str(error))
            continue
        yield Team(row.id, row.name, row.created_at)


def _cluster(
    row: sa.Row[tuple[object, ...]], teams: tuple[Team, ...], keys: tuple[tuple[str, str], ...]
) -> tuple[Cluster | None, Faults]:
    faults: list[str] = []
    usable = []
    for kid, text in keys:
        try:
            usable.append(PublicKey.from_jwk(read_json(text)))
        except (KeyFormatError, ValueError) as error:
            faults.append(f"relay key {shown(kid)} is invalid: {error}")
    try:
        slug("cluster name", row.name)
        mode = Mode(row.mode)
        labels = _labels(row.labels)
    except (IdentityError, InvalidError, ValueError) as error:
        return None, (*faults, f"cluster {shown(row.name)} is invalid: {error}")
    cluster = Cluster(
        id=row.id,
        name=row.name,
        labels=labels,
        teams=tuple(sorted(team.name for team in teams)),
        team_ids=frozenset(team.id for team in teams),
        mode=mode,
        relay_keys=tuple(usable),
        relay_url=row.relay_url,
        relay_ca_pem=row.relay_ca_pem,
        relay_address_private=row.relay_address_private,
        created_at=row.created_at,
        cluster_uid=row.cluster_uid,
    )
    return cluster, tuple(faults)


def _labels(text: str) -> dict[str, str]:
    """Parse a cluster's labels, which policies match; raises InvalidError, ValueError."""
    labels = read_json(text)
    if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
        raise InvalidError("its labels are not a map of strings")
    check_labels(labels)
    return labels


def _read_admin_tokens(connection: Connection, faults: list[str]) -> Mapping[str, AdminToken]:
    tokens = {}
    for row in connection.execute(sa.select(t.admin_tokens)):
        try:
            slug("token name", row.name)
            role = Role(row.role)
        except (IdentityError, ValueError) as error:
            faults.append(f"admin token {shown(row.name)} is invalid: {error}")
            continue
        tokens[row.hash] = AdminToken(
            id=row.id,
            name=row.name,
            role=role,
            role_chosen=row.role_chosen,
            created_at=row.created_at,
            expires_at=row.expires_at,
        )
    return tokens


def read_trail(connection: Connection) -> TrailMark | None:
    """Return the mark of this hub's trail; None before the hub has written one."""
    row = connection.execute(sa.select(t.audit_trail)).first()
    return None if row is None else TrailMark(row.id, row.highest)
