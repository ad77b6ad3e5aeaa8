"""The tunnels of all hubs on one PostgreSQL, and which relay may have another one.

A dial is decided in one transaction, which locks the row of its cluster: of two hubs that admit relays of one
cluster at once, the second one sees what the first one has decided. A transaction is for many dials, so that
they share a commit. It locks the clusters in the order of their ids, so that two hubs do not deadlock.

A tunnel takes a slot of its cluster until it leaves or ends, or its hub's lease ends.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

import attrs
import sqlalchemy as sa

from proxy.hub.membership.member import ENDED, LIVING_MARGIN_S
from proxy.hub.store.clusters import RelayContact, Relays, relay_instance
from proxy.hub.store.database import insert_into
from proxy.hub.store.migrations import postgres_tables as p
from proxy.hub.store.migrations import tables as t


@attrs.frozen
class Tunnel:
    """A relay's session at one of the hubs."""

    session: str
    contact: RelayContact
    kid: str
    """The id of the relay key that it authenticated with."""
    hub_boot: str
    """The hub process that has it."""
    connected_at: float
    """Epoch seconds."""
    leaving: bool = False
    """It takes no slot: the relay drains, or another one has taken its slot."""

    @property
    def key(self) -> tuple[str, str]:
        """The cluster's id and the relay's instance."""
        return self.contact.cluster_id, self.contact.instance


@attrs.frozen
class Standing:
    """A tunnel, and the state of its hub."""

    tunnel: Tunnel
    hub: str
    """The id of its hub."""
    living: bool
    """Whether the lease of its hub process holds."""


@attrs.frozen
class Dial:
    """A relay that asks for a slot."""

    tunnel: Tunnel
    silent: frozenset[str] = frozenset()
    """The sessions of conflicting relays that did not answer."""


@attrs.frozen
class Admission:
    """The decision about a dial."""

    conflicts: tuple[Standing, ...] = ()
    """The tunnels because of which it is refused; none if it is admitted."""
    displaced: tuple[str, ...] = ()
    """The sessions that lose their slots to it."""
    news: str = ""
    """What is new about the relay, as Relays.relay_connected describes it."""


def decide(dial: Dial, taken: Iterable[Standing], relays_per_cluster: int) -> Admission:
    """Decide about a dial by the tunnels that have a slot of its cluster.

    Another process of the same instance conflicts with it. So do all relays, if it is one too many. A
    process takes one slot, whatever the number of its tunnels. A relay that does not answer, or whose hub's
    lease has ended, loses its slot if there is no other.
    """
    contact = dial.tunnel.contact
    others: dict[str, list[Standing]] = defaultdict(list)
    for each in taken:
        if each.tunnel.session != dial.tunnel.session:
            others[each.tunnel.contact.instance].append(each)
    if same := others.get(contact.instance):
        rivals = [each for each in same if each.tunnel.contact.boot != contact.boot]
        if firm := [each for each in rivals if _is_firm(each, dial)]:
            return Admission(conflicts=tuple(firm))
        return Admission(displaced=tuple(each.tunnel.session for each in rivals))
    missing = len(others) - relays_per_cluster + 1
    if missing <= 0:
        return Admission()
    weak = [tunnels for tunnels in others.values() if not any(_is_firm(each, dial) for each in tunnels)]
    if len(weak) < missing:
        return Admission(
            conflicts=tuple(each for tunnels in others.values() for each in tunnels if _is_firm(each, dial))
        )
    weak.sort(key=_last_choice)
    return Admission(displaced=tuple(each.tunnel.session for tunnels in weak[:missing] for each in tunnels))


def _is_firm(each: Standing, dial: Dial) -> bool:
    return each.living and each.tunnel.session not in dial.silent


def _last_choice(tunnels: Sequence[Standing]) -> tuple[bool, float]:
    # Those of ended leases first, then the earliest.
    return any(each.living for each in tunnels), max(each.tunnel.connected_at for each in tunnels)


