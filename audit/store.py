"""Where events stay: one SQLite file, rows in the order of their sequence, never changed.

Only a beginning of it can be removed (audit.retention).

Writes go through one connection, a transaction a batch: WAL with `synchronous=FULL`, so that a commit
that returned has reached the disk, and BEGIN IMMEDIATE, so that a second writer (the operator's
`hawse audit`, which records that it read, or the hub that this one replaces) waits for busy_timeout instead
of failing in the middle.
Reads use connections of their own, opened read-only.

A batch is inserted by a few statements of many rows each, never by one a row. The driver lets go of the
interpreter's lock around each step of SQLite, and a busy event loop does not give it back for a while: row by
row that costs 40-55 µs of CPU an event beside such a loop, by statements of many rows a fifth of it.

The file's tables are those of audit.schema.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import msgspec
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from audit import schema
from audit.errors import AuditUnavailable, NoTrail
from audit.mask import Masks
from audit.record import Event, Kind, Phase
from audit.schema import common_parts, events, open_intents
from audit.shared import CommonParts, members_of, own_part, whole

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

T = TypeVar("T")

# A reader's event or a checkpoint takes milliseconds; longer than this and the disk is in trouble.
BUSY_TIMEOUT_MS = 5000
# Rows a query holds in memory at once; longer answers are read page by page.
PAGE_ROWS_MAX = 1000
# A statement has at most 32,766 values (SQLite's default); a longer batch takes several.
_STATEMENT_ROWS_MAX = 256
# Lengths are 1 to 15, and the multiples of this: 31 statements, which the driver keeps (128 of them).
_ROWS_STEP = 16
# What SQLite makes of a -shm at first, and how it says that it could not.
_SHM_BYTES = 32 * 1024
_SHM_REFUSED = frozenset({sqlite3.SQLITE_IOERR_SHMOPEN, sqlite3.SQLITE_IOERR_SHMSIZE})
# SQLite's default, which a file keeps from the day it is made.
_PAGE_BYTES = 4096


@attrs.frozen
class StoredEvent:
    """A row: its place in the trail and the event's JSON."""

    seq: int
    body: bytes

    @property
    def line(self) -> bytes:
        """The JSON with the sequence number in it, without a newline."""
        return b'{"seq":%d,%s' % (self.seq, self.body[1:])


