"""The tables of the trail's file, the triggers that protect them, and the upgrade from earlier versions.

A row of `events` is an event. `common_parts` holds parts that several events share (audit.shared). A row of
`events` without the number of such a part, as earlier versions wrote it, holds the whole event.

`open_intents` is not a record. It lists the calls with a first row (`intent` or `start`) and without an end:
closing them at the next start takes a lookup instead of a search through the whole trail. `blocks`,
`block_names` and `late_ends` are search indexes, not records. `trail` has the trail's id.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from audit.errors import AuditUnavailable

_VERSION = 2
# In this version, every row held the whole event.
WITHOUT_COMMON_PARTS = 1
# An event's common part was written at most this many events before it. A trigger in the file contains this
# number, so changing it requires a new schema version.
SPAN_EVENTS = 10_000

_metadata = sa.MetaData()

# One row: the id that distinguishes this trail from others.
trail = sa.Table(
    "trail", _metadata, sa.Column("id", sa.String(36), primary_key=True), sqlite_with_rowid=False
)
events = sa.Table(
    "events",
    _metadata,
    # AUTOINCREMENT: a sequence number is never reused, even if the newest rows are lost.
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("eid", sa.String(36), nullable=False),
    sa.Column("phase", sa.String(8), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("ts_us", sa.BigInteger, nullable=False),
    sa.Column("agent", sa.String, nullable=False),
    sa.Column("cluster", sa.String, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    # The number of a common part; NULL if the body is the whole event.
    sa.Column("common", sa.Integer),
    sqlite_autoincrement=True,
)
common_parts = sa.Table(
    "common_parts",
    _metadata,
    # AUTOINCREMENT: a removed number must not be reused for another part, since a writer may still have it
    # memoized.
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    # The newest event before this part was written.
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
# The contents of each block (audit.blocks).
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
    # First in the key: searches go from block to block, and the oldest blocks are removed.
    sa.Column("block", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("column", sa.String, primary_key=True),
    sa.Column("name", sa.String, primary_key=True),
    sqlite_with_rowid=False,
)
# The position of a call's last row, if it is far behind the first row (audit.lateends).
late_ends = sa.Table(
    "late_ends",
    _metadata,
    sa.Column("eid", sa.String(36), primary_key=True),
    sa.Column("seq", sa.Integer, nullable=False),
    sqlite_with_rowid=False,
)

# Earlier versions made these; each costs about half a microsecond and a page write per event.
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
    # Protected as long as an event may need it.
    "CREATE TRIGGER IF NOT EXISTS common_parts_never_delete BEFORE DELETE ON common_parts "  # noqa: S608
    f"WHEN OLD.seq >= (SELECT coalesce(min(seq), 0) FROM events) - {SPAN_EVENTS} {_REFUSED}",
)


def version(connection: sa.Connection, path: Path) -> int | None:
    """The version of the file's schema, or 0 if it has none yet.

    Raises AuditUnavailable for an unknown version, since the meaning of its rows is unknown too.
    """
    found: int | None = connection.exec_driver_sql("PRAGMA user_version").scalar()
    if found not in (0, WITHOUT_COMMON_PARTS, _VERSION):
        raise AuditUnavailable(
            f"{path} has schema version {found}, this hawse knows {_VERSION}: use the newer hawse"
        )
    return found


def is_current(connection: sa.Connection, path: Path) -> bool:
    """Whether the file's schema is complete; raises AuditUnavailable for an unknown version."""
    return version(connection, path) == _VERSION


def prepare(connection: sa.Connection, path: Path) -> None:
    """Create missing parts of the schema, in the caller's transaction; write nothing if it is complete.

    Raises AuditUnavailable for an unknown version, and leaves that file unchanged.
    """
    found = version(connection, path)
    _metadata.create_all(connection)
    if found == WITHOUT_COMMON_PARTS:
        connection.exec_driver_sql("ALTER TABLE events ADD COLUMN common INTEGER")
    for index in _UNUSED_INDICES:
        connection.exec_driver_sql(f"DROP INDEX IF EXISTS {index}")
    for trigger in _NEVER_CHANGED:
        connection.exec_driver_sql(trigger)
    # The pragma always writes, so on a full disk it would fail although nothing needs to change.
    if found != _VERSION:
        connection.exec_driver_sql(f"PRAGMA user_version = {_VERSION}")


@contextmanager
def deletable(connection: sa.Connection) -> Iterator[None]:
    """Permit deleting events within the block, in the caller's transaction, which is rolled back if it
    raises.
    """
    connection.exec_driver_sql("DROP TRIGGER events_never_delete")
    yield
    connection.exec_driver_sql(_NEVER_DELETED)


def microseconds(when: datetime) -> int:
    """Convert a time to the trail's format: microseconds since the epoch."""
    since = when - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def moment(ts_us: int) -> datetime:
    """Convert microseconds since the epoch to a time."""
    return _EPOCH + timedelta(microseconds=ts_us)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