class Tunnels(Relays):
    """The tunnels of all hubs, with a connection of its own: a dial does not wait for operators' changes."""

    def change_tunnels(
        self,
        dials: Sequence[Dial] = (),
        *,
        left: Collection[Tunnel] = (),
        ended: Collection[Tunnel] = (),
        relays_per_cluster: int,
    ) -> list[Admission]:
        """Decide about dials, in their order, after the tunnels that leave, and those that have ended.

        Returns a decision for each dial. All of it may be repeated if its commit was not answered. A cluster
        that was just removed has no tunnels, which is no error. Raises StoreUnavailableError.
        """
        with self._note() as connection:
            concerned = {each.contact.cluster_id for each in (*left, *ended)}
            known = _lock(connection, concerned.union(dial.tunnel.contact.cluster_id for dial in dials))
            _leave(connection, [each.session for each in left])
            self._end(connection, ended)
            taken = _taken(connection, known)
            admissions: list[Admission] = []
            for dial in dials:
                cluster_id = dial.tunnel.contact.cluster_id
                slots = taken[cluster_id]
                admission = decide(dial, slots.values(), relays_per_cluster)
                admissions.append(admission)
                if not admission.conflicts and cluster_id in known:
                    for session in admission.displaced:
                        del slots[session]
                    slots[dial.tunnel.session] = Standing(dial.tunnel, "", living=True)
            _leave(connection, [session for each in admissions for session in each.displaced])
            self._insert(connection, dials, admissions, known)
            return admissions

    def _insert(
        self,
        connection: sa.Connection,
        dials: Sequence[Dial],
        admissions: list[Admission],
        known: Collection[str],
    ) -> None:
        """Insert the tunnels that are admitted, and set what is new about their relays."""
        # In the order in which hubs note when relays were last seen: see Store.note_use.
        for i in sorted(range(len(dials)), key=lambda i: dials[i].tunnel.key):
            tunnel = dials[i].tunnel
            if admissions[i].conflicts or tunnel.contact.cluster_id not in known:
                continue
            insert = insert_into(connection, p.tunnels).values(_row(tunnel))
            connection.execute(insert.on_conflict_do_nothing(index_elements=["session"]))
            news = self._note_connected(connection, tunnel.contact)
            admissions[i] = attrs.evolve(admissions[i], news=news)

    def _end(self, connection: sa.Connection, ended: Collection[Tunnel]) -> None:
        """Delete tunnels, and note that the relays which have no other one are disconnected."""
        if not ended:
            return
        tunnels, now = p.tunnels.c, self._clock()
        connection.execute(sa.delete(p.tunnels).where(tunnels.session.in_([each.session for each in ended])))
        for tunnel in sorted(ended, key=lambda each: each.key):
            cluster_id, instance = tunnel.key
            others = sa.select(tunnels.session).where(
                tunnels.cluster_id == cluster_id, tunnels.instance == instance
            )
            connection.execute(
                relay_instance(cluster_id, instance)
                .where(t.relay_instances.c.boot == tunnel.contact.boot, ~sa.exists(others))
                .values(last_seen_at=now, disconnected_at=now)
            )

    def close_ended(self) -> None:
        """Delete the tunnels of hubs that have ended, and note the relays that have none.

        No decision needs it, since such tunnels take no slot. Raises StoreUnavailableError.
        """
        tunnels, instances = p.tunnels.c, t.relay_instances.c
        # Another hub may do the same now.
        ended = (
            sa.select(tunnels.session)
            .join(p.hubs, p.hubs.c.boot == tunnels.hub_boot)
            .where(p.hubs.c.state.in_(ENDED))
            .with_for_update(of=p.tunnels, skip_locked=True)
        )
        key = sa.tuple_(instances.cluster_id, instances.instance)
        here = sa.exists().where(
            tunnels.cluster_id == instances.cluster_id, tunnels.instance == instances.instance
        )
        left = (
            sa.select(instances.cluster_id, instances.instance)
            .where(instances.disconnected_at.is_(None), ~here)
            # In the order of all who write them.
            .order_by(instances.cluster_id, instances.instance)
            .with_for_update()
        )
        with self._note() as connection:
            connection.execute(sa.delete(p.tunnels).where(tunnels.session.in_(ended)))
            connection.execute(
                sa.update(t.relay_instances)
                .where(key.in_(left))
                .values(disconnected_at=instances.last_seen_at)
            )

    def tunnels_of(self, hub_boot: str) -> dict[str, Tunnel]:
        """The tunnels of a hub process, by session; raises StoreUnavailableError."""
        with self._read() as connection:
            rows = connection.execute(sa.select(p.tunnels).where(p.tunnels.c.hub_boot == hub_boot))
            return {row.session: _tunnel(row) for row in rows}

    def tunnels(self) -> list[Standing]:
        """The tunnels of all hubs, also those that leave; raises StoreUnavailableError."""
        with self._read() as connection:
            return [_standing(row) for row in connection.execute(_STANDING)]


# By the database's clock, as the leases are.
_NOW_S = sa.func.extract("epoch", sa.func.clock_timestamp())
_ENDS_AT = p.hubs.c.renewed_at + p.hubs.c.stale_s + LIVING_MARGIN_S
_LIVING = sa.and_(p.hubs.c.state.not_in(ENDED), _ENDS_AT > _NOW_S)
_STANDING = sa.select(p.tunnels, p.hubs.c.hub, _LIVING.label("living")).join(
    p.hubs, p.hubs.c.boot == p.tunnels.c.hub_boot
)


def _lock(connection: sa.Connection, cluster_ids: Collection[str]) -> set[str]:
    """Lock the clusters' rows, in the order of their ids; returns those that exist."""
    clusters = t.clusters.c
    query = sa.select(clusters.id).where(clusters.id.in_(cluster_ids)).order_by(clusters.id)
    return set(connection.scalars(query.with_for_update(key_share=True)))


def _leave(connection: sa.Connection, sessions: Collection[str]) -> None:
    if sessions:
        leaving = sa.update(p.tunnels).where(p.tunnels.c.session.in_(sessions))
        connection.execute(leaving.values(leaving=True))


def _taken(connection: sa.Connection, cluster_ids: Collection[str]) -> dict[str, dict[str, Standing]]:
    """The tunnels that have a slot, by cluster and session; the earliest first."""
    found: dict[str, dict[str, Standing]] = defaultdict(dict)
    tunnels = p.tunnels.c
    query = _STANDING.where(tunnels.cluster_id.in_(cluster_ids), ~tunnels.leaving)
    for row in connection.execute(query.order_by(tunnels.connected_at, tunnels.session)):
        found[row.cluster_id][row.session] = _standing(row)
    return found


def _row(tunnel: Tunnel) -> dict[str, object]:
    contact = tunnel.contact
    return {
        "session": tunnel.session,
        "cluster_id": contact.cluster_id,
        "instance": contact.instance,
        "boot": contact.boot,
        "version": contact.version,
        "address": contact.address,
        "kid": tunnel.kid,
        "hub_boot": tunnel.hub_boot,
        "connected_at": tunnel.connected_at,
        "leaving": tunnel.leaving,
    }


def _tunnel(row: sa.Row[tuple[object, ...]]) -> Tunnel:
    contact = RelayContact(row.cluster_id, row.instance, row.boot, row.version, row.address)
    return Tunnel(row.session, contact, row.kid, row.hub_boot, row.connected_at, row.leaving)


def _standing(row: sa.Row[tuple[object, ...]]) -> Standing:
    return Standing(_tunnel(row), row.hub, row.living)
