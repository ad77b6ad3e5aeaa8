"""The table `hubs`: one row for each hub process, which is its lease.

Synchronous, for one thread at a time. A renewal is a commit that waits for the standby, if there is one: a
primary that its standby has left renews no lease. The statement behind it reads the rows of all hubs and the
directory's version, in the same round trip.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Collection, Sequence

import attrs

from audit.postgres import arrays
from audit.postgres import statements as trail
from audit.postgres.link import Call, Conninfo, Link, Lost, Refused, Rows, Statement, integer_of, text_of
from proxy.hub.membership.member import ENDED, Member, MemberState
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.migrations import HEAD
from proxy.hub.store.versions.version import Version

# A round trip takes milliseconds. A renewal that takes longer is tried again on another connection.
ANSWER_S = 2.0
# Other hubs ask an ended one for its state until its relays have resumed or begun sessions elsewhere.
ENDED_KEPT_S = 600

_float8 = struct.Struct("!d").pack
_NOW = "extract(epoch FROM clock_timestamp())::float8"
_RUNNING = "state IN ('serving', 'leaving')"


def _statement(name: str, sql: str) -> Statement:
    return Statement(name.encode(), sql.encode())


_RENEW = _statement(
    "renew",
    f"UPDATE hubs SET state = $2::text, applied = $3::bigint, tunnels = $4::int, calls = $5::int, "  # noqa: S608
    f"unreachable = $6::text, renewed_at = {_NOW} WHERE boot = $1::text AND {_RUNNING}",
)
_COLUMNS = (
    "hub", "boot", "epoch", "address", "certificate", "software", "links", "state", "applied", "tunnels",
    "calls", "unreachable", "started_at", "stale_s", "stale_streams_s", "place", "renewed_at",
)  # fmt: skip
_READ: Call = (
    _statement(
        "read",
        f"SELECT {', '.join(f'h.{name}' for name in _COLUMNS)}, {_NOW} - h.renewed_at, "  # noqa: S608
        "CASE WHEN e.closed THEN 'closed' WHEN e.closed IS NULL THEN 'lost' ELSE 'open' END, "
        "d.version, d.nonce FROM directory d CROSS JOIN hubs h "
        "LEFT JOIN trail_epochs e ON e.epoch = h.epoch AND e.boot = h.boot ORDER BY h.epoch",
    ),
    (),
)
_JOIN = _statement(
    "join",
    "INSERT INTO hubs (boot, hub, epoch, address, certificate, software, revision, links, place, stale_s, "  # noqa: S608
    "stale_streams_s, state, applied, tunnels, calls, unreachable, started_at, renewed_at) "
    "VALUES ($1::text, $2::text, $3::int, $4::text, $5::text, $6::text, $7::text, $8::int, $9::text, "
    f"$10::float8, $11::float8, 'serving', $12::bigint, 0, 0, '', {_NOW}, {_NOW})",
)
# The earlier processes of this folder that do not run any more, as the kernel's locks show.
_BURY = _statement(
    "bury",
    f"UPDATE hubs SET state = 'dead', certificate = '' WHERE place = $1::text AND {_RUNNING} "  # noqa: S608
    "AND NOT boot = ANY ($2::text[])",
)
_MARK_DEAD = _statement(
    "mark_dead",
    f"UPDATE hubs SET state = 'dead', certificate = '' WHERE boot = $1::text AND {_RUNNING} "  # noqa: S608
    "AND renewed_at = $2::float8 RETURNING boot",
)
_GO = _statement(
    "go",
    f"UPDATE hubs SET state = 'gone', certificate = '', renewed_at = {_NOW} "  # noqa: S608
    f"WHERE boot = $1::text AND {_RUNNING}",
)
_FORGET: Call = (
    _statement(
        "forget",
        f"DELETE FROM hubs h WHERE NOT {_RUNNING} AND renewed_at < {_NOW} - {ENDED_KEPT_S} "  # noqa: S608
        "AND NOT EXISTS (SELECT FROM trail_epochs e WHERE e.epoch = h.epoch AND NOT e.closed)",
    ),
    (),
)
_STATE = _statement("", "SELECT hub, state FROM hubs WHERE boot = $1::text")


@attrs.frozen
class Row:
    """The row of a hub process."""

    member: Member
    place: str
    renewed_at: str
    """As the database prints it: equal texts are equal times."""
    epoch: str
    """Whether its epoch of the trail is `open`, `closed`, or `lost` by the database."""

    @property
    def is_unsettled(self) -> bool:
        """Whether the process has ended and its calls may lack their ends."""
        return self.member.state in ENDED and self.epoch == "open"

    @property
    def is_old(self) -> bool:
        """Whether it can be deleted."""
        return self.member.state in ENDED and not self.is_unsettled and self.member.age_s > ENDED_KEPT_S


@attrs.frozen
class Reading:
    """The rows of all hubs, by epoch, and what belongs to the statement that has read them."""

    sent_s: float
    """When it was sent, on the monotonic clock."""
    connection: int
    """The number of its connection."""
    version: Version | None
    """The directory's; None if there is no hub."""
    rows: Sequence[Row]

    def of(self, boot: str) -> Row | None:
        """Return the row of a boot."""
        return next((row for row in self.rows if row.member.boot == boot), None)