class AuditStore:
    """The file at `path`; for one thread at a time, and synchronous.

    Raises AuditUnavailable from every method when the file cannot be used; the next call tries anew.
    """

    def __init__(
        self, path: Path, masks: Masks | None = None, *, bytes_max: int | None = None, make: bool = True
    ) -> None:
        """Open the trail for writing, making the file (0600) and its tables where they are missing.

        `bytes_max` bounds the file; at the bound the store behaves as on a full disk. Not to `make` it is
        for who comes after one that did: a file that is missing then is elsewhere.
        """
        self.path = path
        self._masks = masks if masks is not None else Masks()
        self._bytes_max = bytes_max
        self._connection: sa.Connection | None = None
        self._file = (0, 0)
        self._open_intents: set[str] = set()
        self._common = CommonParts()
        self._engine = sa.create_engine(
            # SQLite makes no file: while a disk is not mounted, events would go where nobody sees them later.
            _url(path, "rw"),
            poolclass=NullPool,
            # Opened by the thread that constructs the store, used by the writer's.
            connect_args={"check_same_thread": False},
        )
        sa.event.listen(self._engine, "connect", self._on_connect)
        sa.event.listen(self._engine, "begin", _begin_immediate)
        with translated(path):
            if make:
                _make(path)
            self._connected()

    def close(self) -> None:
        """Close the file; a store that is used again opens it again."""
        connection, self._connection = self._connection, None
        self._common.forget()
        if connection is not None:
            connection.close()
        self._engine.dispose()

    def append(self, batch: Sequence[Event], *, boot: str = "") -> None:
        """Write the events in one transaction; on the disk when it returns, or not at all when it raises.

        At most SPAN_EVENTS of them. `boot` names the process that owns the intents among them.
        """
        if not batch:
            return
        masked = [self._masks.apply(event) for event in batch]
        own = [own_part(event) for event in masked]
        begun = {event.eid for event in masked if event.phase is Phase.INTENT}
        # Only of what began here: most events had no intent, and to look for one costs more than their rows.
        ended = {
            event.eid
            for event in masked
            if event.phase is not Phase.INTENT and (event.eid in self._open_intents or event.eid in begun)
        }
        with translated(self.path), self._batch() as cursor:
            newest, highest, version = cursor.execute(_LAST_NUMBERS).fetchone()
            self._common.begin(newest, highest, version, len(masked))
            rows = [self._row(event, body) for event, body in zip(masked, own, strict=True)]
            _insert(cursor, common_parts, self._common.unwritten)
            _insert(cursor, events, rows)
            if begun:
                cursor.execute(_REMEMBER_INTENTS, (boot, newest))
            for eids in _pieces(sorted(ended)):
                cursor.execute(_forget_intents(len(eids)), tuple(eids))
        self._open_intents |= begun
        self._open_intents -= ended

    def close_unknown(self, boot: str, now: datetime, *, lives: Callable[[str], bool] | None = None) -> int:
        """End the intents of other boots that live no more as `unknown`; returns how many there were.

        `lives` is asked for each boot but `boot`, the caller's own, that has intents without an end; without
        it, none does. It is asked after they were read and while nobody else can write, so a boot whose sign
        of life is there before its first intent is never taken for a dead one.
        """
        with translated(self.path), self._transaction() as connection:
            others = connection.scalars(
                sa.select(open_intents.c.boot).where(open_intents.c.boot != boot).distinct()
            ).all()
            dead = [other for other in others if lives is None or not lives(other)]
            if not dead:
                return 0
            left = connection.execute(
                _STORED.add_columns(events.c.agent, events.c.cluster)
                .join(open_intents, open_intents.c.seq == events.c.seq)
                .where(open_intents.c.boot.in_(dead))
                .order_by(open_intents.c.seq)
            ).all()
            ts_us = microseconds(now)
            for row in left:
                body = _as_unknown(_body(row, self.path), now)
                values = (row.eid, Phase.UNKNOWN.value, row.kind, ts_us, row.agent, row.cluster, body, None)
                connection.exec_driver_sql(_insertion(events, 1), values)
            connection.execute(sa.delete(open_intents).where(open_intents.c.boot.in_(dead)))
        self._open_intents.difference_update(row.eid for row in left)
        return len(left)

    def _row(self, event: Event, own: bytes) -> tuple[object, ...]:
        """The values of its columns, but for the number."""
        return (
            event.eid,
            # As .value, which is looked up in Python.
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
        """A transaction on the driver's own connection, which costs 25 µs where SQLAlchemy's costs 90."""
        if self._connection is not None and _identity(self.path) != self._file:
            # SQLite would write on into the file that was there, where nobody sees it any more.
            self._abandon(self._connection)
        connection = self._connected()
        driver: object = connection.connection.dbapi_connection
        assert isinstance(driver, sqlite3.Connection)
        try:
            # Closed at once: whoever keeps the exception would keep the cursor, and that the file's lock.
            with closing(driver.cursor()) as cursor:
                cursor.execute(_BEGIN)
                yield cursor
                driver.commit()
        except BaseException:
            self._abandon(connection)
            raise

    def _connected(self) -> sa.Connection:
        if self._connection is None:
            self._file = _identity(self.path)
            connection = self._engine.connect()
            try:
                with connection.begin():
                    schema.prepare(connection, self.path)
                    self._open_intents.update(connection.scalars(sa.select(open_intents.c.eid)))
            except BaseException:
                self._abandon(connection)
                raise
            self._connection = connection
        return self._connection

    def _abandon(self, connection: sa.Connection) -> None:
        # The file may have been moved, its disk remounted, or an older copy put in its place: the next call
        # opens it afresh.
        self._connection = None
        self._common.forget()
        connection.invalidate()
        connection.close()

    def _on_connect(self, connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        # None: no transaction but those that begin by _begin_immediate.
        connection.isolation_level = None
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        if self._bytes_max is not None:
            cursor.execute(f"PRAGMA max_page_count = {max(1, self._bytes_max // _PAGE_BYTES)}")
        cursor.close()


@attrs.frozen
class Wanted:
    """Which events somebody asks for: those that match all that is given."""

    agent: str | None = None
    cluster: str | None = None
    kinds: Collection[Kind] = ()
    """Any of these; none given is any at all."""
    since: datetime | None = None
    until: datetime | None = None
    """Not what happened just then, so that two spans that meet have no event in common."""

    def times(self) -> list[sa.ColumnElement[bool]]:
        """What is asked of an event's time."""
        asked = []
        if self.since is not None:
            asked.append(events.c.ts_us >= microseconds(self.since))
        if self.until is not None:
            asked.append(events.c.ts_us < microseconds(self.until))
        return asked

    def matches(self) -> list[sa.ColumnElement[bool]]:
        """All that is asked of an event."""
        asked = self.times()
        if self.agent is not None:
            asked.append(events.c.agent == self.agent)
        if self.cluster is not None:
            asked.append(events.c.cluster == self.cluster)
        if self.kinds:
            asked.append(events.c.kind.in_([kind.value for kind in self.kinds]))
        return asked


EVERYTHING = Wanted()


class AuditReader:
    """The trail as another process reads it beside the hub: read-only, page by page."""

    def __init__(self, path: Path) -> None:
        with translated(path):
            # Path.is_file calls a trail that cannot be looked at one that is not there, from Python 3.14 on.
            try:
                is_file = stat.S_ISREG(path.stat().st_mode)
            except (FileNotFoundError, NotADirectoryError):
                is_file = False
            if not is_file:
                raise NoTrail(f"there is no audit trail at {path}")
        self.path = path
        self._engine = sa.create_engine(_url(path, "ro"))

    def close(self) -> None:
        self._engine.dispose()

    def last(self) -> int:
        """The newest event's number, 0 where there is none."""
        with translated(self.path), self._engine.connect() as connection:
            return self._last(connection)

    def span(self, wanted: Wanted = EVERYTHING, newest: int | None = None) -> tuple[int, int]:
        """The first and the last number of what is wanted and is there now, or of the newest so many of it.

        Where there is none, the first is the number that comes next, and the last the one before it.
        """
        with translated(self.path), self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            first, last = 1, self._last(connection)
            if last and (times := wanted.times()):
                # Both in one query, which SQLite answers from the index of times alone. For one of them it
                # would walk through the trail up to the first event that fits.
                ends = sa.select(sa.func.min(events.c.seq), sa.func.max(events.c.seq)).where(*times)
                row = connection.execute(ends).one()
                first, last = (last + 1, last) if row[0] is None else (row[0], row[1])
            if newest is not None and last:
                found = sa.select(events.c.seq).where(events.c.seq.between(first, last), *wanted.matches())
                # The newest of those that are too many: SQLite counts to it, and keeps nothing meanwhile.
                before = connection.scalar(found.order_by(events.c.seq.desc()).offset(newest).limit(1))
                first = first if before is None else before + 1
            return first, last

    def events(self, first: int, last: int, wanted: Wanted = EVERYTHING) -> Iterator[StoredEvent]:
        """Read from a number to another page by page: a trail of millions is never in memory as a whole."""
        while page := self.query(wanted, after_seq=first - 1, last_seq=last):
            yield from page
            first = page[-1].seq + 1

    def query(
        self,
        wanted: Wanted = EVERYTHING,
        *,
        after_seq: int = 0,
        last_seq: int | None = None,
        limit: int = PAGE_ROWS_MAX,
    ) -> list[StoredEvent]:
        """Read the oldest events after `after_seq` that are wanted, at most a page of them."""
        matches = [events.c.seq > after_seq, *wanted.matches()]
        if last_seq is not None:
            matches.append(events.c.seq <= last_seq)
        with translated(self.path), self._engine.connect() as connection:
            # One view for both: a writer of this version may bring the file up to date just now.
            connection.exec_driver_sql("BEGIN")
            version = schema.version(connection, self.path)
            stored = _STORED_WHOLE if version == schema.WITHOUT_COMMON_PARTS else _STORED
            found = stored.where(*matches).order_by(events.c.seq).limit(min(limit, PAGE_ROWS_MAX))
            return [StoredEvent(row.seq, _body(row, self.path)) for row in connection.execute(found)]

    def _last(self, connection: sa.Connection) -> int:
        # A file without tables is a trail that nothing was written to yet.
        if not schema.version(connection, self.path):
            return 0
        return connection.scalar(sa.select(sa.func.max(events.c.seq))) or 0


# What `_body` needs of an event.
_STORED = sa.select(
    *(events.c.seq, events.c.eid, events.c.kind, events.c.phase, events.c.ts_us, events.c.body),
    *(events.c.common, common_parts.c.body.label("common_body")),
).select_from(events.outerjoin(common_parts, common_parts.c.number == events.c.common))
_STORED_WHOLE = sa.select(events.c.seq, events.c.body, sa.null().label("common"))


def _body(row: sa.Row[Any], path: Path) -> bytes:
    """The event's JSON; raises AuditUnavailable when the file has lost a part of it."""
    if row.common is not None and row.common_body is None:
        raise _damaged(path, f"what event {row.seq} has in common with others is missing")
    try:
        if row.common is None:
            members_of(row.body)
            body = bytes(row.body)
        else:
            ts = _EPOCH + timedelta(microseconds=row.ts_us)
            body = whole(row.body, row.common_body, eid=row.eid, kind=row.kind, phase=row.phase, ts=ts)
        # What it only passes on, msgspec does not look at.
        body.decode()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(path, f"event {row.seq} is no JSON ({error})") from error
    return body


def _damaged(path: Path, what: str) -> AuditUnavailable:
    return AuditUnavailable(
        f"the audit trail {path} is damaged: {what}; stop the hub, move the file and its -wal away, "
        "and put a copy in its place or let the hub begin a new one"
    )


def _pieces(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut a sequence into pieces of so many lengths only that a statement for each stays prepared.

    As few pieces as that allows, since each is a statement: at most one of a multiple of _ROWS_STEP rows for
    _STATEMENT_ROWS_MAX items, and one of what is left.
    """
    start = 0
    while start < len(items):
        left = min(_STATEMENT_ROWS_MAX, len(items) - start)
        many = left - left % _ROWS_STEP or left
        yield items[start : start + many]
        start += many


_BEGIN = "BEGIN IMMEDIATE"
# The highest that there ever was in each table, and what changes when another connection has written. In one
# statement, since beside a busy event loop each costs much, however little it asks. SQLite keeps the highest
# in a table that anybody can empty, and then goes by what is left.
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
    # Nothing in it is anybody's but ours.
    return f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES {', '.join([f'({row})'] * rows)}"  # noqa: S608


def _insert(cursor: sqlite3.Cursor, table: sa.Table, rows: Sequence[tuple[object, ...]]) -> None:
    """Insert rows of all columns, but for the number that an event is given."""
    for some in _pieces(rows):
        cursor.execute(_insertion(table, len(some)), tuple(chain.from_iterable(some)))


@cache
def _forget_intents(rows: int) -> str:
    return f"DELETE FROM open_intents WHERE eid IN ({', '.join('?' * rows)})"  # noqa: S608


# Rows of one transaction stand side by side, since a transaction has the file to itself.
_REMEMBER_INTENTS = (
    "INSERT INTO open_intents (eid, seq, boot) "
    "SELECT eid, seq, ? FROM events WHERE seq > ? AND phase = 'intent'"
)


def _as_unknown(body: bytes, now: datetime) -> bytes:
    """Make the `unknown` event's JSON from the intent's, as a dict: an older hawse may have written it."""
    event = msgspec.json.decode(body, type=dict[str, object])
    event["phase"] = Phase.UNKNOWN
    event["ts"] = now
    event["note"] = "the hub ended before it could record how this went"
    return msgspec.json.encode(event)


def microseconds(when: datetime) -> int:
    """As the trail keeps a time: since the epoch."""
    since = when - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _make(path: Path) -> None:
    """Make the file where there is none: SQLite would make it by the umask, and -wal and -shm copy the mode.

    A file that is there is not even opened. POSIX takes a process's locks on a file away as soon as it closes
    any descriptor of it. So another store in this process would lose those of its SQLite, and the next reader
    of another process, believing itself alone, would delete the -wal that events are still written to.

    Beside a new file SQLite deletes a -wal that is there, with the newest events of a file that was moved
    away without it. Raises AuditUnavailable.
    """
    wal = path.with_name(f"{path.name}-wal")
    # In this order: who makes both makes the file first.
    if wal.exists() and wal.stat().st_size and not path.exists():
        raise AuditUnavailable(
            f"{path} is missing, and {wal.name} holds events of it: put the file back, or move that to it"
        )
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _identity(path: Path) -> tuple[int, int]:
    """Which file it is that bears the name now; raises OSError where none does."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _url(path: Path, mode: str) -> sa.URL:
    # Not as one text: SQLAlchemy would undo the quotes, and `%`, `?` and `#` are then no part of a name.
    return sa.URL.create("sqlite", database=path.absolute().as_uri(), query={"mode": mode, "uri": "true"})


def _begin_immediate(connection: sa.Connection) -> None:
    connection.exec_driver_sql(_BEGIN)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what a file can do wrong into AuditUnavailable."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        raise AuditUnavailable(_unavailable(path, error.orig)) from error
    except (sqlite3.Error, OSError) as error:
        raise AuditUnavailable(_unavailable(path, error)) from error


def _unavailable(path: Path, error: BaseException | None) -> str:
    """What SQLite or the system says of a file, or that its disk is full.

    While nobody has the file open, even a reader begins by making its -shm, and of one that finds no room
    SQLite says "disk I/O error".
    """
    if getattr(error, "sqlite_errorcode", None) in _SHM_REFUSED:
        with suppress(OSError):
            disk = os.statvfs(path.parent)
            if disk.f_bavail * disk.f_frsize < _SHM_BYTES:
                return (
                    f"the audit trail {path} cannot be opened on a disk that is full: free 32 KiB of it, "
                    f"or copy the file, and {path.name}-wal if that is there, to a folder elsewhere"
                )
    return f"the audit trail {path} is unavailable: {error}"
