"""Reads the trail in PostgreSQL, in the order in which its writers made their batches.

A position is one number, so that readers of either engine work alike: the time of the batch, the epoch and
the event's number, from the highest bits to the lowest.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeAlias

import msgspec
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from audit.blocks import BLOCK_EVENTS
from audit.errors import AuditUnavailable, NoTrail
from audit.postgres.bounded import BoundedConnection
from audit.postgres.link import CONNECT_S, Conninfo, one_line
from audit.postgres.schema import VERSION, blocks, common_parts, epochs, events
from audit.query import EVERYTHING, Query
from audit.reader import PAGE_ROWS_MAX, POLL_S, StoredEvent, TrailReader, json_of
from audit.schema import microseconds, moment

# How long an answer may take. A search for rare members reads all events, a million a second. Each view opens
# a connection, and so finds a server that is stopped already within CONNECT_S.
ANSWER_S = 600.0
_EPOCH_BITS, _N_BITS = 32, 64
# Higher than any number, epoch and time.
_END = 2**63 - 1

# The last number in each epoch.
Heads: TypeAlias = dict[int, int]
# A range of times at which batches were written.
Window: TypeAlias = tuple[int, int]


def position(written: int, epoch: int, n: int) -> int:
    """The position of an event in the trail's order."""
    return ((written << _EPOCH_BITS) + epoch << _N_BITS) + n


def parts_of(where: int) -> tuple[int, int, int]:
    """The time, the epoch and the number of a position."""
    rest, n = divmod(where, 1 << _N_BITS)
    return *divmod(rest, 1 << _EPOCH_BITS), min(n, _END)


class ReaderConnection(BoundedConnection):
    """A connection of a reader."""

    answer_s = ANSWER_S


