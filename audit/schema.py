"""The tables of the trail's file, what in them is never changed, and what an earlier version's file lacks.

A row of `events` is an event. What events have in common is in `common_parts` once (audit.shared); a row
without a number of such a part, as earlier versions wrote them, has the whole.

`open_intents` is no record but the list of calls with a first row (`intent` or `start`) and without an end:
it makes closing them at the next start a lookup instead of a search through the whole trail. `blocks`,
`block_names` and `late_ends` are no records either: they say where in the trail to search. `trail` has the
trail's id.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from audit.errors import AuditUnavailable
from audit.shared import SPAN_EVENTS

_VERSION = 2
# Every event was whole.
WITHOUT_COMMON_PARTS = 1

_metadata = sa.MetaData()

# One row: by which a trail is known from another one.
trail = sa.Table(
    "trail", _metadata, sa.Column("id", sa.String(36), primary_key=True), sqlite_with_rowid=False
)
events = sa.Table(
    "events",
    _metadata,
    # AUTOINCREMENT: a sequence number is never given twice, even if the newest rows were lost.
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("eid", sa.String(36), nullable=False),
    sa.Column("phase", sa.String(8), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("ts_us", sa.BigInteger, nullable=False),
    sa.Column("agent", sa.String, nullable=False),
    sa.Column("cluster", sa.String, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    # Of a common part; none where the body is the whole.
    sa.Column("common", sa.Integer),
    sqlite_autoincrement=True,
)
common_parts = sa.Table(
    "common_parts",
    _metadata,
    # AUTOINCREMENT: whoever remembers a number that was removed must not find another part under it.
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    # The newest event before it was written.
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)
open_intents = sa.Table(
    "open_intents",
    _metadata,
    sa.Column("eid", sa.String(36), primary_key=True),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("boot", sa.String(36), nullable=False),
    sqlite_with_rowid=False,
)
# What stands in the events of each block (audit.blocks).
blocks = sa.Table(
    "blocks",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("first_us", sa.BigInteger, nullable=False),
    sa.Column("last_us", sa.BigInteger, nullable=False),
)
block_names = sa.Table(
    "block_names",
    _metadata,
    # First: a search goes from block to block, and the oldest are removed.
    sa.Column("block", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("column", sa.String, primary_key=True),
    sa.Column("name", sa.String, primary_key=True),
    sqlite_with_rowid=False,
)
# Where a call has its last row, if that is far behind its first one (audit.lateends).
late_ends = sa.Table(
    "late_ends",
    _metadata,
    sa.Column("eid", sa.String(36), primary_key=True),
    sa.Column("seq", sa.Integer, nullable=False),
    sqlite_with_rowid=False,
)

# Made by earlier versions; each costs an event about half a microsecond, and a page that is written.
_UNUSED_INDICES = (
    "ix_events_eid",
    "events_by_phase",
    "ix_events_ts_us",
    "events_by_agent",
    "events_by_cluster",
)

_REFUSED = "BEGIN SELECT RAISE(ABORT, 'audit events are never changed'); END"
_NEVER_DELETED = f"CREATE TRIGGER IF NOT EXISTS events_never_delete BEFORE DELETE ON events {_REFUSED}"
_NEVER_CHANGED = (
    f"CREATE TRIGGER IF NOT EXISTS events_never_update BEFORE UPDATE ON events {_REFUSED}",
    _NEVER_DELETED,
    f"CREATE TRIGGER IF NOT EXISTS common_parts_never_update BEFORE UPDATE ON common_parts {_REFUSED}",
    # As long as an event may need it.
    "CREATE TRIGGER IF NOT EXISTS common_parts_never_delete BEFORE DELETE ON common_parts "  # noqa: S608
    f"WHEN OLD.seq >= (SELECT coalesce(min(seq), 0) FROM events) - {SPAN_EVENTS} {_REFUSED}",
)


def version(connection: sa.Connection, path: Path) -> int | None:
    """The version of the file's schema, 0 where there is none yet.

    Raises AuditUnavailable for one that is not known, since what its rows say is not known either.
    """
    found: int | None = connection.exec_driver_sql("PRAGMA user_version").scalar()
    if found not in (0, WITHOUT_COMMON_PARTS, _VERSION):
        raise AuditUnavailable(
            f"{path} has schema version {found}, this hawse knows {_VERSION}: use the newer hawse"
        )
    return found


def is_current(connection: sa.Connection, path: Path) -> bool:
    """Whether nothing is missing in the file; raises AuditUnavailable for a version that is not known."""
    return version(connection, path) == _VERSION


def prepare(connection: sa.Connection, path: Path) -> None:
    """Make what is missing in the file, in a transaction of the caller's, and write nothing where nothing is.

    Raises AuditUnavailable for a version that is not known, and leaves that as it is.
    """
    found = version(connection, path)
    _metadata.create_all(connection)
    if found == WITHOUT_COMMON_PARTS:
        connection.exec_driver_sql("ALTER TABLE events ADD COLUMN common INTEGER")
    for index in _UNUSED_INDICES:
        connection.exec_driver_sql(f"DROP INDEX IF EXISTS {index}")
    for trigger in _NEVER_CHANGED:
        connection.exec_driver_sql(trigger)
    # It writes whatever it finds, and would have a full disk refuse what needs no room.
    if found != _VERSION:
        connection.exec_driver_sql(f"PRAGMA user_version = {_VERSION}")


@contextmanager
def deletable(connection: sa.Connection) -> Iterator[None]:
    """Let the block delete events, in a transaction of the caller's that is rolled back when it raises."""
    connection.exec_driver_sql("DROP TRIGGER events_never_delete")
    yield
    connection.exec_driver_sql(_NEVER_DELETED)


def microseconds(when: datetime) -> int:
    """As the trail keeps a time: since the epoch."""
    since = when - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def moment(ts_us: int) -> datetime:
    """The time that `microseconds` has kept."""
    return _EPOCH + timedelta(microseconds=ts_us)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
