"""Stores events in one SQLite file, as rows in sequence order that never change.

Only the beginning can be removed (audit.retention).

All writes use one connection, with one transaction per batch. WAL with `synchronous=FULL` means that a commit
that returned has reached the disk. With BEGIN IMMEDIATE, a second writer waits for busy_timeout instead of
failing halfway. Second writers are the operator's `hawse audit`, which records its reads, and the hub that
this one replaces. Reads use connections of their own (audit.reader).

A batch is inserted by a few statements of many rows, never one per row. The driver releases the interpreter
lock around each step of SQLite, and a busy event loop is slow to give it back. Row by row, that costs 40-55
µs of CPU per event beside such a loop; statements of many rows cost a fifth of it.

audit.schema defines the file's tables.

The store only continues the trail that this hub has been writing. It recognises the trail by its id and its
highest number, which never decreases: an older copy has a lower one. Both are checked when the file is
opened, and the number again with each batch. The file itself is checked with each batch, by its inode and by
its size, which never shrinks. Writes of other processes of this trail only increase these values.
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from functools import cache
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import msgspec
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from audit import blocks, lateends, schema
from audit.errors import AnotherTrail, AuditUnavailable
from audit.file import translated, url
from audit.mask import Masks
from audit.reader import STORED, body_of
from audit.record import Event, Phase
from audit.schema import common_parts, events, microseconds, open_intents
from audit.shared import CommonParts, own_part
from audit.shares import PAGE_BYTES, Agent, shares

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

T = TypeVar("T")


@attrs.frozen
class TrailMark:
    """Identifies a trail and its progress."""

    id: str
    highest: int
    """The number of an event that the trail has contained."""


# A reader's event or a checkpoint takes milliseconds. Longer than this means that the disk has a problem.
BUSY_TIMEOUT_MS = 5000
# A statement has at most 32,766 values (SQLite's default); a longer batch takes several.
_STATEMENT_ROWS_MAX = 256
# Statement lengths are 1 to 15 rows and the multiples of this: 31 statements; the driver caches 128.
_ROWS_STEP = 16
# Selects the number of the common part from a row's values.
_COMMON_OF = itemgetter(-1)


class AuditStore:
    """The trail in the file at `path`; synchronous, and for one thread at a time.

    Raises AuditUnavailable from every method if the file cannot be used; the next call retries.
    """

    def __init__(
        self,
        path: Path,
        masks: Masks | None = None,
        *,
        bytes_max: int | None = None,
        make: bool = True,
        expected: TrailMark | None = None,
    ) -> None:
        """Open the trail for writing, and create the file (0600) and its tables if they are missing.

        `bytes_max` bounds the file; at the bound the store behaves as on a full disk. With `make=False`, or
        if a trail is `expected`, a missing file is an error: the trail must exist somewhere else. Raises
        AnotherTrail for any other trail than the expected one, and for an older copy of it.
        """
        self.path = path
        self._masks = masks if masks is not None else Masks()
        self._bytes_max = bytes_max
        self._connection: sa.Connection | None = None
        self._file = (0, 0)
        self._size_bytes = 0
        self._wal: tuple[int, int] | None = None
        self._overwritten = False
        # "" until the trail is opened for the first time.
        self._id, self._highest = (expected.id, expected.highest) if expected is not None else ("", 0)
        # The calls without an end, each with the number of its first row.
        self._open_intents: dict[str, int] = {}
        self._common = CommonParts()
        self._filling = blocks.Filling()
        self._engine = sa.create_engine(
            # SQLite must not create a file: if a disk is not mounted, events would go to the mount point and
            # be lost to view.
            url(path, "rw"),
            poolclass=NullPool,
            # Opened by the thread that constructs the store, used by the writer's.
            connect_args={"check_same_thread": False},
        )
        sa.event.listen(self._engine, "connect", self._on_connect)
        sa.event.listen(self._engine, "begin", _begin_immediate)
        with translated(path):
            if expected is not None and not path.exists():
                raise missing(path)
            if make:
                _make(path)
            self._connected()

    @property
    def mark(self) -> TrailMark:
        """The trail's identity and progress as of the last batch; callable from any thread."""
        return TrailMark(self._id, self._highest)

    def expect(self, mark: TrailMark) -> None:
        """Accept the trail with this mark, on an operator's word; callable from any thread."""
        self._id, self._highest = mark.id, mark.highest
        # Forces the next batch to open the file again, and to accept the -wal beside it.
        self._file, self._wal = (0, 0), None

    def accept(self, make_event: Callable[[TrailMark], Event]) -> TrailMark:
        """Give this file a new trail id, and write an event into it; returns its mark.

        If it is interrupted, the file has a new id and no event, and no hub accepts it.
        """
        with translated(self.path), self._transaction() as connection:
            connection.execute(sa.update(schema.trail).values(id=str(uuid.uuid4())))
        self._id = ""
        self.close()
        with translated(self.path):
            self._connected()
        self.append([make_event(self.mark)])
        return self.mark

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        connection, self._connection = self._connection, None
        self._common.forget()
        self._filling.forget()
        if connection is not None:
            connection.close()
        self._engine.dispose()

    def append(self, batch: Sequence[Event], *, boot: str = "") -> dict[Agent, int]:
        """Write the events in one transaction: on the disk if it returns, not at all if it raises.

        At most SPAN_EVENTS events. `boot` names the process that owns the intents among them. Returns how
        many bytes each agent has added to the file.
        """
        return self._append(batch, boot, once=False)

    def append_once(self, batch: Sequence[Event]) -> None:
        """Like `append`, but skips events that the trail already has, by `eid` and phase."""
        self._append(batch, "", once=True)

    def _append(self, batch: Sequence[Event], boot: str, *, once: bool) -> dict[Agent, int]:
        if not batch:
            return {}
        masked = [self._masks.apply(event) for event in batch]
        own = [own_part(event) for event in masked]
        intent, start = Phase.INTENT, Phase.START
        begun = {event.eid for event in masked if event.phase is intent or event.phase is start}
        # Only for calls that began here: most events had no intent, and a lookup costs more than their rows.
        ended = {
            event.eid
            for event in masked
            if (event.eid in self._open_intents or event.eid in begun) and not event.phase.opens
        }
        with translated(self.path), self._batch() as cursor:
            if once:
                present = _already_in(cursor, masked)
                both = [pair for pair in zip(masked, own, strict=True) if pair[0].eid not in present]
                masked, own = [event for event, _ in both], [body for _, body in both]
            newest, highest, version = cursor.execute(_LAST_NUMBERS).fetchone()
            if newest < self._highest:
                raise _older(self.path, newest, self._highest)
            self._common.begin(newest, highest, version, len(masked))
            rows = [self._row(event, body) for event, body in zip(masked, own, strict=True)]
            _insert(cursor, common_parts, self._common.unwritten)
            _insert(cursor, events, rows)
            blocks.note_full(cursor, newest, newest + len(rows), self._filling.add(newest, masked))
            opened: dict[str, int] = {}
            if begun:
                cursor.execute(_INSERT_INTENTS, (boot, newest))
                opened = {event.eid: seq for seq, event in enumerate(masked, newest + 1) if event.phase.opens}
            firsts = [self._open_intents[eid] for eid in ended if eid in self._open_intents]
            if firsts and newest + len(rows) - min(firsts) > lateends.NEAR_EVENTS:
                cursor.execute(lateends.NOTE, (newest, lateends.NEAR_EVENTS))
            for eids in _pieces(sorted(ended)):
                cursor.execute(_forget_intents(len(eids)), tuple(eids))
        self._highest = newest + len(rows)
        if self._wal is None:
            self._wal = _identity_of_wal(self.path)
        self._open_intents |= opened
        for eid in ended:
            self._open_intents.pop(eid, None)
        return shares(masked, own, map(_COMMON_OF, rows), self._common.unwritten)

    def close_unknown(
        self, boot: str, now: datetime, *, is_running: Callable[[str], bool] | None = None
    ) -> int:
        """End the open calls of other boots that no longer run as `unknown`; returns how many there were.

        `is_running` is called for each boot with open calls, except `boot`, the caller's own. Without it, no
        other boot counts as running. The calls happen within the transaction, after the boots are read and
        while no other process can write. So a boot that shows that it runs before its first intent is never
        taken for dead.
        """
        with translated(self.path), self._transaction() as connection:
            others = connection.scalars(
                sa.select(open_intents.c.boot).where(open_intents.c.boot != boot).distinct()
            ).all()
            dead = [other for other in others if is_running is None or not is_running(other)]
            if not dead:
                return 0
            left = connection.execute(
                STORED.add_columns(events.c.agent, events.c.cluster)
                .join(open_intents, open_intents.c.seq == events.c.seq)
                .where(open_intents.c.boot.in_(dead))
                .order_by(open_intents.c.seq)
            ).all()
            phase, ts_us = Phase.UNKNOWN.value, microseconds(now)
            newest = connection.exec_driver_sql(_LAST_NUMBERS).one()[0]
            for rows in _pieces(left):
                values: list[object] = []
                for row in rows:
                    body = as_unknown(body_of(row, self.path), now)
                    values += (row.eid, phase, row.kind, ts_us, row.agent, row.cluster, body, None)
                connection.exec_driver_sql(_insertion(events, len(rows)), tuple(values))
            connection.exec_driver_sql(lateends.NOTE, (newest, lateends.NEAR_EVENTS))
            connection.execute(sa.delete(open_intents).where(open_intents.c.boot.in_(dead)))
        for row in left:
            self._open_intents.pop(row.eid, None)
        return len(left)

    def _row(self, event: Event, own: bytes) -> tuple[Any, ...]:
        """The values of the event's columns, except the number."""
        return (
            event.eid,
            # The same as .value, which is a slower lookup in Python.
            event.phase._value_,
            event.kind._value_,
            microseconds(event.ts),
            event.agent,
            event.cluster_name,
            own,
            self._common.number(event),
        )

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        connection = self._connected()
        try:
            with connection.begin():
                yield connection
        except BaseException:
            self._abandon(connection)
            raise

    @contextmanager
    def _batch(self) -> Iterator[sqlite3.Cursor]:
        """A transaction on the driver's own connection, which costs 25 µs; SQLAlchemy's costs 90."""
        status = self.path.stat()
        if (status.st_dev, status.st_ino) != self._file:
            # SQLite would keep writing to the previous file, which no longer has this name.
            if self._connection is not None:
                self._abandon(self._connection)
            self._overwritten = False
            if self._wal is not None and self._wal == _identity_of_wal(self.path):
                # SQLite would apply its frames to this file, although they belong to another one.
                raise AnotherTrail(
                    f"{self.path} is another file than the one that was open, with the -wal of that beside "
                    f"it: put that file back, or move {self.path.name}-wal and -shm to it"
                )
        elif status.st_size < self._size_bytes:
            # SQLite's cache hides the truncation from SQLite.
            self._overwritten = True
        self._size_bytes = status.st_size
        if self._overwritten:
            raise AnotherTrail(
                f"{self.path} has become smaller while it was open: it was overwritten, or compacted; "
                f"stop the hub and put the right file there, without a -wal beside it, {_OR_ACCEPT}"
            )
        connection = self._connected()
        driver: object = connection.connection.dbapi_connection
        assert isinstance(driver, sqlite3.Connection)
        try:
            # Closed at once: a kept exception would keep the cursor alive, and with it the file's lock.
            with closing(driver.cursor()) as cursor:
                cursor.execute(_BEGIN)
                yield cursor
                driver.commit()
        except BaseException:
            self._abandon(connection)
            raise

    def _connected(self) -> sa.Connection:
        if self._connection is None:
            self._file, self._wal = _identity(self.path), None
            connection = self._engine.connect()
            try:
                with connection.begin():
                    schema.prepare(connection, self.path)
                    self._recognise(connection)
                    opened = connection.execute(sa.select(open_intents.c.eid, open_intents.c.seq))
                self._open_intents.update((row.eid, row.seq) for row in opened)
            except BaseException:
                self._abandon(connection)
                raise
            self._connection = connection
        return self._connection

    def _recognise(self, connection: sa.Connection) -> None:
        """Check that this is the expected trail; a trail without an id gets one if none is expected."""
        found = connection.scalar(sa.select(schema.trail.c.id))
        newest = newest_event(connection)
        if not self._id:
            if found is None:
                found = str(uuid.uuid4())
                connection.execute(sa.insert(schema.trail).values(id=found))
            self._id = found
        else:
            refuse_another(self.path, found, newest, self.mark)
        self._highest = newest

    def _abandon(self, connection: sa.Connection) -> None:
        # The next call opens the file again: it may have been moved, its disk remounted, or replaced by an
        # older copy.
        self._connection = None
        self._common.forget()
        self._filling.forget()
        connection.invalidate()
        connection.close()

    def _on_connect(self, connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        # None: the only transactions are those begun by _begin_immediate.
        connection.isolation_level = None
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        if self._bytes_max is not None:
            cursor.execute(f"PRAGMA max_page_count = {max(1, self._bytes_max // PAGE_BYTES)}")
        cursor.close()


def _pieces(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Split a sequence into pieces of few distinct lengths, so that the statement for each length stays
    prepared.

    The pieces are as few as that permits, since each takes a statement: per _STATEMENT_ROWS_MAX items at most
    one whose length is a multiple of _ROWS_STEP, and one with the rest.
    """
    start = 0
    while start < len(items):
        left = min(_STATEMENT_ROWS_MAX, len(items) - start)
        many = left - left % _ROWS_STEP or left
        yield items[start : start + many]
        start += many


_BEGIN = "BEGIN IMMEDIATE"
# The highest number that each table has ever had, and a value that changes if another connection has written.
# It is one statement, since each is expensive beside a busy event loop. SQLite keeps the highest numbers in a
# table that other processes can empty; then the remaining rows count.
_LAST_NUMBERS = """
SELECT
    max((SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'events'),
        (SELECT coalesce(max(seq), 0) FROM events)),
    max((SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'common_parts'),
        (SELECT coalesce(max(number), 0) FROM common_parts)),
    data_version
FROM pragma_data_version
"""


@cache
def _insertion(table: sa.Table, rows: int) -> str:
    columns = [column.name for column in table.columns if column is not events.c.seq]
    row = ", ".join("?" * len(columns))
    # All of its parts are constants of this program.
    return f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES {', '.join([f'({row})'] * rows)}"  # noqa: S608


def _insert(cursor: sqlite3.Cursor, table: sa.Table, rows: Sequence[tuple[object, ...]]) -> None:
    """Insert rows with all columns except an event's number."""
    for some in _pieces(rows):
        cursor.execute(_insertion(table, len(some)), tuple(chain.from_iterable(some)))


@cache
def _forget_intents(rows: int) -> str:
    return f"DELETE FROM open_intents WHERE eid IN ({', '.join('?' * rows)})"  # noqa: S608


# The rows of one transaction have consecutive numbers, since a transaction has exclusive access to the file.
_INSERT_INTENTS = (
    "INSERT INTO open_intents (eid, seq, boot) "
    "SELECT eid, seq, ? FROM events WHERE seq > ? AND phase IN ('intent', 'start')"
)


def _already_in(cursor: sqlite3.Cursor, batch: Sequence[Event]) -> set[str]:
    """The `eid`s of the events that the trail has, searched from the block of the oldest event on."""
    oldest_us = min(microseconds(event.ts) for event in batch)
    phases = {event.eid: event.phase.value for event in batch}
    rows = cursor.execute(_found(len(phases)), (oldest_us, *phases)).fetchall()
    return {eid for eid, phase in rows if phases[eid] == phase}


@cache
def _found(eids: int) -> str:
    return (
        "SELECT eid, phase FROM events WHERE seq >= "  # noqa: S608
        "coalesce((SELECT min(number) FROM blocks WHERE last_us >= ?), "
        f"(SELECT max(number) + 1 FROM blocks), 0) * {blocks.BLOCK_EVENTS} "
        f"AND eid IN ({', '.join('?' * eids)})"
    )


_OR_ACCEPT = "or run `hawse admin audit accept`, which records the gap"


def missing(path: Path) -> AnotherTrail:
    """The error for a trail that this hub has been writing and that is missing."""
    return AnotherTrail(f"{path} is missing: put it back, {_OR_ACCEPT}")


def refuse_another(path: Path, found: str | None, newest: int, expected: TrailMark) -> None:
    """Raise AnotherTrail unless the file, by its id and its newest event, is the expected trail."""
    if found != expected.id:
        raise AnotherTrail(
            f"{path} is another trail than the one that was written until now: put that back, {_OR_ACCEPT}"
        )
    if newest < expected.highest:
        raise _older(path, newest, expected.highest)


def newest_event(connection: sa.Connection) -> int:
    """The highest number that an event of this trail has had."""
    return int(connection.exec_driver_sql(_LAST_NUMBERS).one()[0])


def refuse_stray_wal(path: Path) -> None:
    """Raise AuditUnavailable if the file was moved away without its -wal, which holds its newest events.

    SQLite deletes an existing -wal beside a new file.
    """
    wal = path.with_name(f"{path.name}-wal")
    # In this order: a process that creates both creates the file first.
    if wal.exists() and wal.stat().st_size and not path.exists():
        raise AuditUnavailable(
            f"{path} is missing, and {wal.name} holds events of it: put the file back, or move that to it"
        )


def _older(path: Path, found: int, expected: int) -> AnotherTrail:
    return AnotherTrail(
        f"{path} is an older copy of the trail, which ends at event {found} of {expected}: "
        f"put the newest back, {_OR_ACCEPT}"
    )


def as_unknown(body: bytes, now: datetime) -> bytes:
    """Make the `unknown` event's JSON from the intent's, as a dict: an older hawse may have written it."""
    event = msgspec.json.decode(body, type=dict[str, object])
    event["phase"] = Phase.UNKNOWN
    event["ts"] = now
    event["note"] = "the hub ended before it could record how this went"
    return msgspec.json.encode(event)


def _make(path: Path) -> None:
    """Create the file if it is missing: SQLite would use the umask for its mode, and -wal and -shm copy the
    mode.

    An existing file is not even opened. POSIX releases a process's locks on a file as soon as the process
    closes any descriptor of it. So another store in this process would lose the locks of its SQLite. The next
    reader in another process would then believe that it is alone, and delete the -wal that events are still
    written to.

    Raises AuditUnavailable beside a -wal of another file.
    """
    refuse_stray_wal(path)
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _identity(path: Path) -> tuple[int, int]:
    """The device and inode of the file with this name; raises OSError if there is none."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _identity_of_wal(path: Path) -> tuple[int, int] | None:
    """The same for the -wal beside it; None if there is none."""
    try:
        return _identity(path.with_name(f"{path.name}-wal"))
    except FileNotFoundError:
        return None


def _begin_immediate(connection: sa.Connection) -> None:
    connection.exec_driver_sql(_BEGIN)