class PostgresReader(TrailReader):
    """The trail in the database of `conninfo`."""

    def __init__(self, conninfo: Conninfo) -> None:
        self._engine = self._make_engine(conninfo)
        with self._view():
            pass

    def _make_engine(self, conninfo: Conninfo) -> sa.Engine:
        def connect() -> ReaderConnection:
            return ReaderConnection.connect(conninfo(), connect_timeout=CONNECT_S, client_encoding="UTF8")

        return sa.create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)

    def close(self) -> None:
        self._engine.dispose()

    def follow(self, first: int, query: Query = EVERYTHING) -> Iterator[StoredEvent]:
        """Read matching events from a position on, and then each new one; never ends.

        An event is new if its number is above the last one that was read in its epoch. So an event is not
        missed if it is committed after later ones of other epochs.
        """
        with self._view() as connection:
            newest: int = connection.scalar(sa.select(sa.func.max(epochs.c.epoch))) or 0
            heads = heads_of(connection, sa.not_(epochs.c.closed))
        # A closed epoch gets no more events, and a new one a higher number.
        known = [events.c.epoch <= newest]
        known += [sa.or_(events.c.epoch != epoch, events.c.n <= n) for epoch, n in heads.items()]
        yield from self._events(query, first, known)
        while True:
            with self._view() as connection:
                open_now = {*connection.scalars(sa.select(epochs.c.epoch).where(sa.not_(epochs.c.closed)))}
                found = heads_of(
                    connection, epochs.c.epoch.in_({*open_now, *heads}) | (epochs.c.epoch > newest)
                )
                new = [(epoch, heads.get(epoch, 0) + 1, n) for epoch, n in found.items()]
                new = [each for each in new if each[1] <= each[2]]
                first = first_position(connection, new) if new else 0
            if new:
                yield from self._events(query, first, [sa.or_(*(numbered(*each) for each in new))])
            heads = {epoch: n for epoch, n in found.items() if epoch in open_now}
            newest = max(newest, *found)
            if not new:
                time.sleep(POLL_S)

    def _events(
        self, query: Query, first: int, conditions: Sequence[sa.ColumnElement[bool]]
    ) -> Iterator[StoredEvent]:
        while page := self._page(query, first - 1, None, PAGE_ROWS_MAX, conditions):
            yield from page
            first = page[-1].seq + 1

    def query(
        self,
        query: Query = EVERYTHING,
        *,
        after_seq: int = 0,
        last_seq: int | None = None,
        limit: int = PAGE_ROWS_MAX,
    ) -> list[StoredEvent]:
        return self._page(query, after_seq, last_seq, min(limit, PAGE_ROWS_MAX))

    def _page(
        self,
        query: Query,
        after: int,
        last: int | None,
        limit: int,
        more: Sequence[sa.ColumnElement[bool]] = (),
    ) -> list[StoredEvent]:
        """The oldest matching events between two positions, under more conditions."""
        page: list[StoredEvent] = []
        conditions = [*query.event_conditions(events, common_parts), *more]
        with self._view() as connection:
            end = self._last(connection) if last is None else last
            for window in windows(connection, query, after + 1, end):
                found = STORED.where(*within(window, after + 1, end), *conditions)
                rows = connection.execute(ordered(found).limit(limit - len(page)))
                page += [stored(row) for row in rows]
                if len(page) == limit:
                    break
        return page

    @contextmanager
    def _view(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.connect() as connection:
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                check_schema(connection)
                yield connection
        except sa.exc.DBAPIError as error:
            raise AuditUnavailable(
                f"the audit trail in PostgreSQL is unavailable: {one_line(error.orig or error)}"
            ) from error

    def _searches(
        self, connection: sa.Connection, query: Query, first: int, last: int, *, newest_first: bool
    ) -> Iterator[sa.Select[tuple[Any, ...]]]:
        conditions = query.event_conditions(events, common_parts)
        for window in windows(connection, query, first, last, newest_first=newest_first):
            found = _PLACES.where(*within(window, first, last), *conditions)
            yield ordered(found, newest_first=newest_first)

    def _position(self, place: sa.Row[tuple[Any, ...]]) -> int:
        return position(place.written, place.epoch, place.n)

    def _oldest(self, connection: sa.Connection) -> tuple[int, datetime] | None:
        row = connection.execute(ordered(_PLACES.add_columns(events.c.ts_us)).limit(1)).first()
        return None if row is None else (position(*row[:3]), moment(row.ts_us))

    def _last(self, connection: sa.Connection) -> int:
        row = connection.execute(ordered(_PLACES, newest_first=True).limit(1)).first()
        return 0 if row is None else position(*row)


def check_schema(connection: sa.Connection) -> None:
    """Raise NoTrail if there are no tables, and AuditUnavailable if they are of another version."""
    if not connection.exec_driver_sql("SELECT to_regclass('trail') IS NOT NULL").scalar():
        raise NoTrail("there is no audit trail in the database")
    found = connection.exec_driver_sql("SELECT version FROM trail").scalar()
    if found != VERSION:
        raise AuditUnavailable(
            f"the audit trail has schema version {found}, this hawse knows {VERSION}: use the newer hawse"
        )


_PLACES = sa.select(events.c.written, events.c.epoch, events.c.n)
# What `stored` needs.
STORED = sa.select(
    *(events.c.written, events.c.epoch, events.c.n, events.c.eid, events.c.kind, events.c.phase),
    *(events.c.ts_us, events.c.body, events.c.common, common_parts.c.body.label("common_body")),
).select_from(
    events.outerjoin(
        common_parts,
        sa.and_(common_parts.c.epoch == events.c.epoch, common_parts.c.number == events.c.common),
    )
)


def stored(row: sa.Row[*tuple[Any, ...]]) -> StoredEvent:
    """The event of a row; raises AuditUnavailable if a part of it is missing or damaged."""
    if row.common is not None and row.common_body is None:
        raise AuditUnavailable(f"the common part of event {row.epoch}.{row.n} is missing in PostgreSQL")
    try:
        body = json_of(row)
    except (msgspec.DecodeError, UnicodeDecodeError, OverflowError) as error:
        raise AuditUnavailable(
            f"event {row.epoch}.{row.n} of the audit trail in PostgreSQL is damaged: {error}"
        ) from error
    return StoredEvent(position(row.written, row.epoch, row.n), body, (row.epoch, row.n))


def ordered(found: sa.Select[tuple[Any, ...]], *, newest_first: bool = False) -> sa.Select[tuple[Any, ...]]:
    order = events.c.written, events.c.epoch, events.c.n
    return found.order_by(*(column.desc() for column in order) if newest_first else order)


def within(window: Window, first: int, last: int) -> list[sa.ColumnElement[bool]]:
    """Conditions on an event: in a window, and between two positions."""
    place = sa.tuple_(events.c.written, events.c.epoch, events.c.n)
    begin, end = (sa.tuple_(*map(sa.literal, parts_of(where))) for where in (first, last))
    return [events.c.written.between(*window), place >= begin, place <= end]


def numbered(epoch: int, first: int, last: int) -> sa.ColumnElement[bool]:
    return sa.and_(events.c.epoch == epoch, events.c.n.between(first, last))


def heads_of(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> Heads:
    """The last number in each of some epochs; 0 for an epoch without events."""
    last = sa.select(events.c.n).where(events.c.epoch == epochs.c.epoch).order_by(events.c.n.desc()).limit(1)
    found = sa.select(epochs.c.epoch, sa.func.coalesce(last.scalar_subquery(), 0)).where(condition)
    return {row[0]: row[1] for row in connection.execute(found)}


def first_position(connection: sa.Connection, new: Sequence[tuple[int, int, int]]) -> int:
    """A position before all of these events: without it, a search would begin with the oldest event."""
    found = sa.select(sa.func.min(events.c.written)).where(
        sa.or_(*(numbered(epoch, first, first) for epoch, first, _ in new))
    )
    return position(connection.scalar(found) or 0, 0, 0)


def windows(
    connection: sa.Connection, query: Query, first: int, last: int, *, newest_first: bool = False
) -> Iterator[Window]:
    """The times between two positions at which matching events may have been written, in order."""
    begin, end = parts_of(first)[0], parts_of(last)[0]
    if not query.names() and query.only_time() == EVERYTHING:
        yield begin, end
        return
    for low, high in _merged(block_ranges(connection, query, begin, end), newest_first=newest_first):
        if low <= end and high >= begin:
            yield max(low, begin), min(high, end)


def block_ranges(connection: sa.Connection, query: Query, begin: int, end: int) -> list[Window]:
    """The times of the blocks, and of the events without one, that may match between two times."""
    conditions = [blocks.c[column].overlap(some) for column, some in query.names().items()]
    if query.since is not None:
        conditions.append(blocks.c.last_us >= microseconds(query.since))
    if query.until is not None:
        conditions.append(blocks.c.first_us < microseconds(query.until))
    conditions += [blocks.c.last_written >= begin, blocks.c.first_written <= end]
    known = connection.execute(sa.select(blocks.c.first_written, blocks.c.last_written).where(*conditions))
    return [(low, high) for low, high in known] + unindexed(connection)


def unindexed(connection: sa.Connection) -> list[Window]:
    """The times at which the events that no block indexes were written, for each epoch."""
    indexed = sa.select(sa.func.max(blocks.c.number) + 1).where(blocks.c.epoch == epochs.c.epoch)
    after = sa.func.coalesce(indexed.correlate(epochs).scalar_subquery(), 0) * BLOCK_EVENTS
    rest = sa.select(events.c.written).where(events.c.epoch == epochs.c.epoch, events.c.n >= after)
    ends = [
        rest.order_by(order).limit(1).correlate(epochs).scalar_subquery()
        for order in (events.c.n.asc(), events.c.n.desc())
    ]
    rows = connection.execute(sa.select(*ends).select_from(epochs)).all()
    return [(low, high) for low, high in rows if low is not None]


def _merged(ranges: Sequence[Window], *, newest_first: bool) -> list[Window]:
    """The same times as ranges that do not overlap."""
    found: list[Window] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1]:
            found[-1] = found[-1][0], max(high, found[-1][1])
        else:
            found.append((low, high))
    return found[::-1] if newest_first else found
