"""The part of the store that keeps clusters, their grants, and their relays' keys and instances."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

import attrs
import sqlalchemy as sa

from auth.keys import PublicKey
from proxy.hub.store.database import Database, find, insert_into, new_id, refuse_taken
from proxy.hub.store.engines.errors import ConflictError, InvalidError
from proxy.hub.store.entities import Mode, RelayInstance
from proxy.hub.store.migrations import tables as t
from proxy.hub.store.names import PEM_LENGTH_MAX, check_labels, check_name, check_relay_url
from proxy.listener.unauthenticated import network_of

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


class Clusters(Database):
    """Clusters, their grants and relay keys."""

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
        with self._change() as connection:
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
        with self._change() as connection:
            cluster_id, team_id = _pair(connection, cluster, team)
            if connection.execute(_grant(cluster_id, team_id)).first() is not None:
                raise ConflictError(f"cluster {cluster} is granted to team {team} already")
            connection.execute(sa.insert(t.cluster_grants).values(cluster_id=cluster_id, team_id=team_id))
            return cluster_id

    def revoke(self, cluster: str, team: str) -> str:
        """Revoke a team's access to a cluster, and return the cluster's id.

        Raises NotFoundError, ConflictError.
        """
        with self._change() as connection:
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
        with self._change() as connection:
            cluster_id = str(find(connection, t.clusters, "cluster", cluster).id)
            if not keep_old:
                connection.execute(sa.delete(t.relay_keys).where(t.relay_keys.c.cluster_id == cluster_id))
            self._add_relay_key(connection, cluster_id, relay_key)
            return cluster_id

    def drop_old_relay_keys(self, cluster: str) -> list[str]:
        """Remove all keys of a cluster's relay except the newest, and return the kids of the removed ones.

        Raises NotFoundError, and ConflictError when there is only one.
        """
        with self._change() as connection:
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
        with self._change() as connection:
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
        with self._change() as connection:
            cluster = find(connection, t.clusters, "cluster", name)
            if cluster.cluster_uid is None:
                raise ConflictError(f"cluster {name} is not pinned: the next relay that connects pins it")
            connection.execute(
                sa.update(t.clusters).where(t.clusters.c.id == cluster.id).values(cluster_uid=None)
            )
            return str(cluster.cluster_uid)

    def remove_cluster(self, name: str) -> str:
        """Remove a cluster with its grants and keys, and return its id; raises NotFoundError."""
        with self._change() as connection:
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


class Relays(Database):
    """Relay instances: which connected, from where and when."""

    def relay_instances(self, cluster_id: str | None = None) -> list[RelayInstance]:
        """The stored relay instances of a cluster or of all, by cluster and the time they were last seen."""
        query = (
            sa.select(t.relay_instances, t.clusters.c.name.label("cluster"))
            .join(t.clusters)
            .order_by(t.clusters.c.name, t.relay_instances.c.last_seen_at.desc())
        )
        if cluster_id is not None:
            query = query.where(t.relay_instances.c.cluster_id == cluster_id)
        with self._read() as connection:
            return [RelayInstance(**row._mapping) for row in connection.execute(query)]

    def relays_last_seen(self, cluster_ids: Collection[str] | None = None) -> dict[str, float]:
        """When a relay of these clusters, or of all, was last seen; by the cluster's id."""
        seen = t.relay_instances.c
        query = sa.select(seen.cluster_id, sa.func.max(seen.last_seen_at).label("at")).group_by(
            seen.cluster_id
        )
        if cluster_ids is not None:
            query = query.where(seen.cluster_id.in_(cluster_ids))
        with self._read() as connection:
            return {row.cluster_id: row.at for row in connection.execute(query)}

    def relay_connected(self, contact: RelayContact) -> str:
        """Store that a relay instance connected, and return a description of what is new about it.

        Empty when the cluster had this instance and this address before. A cluster that was just removed is
        no error.
        """
        with self._note() as connection:
            known = sa.select(t.clusters.c.id).where(t.clusters.c.id == contact.cluster_id)
            # Locked, so that of two hubs the later one sees the instances of the other.
            if connection.execute(known.with_for_update(key_share=True)).first() is None:
                return ""
            return self._note_connected(connection, contact)

    def _note_connected(self, connection: sa.Connection, contact: RelayContact) -> str:
        """Store a relay instance of a cluster whose row is locked; returns what is new about it."""
        now = self._clock()
        row = {**attrs.asdict(contact), "connected_at": now, "last_seen_at": now, "disconnected_at": None}
        instances = t.relay_instances.c
        kept = (
            sa.select(instances.instance)
            .where(instances.cluster_id == contact.cluster_id)
            .order_by(instances.disconnected_at.is_(None).desc(), instances.last_seen_at.desc())
            .limit(RELAY_INSTANCES_KEPT)
        )
        before = connection.execute(
            sa.select(t.relay_instances).where(instances.cluster_id == contact.cluster_id)
        ).all()
        statement = insert_into(connection, t.relay_instances).values(row)
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
        if network_of(contact.address) not in {network_of(row.address) for row in before}:
            known_from = ", ".join(sorted({row.address for row in before})[:5]) or "none"
            news.append(f"an address that was not seen before (known: {known_from})")
        return "; ".join(news)

    def relay_disconnected(self, cluster_id: str, instance: str, boot: str) -> None:
        """Store that a relay instance disconnected; a later boot of the same instance is not changed."""
        now = self._clock()
        with self._note() as connection:
            connection.execute(
                relay_instance(cluster_id, instance)
                .where(t.relay_instances.c.boot == boot)
                .values(last_seen_at=now, disconnected_at=now)
            )

    def clusters_seen(self, since: float) -> set[str]:
        """The ids of the clusters with a relay that was last seen after `since`."""
        seen = t.relay_instances.c
        with self._read() as connection:
            return set(connection.scalars(sa.select(seen.cluster_id).where(seen.last_seen_at > since)))

    def close_relays(self) -> None:
        """Mark all relays as disconnected: at the start of a hub that is alone, none is connected yet."""
        with self._note() as connection:
            connection.execute(
                sa.update(t.relay_instances)
                .where(t.relay_instances.c.disconnected_at.is_(None))
                .values(disconnected_at=t.relay_instances.c.last_seen_at)
            )


def _pair(connection: sa.Connection, cluster: str, team: str) -> tuple[str, str]:
    return str(find(connection, t.clusters, "cluster", cluster).id), str(
        find(connection, t.teams, "team", team).id
    )


def _grant(cluster_id: str, team_id: str) -> sa.Select[tuple[object, ...]]:
    return sa.select(t.cluster_grants).where(
        t.cluster_grants.c.cluster_id == cluster_id, t.cluster_grants.c.team_id == team_id
    )


def relay_instance(
    cluster_id: str | sa.BindParameter[str], instance: str | sa.BindParameter[str]
) -> sa.Update:
    """Return an update of one relay instance."""
    return sa.update(t.relay_instances).where(
        t.relay_instances.c.cluster_id == cluster_id, t.relay_instances.c.instance == instance
    )
