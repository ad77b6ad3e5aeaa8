"""Copies a trail from its file into PostgreSQL, and sums up both for a comparison.

An event keeps its number, in the shared epoch, which readers do not name. So `hawse audit list --json` prints
a moved event as before, and a number that someone has noted still finds it.

The copy is a part of the caller's transaction. If it is cut, nothing of it remains.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID

import attrs
import psycopg
import sqlalchemy as sa

from audit import schema as in_file
from audit.display import json_line
from audit.errors import AuditUnavailable, NoTrail
from audit.file import damaged
from audit.postgres import schema as in_postgres
from audit.postgres.link import one_line
from audit.postgres.reader import PostgresReader, check_schema
from audit.reader import AuditReader, TrailReader
from audit.store import TrailMark

# Called with the number of events that are done.
Progress: TypeAlias = Callable[[int], None]

# Selects ids of calls, in order, each with the number of one of its rows.
_Places: TypeAlias = sa.Select[tuple[str, int]]

EPOCH = 0
"""The shared epoch."""
# Events per COPY. After each, the index of blocks is brought up to date.
COPY_EVENTS = 64 * 1024
# Rows that are in memory at once, and events between two calls of `progress`.
PAGE_ROWS = 500

_EVENTS = (
    b"COPY trail_events (epoch, n, written, eid, ts_us, phase, kind, agent, cluster, common, body) "
    b"FROM STDIN (FORMAT BINARY)"
)
_EVENT_TYPES = "int4", "int8", "int8", "uuid", "int8", "text", "text", "text", "text", "int4", "bytea"
_PARTS = b"COPY trail_parts (epoch, number, n, body) FROM STDIN (FORMAT BINARY)"
_PART_TYPES = "int4", "int4", "int8", "bytea"
_OPEN = b"COPY trail_open (eid, epoch, n) FROM STDIN (FORMAT BINARY)"
_LATE_ENDS = b"COPY trail_late_ends (eid, epoch, n) FROM STDIN (FORMAT BINARY)"
_PLACE_TYPES = "uuid", "int4", "int8"


@attrs.frozen
class TrailSum:
    """What a trail and its copy have in common."""

    events: int
    sha256: str
    """Of the events in the format of `hawse audit list --json`, one per line."""
    parts: int
    open_calls: int
    late_ends: int
    places_sha256: str
    """Of the ids and numbers of the open calls and of the late ends."""


def is_movable(view: sa.Connection, path: Path) -> bool:
    """Whether this version has written the file's tables; raises AuditUnavailable for a newer one."""
    return in_file.is_current(view, path) and sa.inspect(view).has_table(in_file.late_ends.name)


def count_events(view: sa.Connection) -> int:
    """How many events a file has."""
    return _count(view, in_file.events)


class MovableTrail(AuditReader):
    """A trail in a file of this version, to which nothing writes."""

    def sum_up(self, progress: Progress) -> TrailSum:
        """Read everything that is copied; raises AuditUnavailable."""
        events = _sum_of_events(self, progress)
        with self._view() as view:
            places = _places_in(in_file.open_intents, "seq"), _places_in(in_file.late_ends, "seq")
            return _sum(view, events, in_file.common_parts, *places)

    def copy_to(self, connection: sa.Connection, now_us: int, progress: Progress) -> None:
        """Copy everything into an empty trail in PostgreSQL, and make that if there is none.

        Raises AuditUnavailable.
        """
        target = _driver_of(connection)
        with self._view() as view, _translated():
            in_postgres.create(connection)
            columns = in_file.common_parts.c
            parts = _stream(view, sa.select(sa.literal(EPOCH), *columns["number", "seq", "body"]))
            _copy(target, _PARTS, _PART_TYPES, parts)
            rows = self._rows(view, now_us, progress)
            before = 0
            while (last := _copy(target, _EVENTS, _EVENT_TYPES, islice(rows, COPY_EVENTS))) is not None:
                newest = last[1]
                target.execute(b"SELECT trail_index(%s, %s, %s)", (EPOCH, before, newest))
                before = newest
            for statement, table in ((_OPEN, in_file.open_intents), (_LATE_ENDS, in_file.late_ends)):
                found = _stream(view, sa.select(table.c.eid, table.c.seq))
                _copy(target, statement, _PLACE_TYPES, ((UUID(eid), EPOCH, n) for eid, n in found))

    def _rows(self, view: sa.Connection, now_us: int, progress: Progress) -> Iterator[Sequence[Any]]:
        """The events as rows of PostgreSQL."""
        columns = in_file.events.c
        wanted = columns["seq", "eid", "phase", "kind", "ts_us", "agent", "cluster", "common", "body"]
        # The file does not have the time at which a writer made the batch. The event's own time stands in for
        # it, increasing with the number, and never after now: later events of hubs would be in front. While a
        # clock was ahead, it increases by microseconds: with equal times, the index could not tell events
        # apart, and each page would sort all of these.
        written, last = 0, self._last(view)
        for done, row in enumerate(_stream(view, sa.select(*wanted).order_by(columns.seq)), 1):
            n, eid, phase, kind, ts_us, agent, cluster, common, body = row
            try:
                written = max(written + 1, min(ts_us, now_us - last + n))
                call, texts = UUID(eid), [*map(_storable, (phase, kind, agent, cluster))]
            except (TypeError, ValueError) as error:
                raise damaged(self.path, f"event {n} has values that no hub has written") from error
            yield EPOCH, n, written, call, ts_us, *texts, common, body
            if not done % PAGE_ROWS:
                progress(done)


