"""The hub's store: teams, agents, clusters and keys in SQLite, through SQLAlchemy Core.

Each public method is one transaction (proxy.hub.store.database). Names are checked here, below all callers
(API, command line, tests).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import attrs
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as upsert

from audit.store import TrailMark
from auth.keys import PublicKey
from auth.principal import TEAMS_MAX
from proxy.hub.store import tables as t
from proxy.hub.store.credentials import Credentials
from proxy.hub.store.database import find, find_agent, new_id, refuse_taken
from proxy.hub.store.entities import AgentState, Mode, RelayInstance, Snapshot
from proxy.hub.store.errors import ConflictError, InvalidError, StoreUnavailableError
from proxy.hub.store.federation import Federation
from proxy.hub.store.local_user import LOCAL_TOKEN_NAME
from proxy.hub.store.names import PEM_LENGTH_MAX, check_labels, check_name, check_owner, check_relay_url
from proxy.hub.store.policies import Policies
from proxy.hub.store.roles import Role
from proxy.hub.store.snapshot import SnapshotReader
from proxy.listener.unauthenticated import place_of

# A replacement needs two keys; more are unfinished replacements.
RELAY_KEYS_PER_CLUSTER_MAX = 4
# A pod has a new instance id after each start; an operator needs only the latest ones.
RELAY_INSTANCES_KEPT = 16


@attrs.frozen
class RelayContact:
    """The data of a relay instance that connects."""

    cluster_id: str
    instance: str
    boot: str
    version: str
    address: str


class Store(Credentials, Federation, Policies):
    """The database of one hub. `clock` returns epoch seconds."""

    def __init__(self, path: Path, *, org: str, clock: Callable[[], float], shared: bool = False) -> None:
        super().__init__(path, org=org, clock=clock, shared=shared)
        self._reader = SnapshotReader(org)

    # -- reading

    def snapshot(self) -> Snapshot:
        """Read everything that requests need, in one consistent state.

        An invalid row is ignored and listed in the snapshot's `faults`: names are checked again, because
        other programs may have written the row. Only its own agent, team or key is affected. Otherwise one
        bad row would block every later change, even the locking of an agent. Raises StoreUnavailableError.
        """
        faults: list[str] = []
        try:
            with self._transaction() as connection:
                return self._reader.read(connection, self._read_bundle(connection, faults), faults)
        except (ValueError, TypeError, RecursionError) as error:
            # Invalid JSON, JSON of another shape, or too deeply nested.
            raise StoreUnavailableError(f"the store holds a row that cannot be read: {error}") from error

    def relay_instances(self) -> list[RelayInstance]:
        """All stored relay instances, by cluster and the time they were last seen."""
        query = (
            sa.select(t.relay_instances, t.clusters.c.name.label("cluster"))
            .join(t.clusters)
            .order_by(t.clusters.c.name, t.relay_instances.c.last_seen_at.desc())
        )
        with self._transaction() as connection:
            return [RelayInstance(**row._mapping) for row in connection.execute(query)]

    # -- teams

    def add_team(self, name: str, clusters: Iterable[str] = (), *, reuse_name: bool = False) -> str:
        """Add a team, grant it clusters, and return its id.

        The name of a removed team is refused, because clusters may still grant rights to its group; with
        `reuse_name` it is allowed. Raises InvalidError, ConflictError, NotFoundError for a cluster.
        """
        check_name("team", name)
        with self._transaction() as connection:
            refuse_taken(connection, t.teams, "team", name)
            retired = t.retired_teams.c.name == name
            if reuse_name:
                connection.execute(sa.delete(t.retired_teams).where(retired))
            elif connection.execute(sa.select(t.retired_teams.c.id).where(retired)).first() is not None:
                raise ConflictError(
                    f"team {name} was removed, and RoleBindings of clusters may still give rights to the "
                    f"group {self._org}/{name}: choose a new name, or remove those bindings and add "
                    "--reuse-name"
                )
            team_id = new_id()
            connection.execute(sa.insert(t.teams).values(id=team_id, name=name, created_at=self._clock()))
            for cluster in dict.fromkeys(clusters):
                cluster_id = find(connection, t.clusters, "cluster", cluster).id
                connection.execute(sa.insert(t.cluster_grants).values(cluster_id=cluster_id, team_id=team_id))
            return team_id

    def remove_team(self, name: str) -> str:
        """Remove a team and its grants, and return its id; its name stays reserved.

        Raises NotFoundError, ConflictError while an agent is in it.
        """
        with self._transaction() as connection:
            team = find(connection, t.teams, "team", name)
            inside = connection.scalars(
                sa.select(t.agents.c.name)
                .join(t.agent_teams)
                .where(t.agent_teams.c.team_id == team.id)
                .order_by(t.agents.c.name)
            ).all()
            if inside:
                raise ConflictError(
                    f"team {name} still has {_some(inside)}: give them other teams, or remove them, first"
                )
            connection.execute(sa.delete(t.teams).where(t.teams.c.id == team.id))
            connection.execute(
                sa.insert(t.retired_teams).values(name=team.name, id=team.id, retired_at=self._clock())
            )
            return str(team.id)

    # -- agents

    def add_agent(
        self,
        name: str,
        *,
        owner: str,
        teams: Iterable[str],
        key_hash: str | None = None,
        key_hint: str = "",
    ) -> tuple[str, str | None]:
        """Add an agent, with its first API key when there is one, and return the ids of both.

        Raises InvalidError, ConflictError, NotFoundError for a team.
        """
        check_name("agent name", name)
        check_owner(owner)
        now = self._clock()
        with self._transaction() as connection:
            taken = connection.execute(sa.select(t.agents).where(t.agents.c.name == name)).first()
            if taken is not None:
                raise ConflictError(
                    f"agent {name} was retired, and a name is never given to another agent: choose a new one"
                    if taken.state == AgentState.RETIRED
                    else f"agent {name} exists already: `hawse admin agent code {name}` or "
                    f"`agent key add {name}` gives it another credential"
                )
            agent_id = new_id()
            connection.execute(
                sa.insert(t.agents).values(
                    id=agent_id,
                    name=name,
                    owner=owner,
                    state=AgentState.ACTIVE,
                    created_at=now,
                    state_changed_at=now,
                )
            )
            _set_teams(connection, agent_id, teams)
            if key_hash is None:
                return agent_id, None
            return agent_id, self._add_key(connection, agent_id, key_hash, key_hint)

    def change_agent_teams(self, name: str, *, add: Iterable[str] = (), remove: Iterable[str] = ()) -> str:
        """Add an agent to teams and remove it from others, and return its id.

        The arguments are the differences, so two concurrent changes do not undo each other. Raises
        InvalidError, NotFoundError, ConflictError.
        """
        with self._transaction() as connection:
            agent = find_agent(connection, name)
            gone = {find(connection, t.teams, "team", team).name for team in remove}
            inside = t.agent_teams.c.agent_id == agent.id
            present = connection.scalars(sa.select(t.teams.c.name).join(t.agent_teams).where(inside)).all()
            left = [team for team in (*present, *add) if team not in gone]
            if set(left) == set(present):
                raise ConflictError(f"nothing was changed: agent {name} is in {', '.join(sorted(present))}")
            connection.execute(sa.delete(t.agent_teams).where(inside))
            _set_teams(connection, agent.id, left)
            return str(agent.id)

    def lock_agent(self, name: str) -> str:
        """Refuse an agent until it is unlocked; returns its id. Raises NotFoundError, ConflictError."""
        return self._set_state(name, AgentState.LOCKED)

    def unlock_agent(self, name: str) -> str:
        """Accept an agent again; returns its id. Raises NotFoundError, ConflictError."""
        return self._set_state(name, AgentState.ACTIVE)

    def retire_agent(self, name: str) -> str:
        """Remove an agent for good: its keys are revoked, its name stays reserved; returns its id.

        Raises NotFoundError, ConflictError.
        """
        with self._transaction() as connection:
            agent_id = str(find_agent(connection, name).id)
            now = self._clock()
            connection.execute(
                sa.update(t.agents)
                .where(t.agents.c.id == agent_id)
                .values(state=AgentState.RETIRED, state_changed_at=now)
            )
            connection.execute(sa.delete(t.agent_teams).where(t.agent_teams.c.agent_id == agent_id))
            self._revoke_all(connection, agent_id, now)
            return agent_id

    def _set_state(self, name: str, state: AgentState) -> str:
        with self._transaction() as connection:
            agent = find_agent(connection, name)
            if agent.state == state:
                raise ConflictError(f"agent {name} is {state} already")
            connection.execute(
                sa.update(t.agents)
                .where(t.agents.c.id == agent.id)
                .values(state=state, state_changed_at=self._clock())
            )
            return str(agent.id)

    # -- clusters

    def add_cluster(
        self,
        name: str,
        *,
        relay_key: PublicKey | None = None,
        teams: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        mode: Mode = Mode.TUNNEL,
        relay_url: str | None = None,
        relay_ca_pem: str | None = None,
        relay_address_private: bool = False,
    ) -> str:
        """Add a cluster and return its id.

        A relay in tunnel mode authenticates with its key, one in direct mode with its certificate. Raises
        InvalidError, ConflictError, NotFoundError.
        """
        check_name("cluster name", name)
        check_labels(labels or {})
        if mode is Mode.TUNNEL and (
            relay_url is not None or relay_ca_pem is not None or relay_address_private
        ):
            raise InvalidError("a tunnel relay dials the hub: relay URL and CA belong to mode direct")
        if mode is Mode.TUNNEL and relay_key is None:
            raise InvalidError("mode tunnel needs the public key with which the relay authenticates")
        if mode is Mode.DIRECT:
            if relay_url is None:
                raise InvalidError(
                    "mode direct needs the URL at which the hub reaches the relay (--relay-url)"
                )
            check_relay_url(relay_url, private=relay_address_private)
        if relay_ca_pem is not None and len(relay_ca_pem) > PEM_LENGTH_MAX:
            raise InvalidError(f"the relay's CA exceeds {PEM_LENGTH_MAX} characters")
        with self._transaction() as connection:
            new_key = f": `hawse admin cluster key {name}` prints its relay's manifests with a new key"
            step = new_key if mode is Mode.TUNNEL else ""
            refuse_taken(connection, t.clusters, "cluster", name, next_step=step)
            cluster_id = new_id()
            connection.execute(
                sa.insert(t.clusters).values(
                    id=cluster_id,
                    name=name,
                    labels=dict(labels or {}),
                    mode=mode,
                    relay_url=relay_url,
                    relay_ca_pem=relay_ca_pem,
                    relay_address_private=relay_address_private,
                    created_at=self._clock(),
                )
            )
            if relay_key is not None:
                self._add_relay_key(connection, cluster_id, relay_key)
            for team in dict.fromkeys(teams):
                team_id = find(connection, t.teams, "team", team).id
                connection.execute(sa.insert(t.cluster_grants).values(cluster_id=cluster_id, team_id=team_id))
            return cluster_id

    def grant(self, cluster: str, team: str) -> str:
        """Grant a team access to a cluster, and return the cluster's id.

        Raises NotFoundError, ConflictError.
        """
        with self._transaction() as connection:
            cluster_id, team_id = _pair(connection, cluster, team)
            if connection.execute(_grant(cluster_id, team_id)).first() is not None:
                raise ConflictError(f"cluster {cluster} is granted to team {team} already")
            connection.execute(sa.insert(t.cluster_grants).values(cluster_id=cluster_id, team_id=team_id))
            return cluster_id

    def revoke(self, cluster: str, team: str) -> str:
        """Revoke a team's access to a cluster, and return the cluster's id.

        Raises NotFoundError, ConflictError.
        """
        with self._transaction() as connection:
            cluster_id, team_id = _pair(connection, cluster, team)
            if connection.execute(_grant(cluster_id, team_id)).first() is None:
                raise ConflictError(f"cluster {cluster} is not granted to team {team}")
            connection.execute(
                sa.delete(t.cluster_grants).where(
                    t.cluster_grants.c.cluster_id == cluster_id, t.cluster_grants.c.team_id == team_id
                )
            )
            return cluster_id

    def replace_relay_key(self, cluster: str, relay_key: PublicKey, *, keep_old: bool) -> str:
        """Give a cluster's relay a new key, and return the cluster's id.

        The old keys are removed, unless `keep_old` keeps them for an overlap. Raises NotFoundError,
        ConflictError.
        """
        with self._transaction() as connection:
            cluster_id = str(find(connection, t.clusters, "cluster", cluster).id)
            if not keep_old:
                connection.execute(sa.delete(t.relay_keys).where(t.relay_keys.c.cluster_id == cluster_id))
            self._add_relay_key(connection, cluster_id, relay_key)
            return cluster_id

    def drop_old_relay_keys(self, cluster: str) -> list[str]:
        """Remove all keys of a cluster's relay except the newest, and return the kids of the removed ones.

        Raises NotFoundError, and ConflictError when there is only one.
        """
        with self._transaction() as connection:
            cluster_id = str(find(connection, t.clusters, "cluster", cluster).id)
            keys = t.relay_keys.c
            query = sa.select(keys.kid).where(keys.cluster_id == cluster_id)
            kids = [str(kid) for kid in connection.scalars(query.order_by(keys.created_at))]
            if len(kids) < 2:
                raise ConflictError(f"cluster {cluster} has no older relay key")
            connection.execute(sa.delete(t.relay_keys).where(keys.kid.in_(kids[:-1])))
            return kids[:-1]

    def pin_cluster(self, cluster_id: str, uid: str) -> str:
        """Pin a cluster to a relay's UID, unless it is pinned already; returns the pinned UID.

        Empty when the cluster was just removed, which is no error.
        """
        clusters = t.clusters.c
        with self._transaction() as connection:
            connection.execute(
                sa.update(t.clusters)
                .where(clusters.id == cluster_id, clusters.cluster_uid.is_(None))
                .values(cluster_uid=uid)
            )
            pinned = connection.scalar(sa.select(clusters.cluster_uid).where(clusters.id == cluster_id))
            return pinned or ""

    def unpin_cluster(self, name: str) -> str:
        """Remove a cluster's pin, so that the next relay sets it; returns the old UID.

        Raises NotFoundError, and ConflictError when it is not pinned.
        """
        with self._transaction() as connection:
            cluster = find(connection, t.clusters, "cluster", name)
            if cluster.cluster_uid is None:
                raise ConflictError(f"cluster {name} is not pinned: the next relay that connects pins it")
            connection.execute(
                sa.update(t.clusters).where(t.clusters.c.id == cluster.id).values(cluster_uid=None)
            )
            return str(cluster.cluster_uid)

    def remove_cluster(self, name: str) -> str:
        """Remove a cluster with its grants and keys, and return its id; raises NotFoundError."""
        with self._transaction() as connection:
            cluster_id = str(find(connection, t.clusters, "cluster", name).id)
            connection.execute(sa.delete(t.clusters).where(t.clusters.c.id == cluster_id))
            return cluster_id

    def _add_relay_key(self, connection: sa.Connection, cluster_id: str, key: PublicKey) -> None:
        keys = t.relay_keys.c
        query = sa.select(sa.func.count(), sa.func.max(keys.created_at)).where(keys.cluster_id == cluster_id)
        count, newest = connection.execute(query).one()
        if count >= RELAY_KEYS_PER_CLUSTER_MAX:
            raise ConflictError(
                f"the cluster has {count} relay keys: replace them without keeping the old ones"
            )
        now = self._clock()
        # Only this time shows which key is the newest, even after the clock was set back.
        created_at = now if newest is None else max(now, math.nextafter(newest, math.inf))
        connection.execute(
            sa.insert(t.relay_keys).values(
                kid=key.kid, cluster_id=cluster_id, jwk=key.to_jwk(), created_at=created_at
            )
        )

    # -- relays

    def relay_connected(self, contact: RelayContact) -> str:
        """Store that a relay instance connected, and return a description of what is new about it.

        Empty when the cluster had this instance and this address before. A cluster that was just removed is
        no error.
        """
        now = self._clock()
        row = {**attrs.asdict(contact), "connected_at": now, "last_seen_at": now, "disconnected_at": None}
        instances = t.relay_instances.c
        kept = (
            sa.select(instances.instance)
            .where(instances.cluster_id == contact.cluster_id)
            .order_by(instances.disconnected_at.is_(None).desc(), instances.last_seen_at.desc())
            .limit(RELAY_INSTANCES_KEPT)
        )
        with self._transaction() as connection:
            known = sa.select(t.clusters.c.id).where(t.clusters.c.id == contact.cluster_id)
            if connection.execute(known).first() is None:
                return ""
            before = connection.execute(
                sa.select(t.relay_instances).where(instances.cluster_id == contact.cluster_id)
            ).all()
            statement = upsert(t.relay_instances).values(row)
            connection.execute(
                statement.on_conflict_do_update(index_elements=["cluster_id", "instance"], set_=row)
            )
            connection.execute(
                sa.delete(t.relay_instances).where(
                    instances.cluster_id == contact.cluster_id, instances.instance.not_in(kept)
                )
            )
            news = []
            if contact.instance not in {row.instance for row in before}:
                news.append("an instance that was not seen before")
            # By network: an IPv6 machine changes its address within its network daily (RFC 8981).
            if place_of(contact.address) not in {place_of(row.address) for row in before}:
                known_from = ", ".join(sorted({row.address for row in before})[:5]) or "none"
                news.append(f"an address that was not seen before (known: {known_from})")
            return "; ".join(news)

    def relay_disconnected(self, cluster_id: str, instance: str, boot: str) -> None:
        """Store that a relay instance disconnected; a later boot of the same instance is not changed."""
        now = self._clock()
        with self._transaction() as connection:
            connection.execute(
                _relay_instance(cluster_id, instance)
                .where(t.relay_instances.c.boot == boot)
                .values(last_seen_at=now, disconnected_at=now)
            )

    def clusters_seen(self, since: float) -> set[str]:
        """The ids of the clusters with a relay that was last seen after `since`."""
        seen = t.relay_instances.c
        with self._transaction() as connection:
            return set(connection.scalars(sa.select(seen.cluster_id).where(seen.last_seen_at > since)))

    def close_relays(self) -> None:
        """Mark all relays as disconnected: at a hub's start none is connected yet."""
        with self._transaction() as connection:
            connection.execute(
                sa.update(t.relay_instances)
                .where(t.relay_instances.c.disconnected_at.is_(None))
                .values(disconnected_at=t.relay_instances.c.last_seen_at)
            )

    # -- use

    def note_use(
        self,
        *,
        agents: Mapping[str, float],
        credentials: Mapping[str, float],
        admin_tokens: Mapping[str, float],
        relays: Mapping[tuple[str, str], float],
        trail: TrailMark | None = None,
    ) -> None:
        """Store the last-used times by id, for relays by cluster id and instance.

        Also stores the trail's highest number.
        """
        with self._transaction() as connection:
            for table, used in (
                (t.agents, agents),
                (t.api_keys, credentials),
                (t.agent_keys, credentials),
                (t.federation_rules, credentials),
                (t.admin_tokens, admin_tokens),
            ):
                for row_id, at in used.items():
                    connection.execute(sa.update(table).where(table.c.id == row_id).values(last_used_at=at))
            for (cluster_id, instance), at in relays.items():
                connection.execute(_relay_instance(cluster_id, instance).values(last_seen_at=at))
            if trail is not None:
                known = t.audit_trail.c
                # Skip a trail that was replaced meanwhile, and a number below the stored one.
                connection.execute(
                    sa.update(t.audit_trail)
                    .where(known.id == trail.id, known.highest < trail.highest)
                    .values(highest=trail.highest)
                )

    # -- the audit trail

    def accept_trail(self, trail: TrailMark | None) -> None:
        """Accept this trail as the hub's from now on; with None, the next start accepts any trail."""
        with self._transaction() as connection:
            connection.execute(sa.delete(t.audit_trail))
            if trail is not None:
                connection.execute(sa.insert(t.audit_trail).values(attrs.asdict(trail)))

    # -- admin tokens

    def add_admin_token(
        self, name: str, token_hash: str, *, role: Role, expires_at: float | None = None
    ) -> str:
        """Add a token of the admin API and return its id; raises InvalidError, ConflictError."""
        check_name("token name", name)
        if name == LOCAL_TOKEN_NAME:
            raise InvalidError(f"the name {name} is reserved for the hub's own token: choose another name")
        with self._transaction() as connection:
            step = f": `hawse admin token remove {name}` removes it, so that you can add a new one"
            refuse_taken(connection, t.admin_tokens, "token", name, next_step=step)
            return self._insert_admin_token(connection, name, token_hash, role, expires_at)

    def put_local_token(self, token_hash: str) -> str:
        """Replace the token of the hub's own machine, and return the new one's id."""
        with self._transaction() as connection:
            connection.execute(sa.delete(t.admin_tokens).where(t.admin_tokens.c.name == LOCAL_TOKEN_NAME))
            return self._insert_admin_token(connection, LOCAL_TOKEN_NAME, token_hash, Role.ADMIN, None)

    def _insert_admin_token(
        self, connection: sa.Connection, name: str, token_hash: str, role: Role, expires_at: float | None
    ) -> str:
        token_id = new_id()
        connection.execute(
            sa.insert(t.admin_tokens).values(
                id=token_id,
                name=name,
                hash=token_hash,
                role=role,
                role_chosen=True,
                created_at=self._clock(),
                expires_at=expires_at,
            )
        )
        return token_id

    def remove_admin_token(self, name: str, *, at: float) -> str:
        """Revoke a token of the admin API and return its id.

        Raises NotFoundError, and ConflictError for the last token with the role admin that was valid `at` the
        time of the request. A removal that was kept in the reserve runs again later, and must not be refused
        then, even if the other admin token has expired meanwhile.
        """
        tokens = t.admin_tokens.c
        good = sa.and_(tokens.role == Role.ADMIN, sa.or_(tokens.expires_at.is_(None), tokens.expires_at > at))
        with self._transaction() as connection:
            token = find(connection, t.admin_tokens, "token", name)
            admins = connection.scalars(sa.select(tokens.id).where(good).limit(2)).all()
            if list(admins) == [token.id]:
                raise ConflictError(
                    f"token {name} is the last one with the role admin: add another first "
                    "(hawse admin token add NAME --role admin), or no one can administer"
                )
            connection.execute(sa.delete(t.admin_tokens).where(tokens.id == token.id))
            return str(token.id)