@attrs.define(eq=False)
class MembersTable:
    """The table in the database of `conninfo`; every method raises StoreUnavailableError."""

    _conninfo: Conninfo
    _link: Link | None = attrs.field(init=False, default=None)
    _connections: int = attrs.field(init=False, default=0)

    def read(self) -> Reading:
        """Read all rows."""
        return self._reading([])

    def join(self, me: Member, place: str, running: Collection[str]) -> int:
        """Add a row, with an epoch of the trail, which is returned.

        `running` are the boots of this folder that run. Its others are dead from now on.
        """
        boots = arrays.texts(sorted({*running, me.boot}))
        self._run([trail.BEGIN, trail.lock(0), trail.add_epoch(me.boot), (_BURY, (place.encode(), boots))])
        epoch = integer_of(self._run([trail.find_epoch(me.boot)])[0][0][0])
        row = (
            *(me.boot.encode(), me.hub.encode(), arrays.int4(epoch), me.address.encode()),
            *(me.certificate.encode(), me.software.encode(), HEAD.encode(), arrays.int4(me.links)),
            *(place.encode(), _float8(me.stale_s), _float8(me.stale_streams_s), arrays.int8(me.applied)),
        )
        self._run([(_JOIN, row), trail.COMMIT])
        return epoch

    def renew(self, me: Member) -> Reading:
        """Renew the lease, and read all rows. A row that has ended or is missing stays so."""
        row = (
            *(me.boot.encode(), me.state.encode(), arrays.int8(me.applied), arrays.int4(me.tunnels)),
            *(arrays.int4(me.calls), ",".join(me.unreachable).encode()),
        )
        return self._reading([(_RENEW, row)])

    def mark_dead(self, overdue: Sequence[Row]) -> list[str]:
        """Mark hubs as dead whose leases have not been renewed since the reading; returns their boots."""
        calls: list[Call] = [
            (_MARK_DEAD, (row.member.boot.encode(), _float8(float(row.renewed_at)))) for row in overdue
        ]
        return [text_of(boot) for rows in self._run(calls) for (boot,) in rows]

    def forget(self) -> None:
        """Delete the rows of hubs that have ended long ago."""
        self._run([_FORGET])

    def go(self, boot: str) -> None:
        """Mark this hub as gone."""
        self._run([(_GO, (boot.encode(),))])

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _reading(self, before: Sequence[Call]) -> Reading:
        sent_s = time.monotonic()
        found = self._run([*before, _READ])[-1]
        version = Version(integer_of(found[0][-2]), text_of(found[0][-1])) if found else None
        return Reading(sent_s, self._connections, version, _rows(found))

    def _run(self, calls: Sequence[Call]) -> list[Rows]:
        try:
            if self._link is None or self._link.closed:
                self._link = None
                self._link = Link(self._conninfo)
                self._connections += 1
            return self._link.run(calls, time.monotonic() + ANSWER_S)
        except (Lost, Refused) as error:
            raise StoreUnavailableError(f"the lease in PostgreSQL cannot be renewed: {error}") from error


def read_state(conninfo: Conninfo, boot: str) -> tuple[str, MemberState] | None:
    """Return the hub id and the state of a boot, by a connection of its own; raises Lost and Refused."""
    link = Link(conninfo)
    try:
        found = link.run([(_STATE, (boot.encode(),))], time.monotonic() + ANSWER_S)[0]
    finally:
        link.close()
    return (text_of(found[0][0]), MemberState(text_of(found[0][1]))) if found else None


def _rows(found: Rows) -> list[Row]:
    return [_row(dict(zip((*_COLUMNS, "age_s", "trail"), map(text_of, row), strict=False))) for row in found]


def _row(texts: dict[str, str]) -> Row:
    member = Member(
        hub=texts["hub"],
        boot=texts["boot"],
        epoch=int(texts["epoch"]),
        address=texts["address"],
        certificate=texts["certificate"],
        software=texts["software"],
        links=int(texts["links"]),
        state=MemberState(texts["state"]),
        applied=int(texts["applied"]),
        tunnels=int(texts["tunnels"]),
        calls=int(texts["calls"]),
        unreachable=tuple(filter(None, texts["unreachable"].split(","))),
        started_at=float(texts["started_at"]),
        # A server that took over may have a clock that is behind.
        age_s=max(float(texts["age_s"]), 0.0),
        stale_s=float(texts["stale_s"]),
        stale_streams_s=float(texts["stale_streams_s"]),
    )
    return Row(member, texts["place"], texts["renewed_at"], texts["trail"])