class CopiedTrail(PostgresReader):
    """The copy in PostgreSQL, as the transaction of a connection sees it."""

    def __init__(self, connection: sa.Connection) -> None:
        """Use a connection of the caller's instead of new ones."""
        self._connection = connection

    def close(self) -> None:
        """Leave the connection to the caller."""

    def is_empty(self) -> bool:
        """Whether there is no event, and maybe no table."""
        with self._view() as view:
            try:
                check_schema(view)
            except NoTrail:
                return True
            return not self._last(view)

    def mark(self) -> TrailMark:
        """What a hub remembers of its trail."""
        with self._view() as view:
            found, highest = view.exec_driver_sql(
                "SELECT id::text, coalesce((SELECT max(written) FROM trail_events), 0) FROM trail"
            ).one()
            return TrailMark(found, highest)

    def sum_up(self, progress: Progress) -> TrailSum:
        """Read everything that was copied; raises AuditUnavailable."""
        with self._view() as view:
            # In a table without statistics the planner expects few rows, and would sort all later events for
            # each page. With a million events, that would take an hour.
            view.exec_driver_sql("SET LOCAL enable_sort = off")
            view.exec_driver_sql("SET LOCAL enable_bitmapscan = off")
        events = _sum_of_events(self, progress)
        with self._view() as view:
            places = _places_in(in_postgres.open_intents, "n"), _places_in(in_postgres.late_ends, "n")
            return _sum(view, events, in_postgres.common_parts, *places)

    @contextmanager
    def _view(self) -> Iterator[sa.Connection]:
        with _translated():
            yield self._connection


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (psycopg.Error, sa.exc.DBAPIError) as error:
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        # The transaction is the caller's, and not committed.
        said = one_line(cause or error)
        raise AuditUnavailable(
            f"the audit trail cannot be copied: {said}: nothing was changed; run this again"
        ) from error


def _driver_of(connection: sa.Connection) -> psycopg.Connection[Any]:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver


def _copy(
    target: psycopg.Connection[Any], statement: bytes, types: Sequence[str], rows: Iterable[Sequence[Any]]
) -> Sequence[Any] | None:
    """Copy rows into a table; returns the last one."""
    last = None
    with target.cursor().copy(statement) as copy:
        copy.set_types(types)
        for last in rows:
            copy.write_row(last)
    return last


def _stream(view: sa.Connection, query: sa.Select[*tuple[Any, ...]]) -> Iterator[sa.Row[*tuple[Any, ...]]]:
    """The rows of a query, a page of them in memory."""
    yield from view.execute(query, execution_options={"yield_per": PAGE_ROWS})


def _storable(text: str) -> str:
    """A text for a column. Earlier versions wrote zero bytes into names; the event itself keeps them."""
    return text.replace("\0", "\\x00")


def _sum_of_events(reader: TrailReader, progress: Progress) -> tuple[int, str]:
    """Read all events; returns their number, and the SHA-256 of their lines."""
    digest, count = hashlib.sha256(), 0
    for count, stored in enumerate(reader.events(1, reader.last()), 1):
        digest.update(json_line(stored).encode("ascii") + b"\n")
        if not count % PAGE_ROWS:
            progress(count)
    return count, digest.hexdigest()


def _sum(
    view: sa.Connection, events: tuple[int, str], parts: sa.Table, open_calls: _Places, late_ends: _Places
) -> TrailSum:
    digest = hashlib.sha256()
    counts = []
    for places in (open_calls, late_ends):
        counts.append(0)
        for eid, n in _stream(view, places):
            counts[-1] += 1
            digest.update(f"{eid} {n}\n".encode())
    return TrailSum(*events, _count(view, parts), counts[0], counts[1], digest.hexdigest())


def _places_in(table: sa.Table, number: str) -> _Places:
    return sa.select(table.c.eid, table.c[number]).order_by(table.c.eid)


def _count(view: sa.Connection, table: sa.Table) -> int:
    return view.scalar(sa.select(sa.func.count()).select_from(table)) or 0