def _set_teams(connection: sa.Connection, agent_id: str, names: Iterable[str]) -> None:
    distinct = tuple(dict.fromkeys(names))
    if not distinct:
        raise InvalidError(
            "an agent needs at least one team, because its rights in clusters come from its groups: "
            "add another team in the same command, or remove or lock the agent"
        )
    if len(distinct) > TEAMS_MAX:
        raise InvalidError(f"{len(distinct)} teams exceed the {TEAMS_MAX} that an agent may have")
    for name in distinct:
        team = find(connection, t.teams, "team", name)
        connection.execute(sa.insert(t.agent_teams).values(agent_id=agent_id, team_id=team.id))


def _pair(connection: sa.Connection, cluster: str, team: str) -> tuple[str, str]:
    return str(find(connection, t.clusters, "cluster", cluster).id), str(
        find(connection, t.teams, "team", team).id
    )


def _grant(cluster_id: str, team_id: str) -> sa.Select[tuple[object, ...]]:
    return sa.select(t.cluster_grants).where(
        t.cluster_grants.c.cluster_id == cluster_id, t.cluster_grants.c.team_id == team_id
    )


def _relay_instance(cluster_id: str, instance: str) -> sa.Update:
    return sa.update(t.relay_instances).where(
        t.relay_instances.c.cluster_id == cluster_id, t.relay_instances.c.instance == instance
    )


def _some(names: Iterable[str]) -> str:
    """List names, but not thousands of them."""
    listed = list(names)
    rest = f" and {len(listed) - 10} more" if len(listed) > 10 else ""
    return f"agent{'s' if len(listed) > 1 else ''} {', '.join(listed[:10])}{rest}"
