"""Searches of a trail in PostgreSQL, and the agents, clusters and teams in it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import sqlalchemy as sa

from audit.names import teams_of
from audit.postgres.bounded import BoundedConnection
from audit.postgres.calls import PostgresCallReader
from audit.postgres.link import CONNECT_S, Conninfo
from audit.postgres.reader import (
    STORED,
    Heads,
    PostgresReader,
    Window,
    block_ranges,
    first_position,
    heads_of,
    numbered,
    ordered,
    parts_of,
    position,
    stored,
    unindexed,
    within,
)
from audit.postgres.schema import blocks, common_parts, epochs, events
from audit.query import EVERYTHING, Query
from audit.reader import StoredEvent
from audit.search.cursors import BadCursor, Mark
from audit.search.search import Conditions, Next, Piece, SearchReader
from audit.textsearch import Text

# What one statement of a search reads at most: some 65,000 events, in a tenth of a second.
_BLOCKS_AT_ONCE = 64
ANSWER_S = 10.0
# One for each thread that searches, and one for the followers.
CONNECTIONS_MAX = 4


class _Connection(BoundedConnection):
    answer_s = ANSWER_S


class PostgresNameReader(PostgresReader):
    """Reads names from the trail. Among millions of events that takes a second."""

    def names(self, column: str) -> set[str]:
        """All values of the column `agent` or `cluster`."""
        with self._view() as connection:
            names = {*connection.scalars(sa.select(sa.func.unnest(blocks.c[column])).distinct())}
            for window in unindexed(connection):
                found = sa.select(events.c[column]).where(events.c.written.between(*window)).distinct()
                names.update(connection.scalars(found))
        return names - {""}

    def teams(self) -> set[str]:
        """All teams that an agent of some event was in."""
        found: set[str] = set()
        with self._view() as connection:
            for body in connection.scalars(sa.select(common_parts.c.body)):
                found.update(teams_of(body))
        return found


class PostgresSearch(PostgresCallReader, PostgresNameReader, SearchReader):
    """Searches the trail in the database of `conninfo`, by connections that it keeps."""

    def _make_engine(self, conninfo: Conninfo) -> sa.Engine:
        def connect() -> _Connection:
            # The server ends a statement whose client has given up.
            options = f"-c statement_timeout={int(ANSWER_S * 1000)}"
            return _Connection.connect(
                conninfo(), connect_timeout=CONNECT_S, client_encoding="UTF8", options=options
            )

        return sa.create_engine(
            "postgresql+psycopg://",
            creator=connect,
            pool_size=CONNECTIONS_MAX,
            max_overflow=0,
            # The server may have been restarted since.
            pool_pre_ping=True,
        )

    def after(
        self,
        mark: Mark,
        query: Query = EVERYTHING,
        *,
        text: Text | None = None,
        limit: int,
        until_s: float = math.inf,
    ) -> Next:
        with self._view() as connection:
            now = _heads(connection)
            if mark.newest > now.newest or any(
                n > now.heads.get(epoch, n) for epoch, n in mark.heads.items()
            ):
                raise BadCursor("the cursor is of another trail")
            target = _unread(connection, mark, now) if mark.at is None else mark.target
            new = [
                (epoch, mark.heads.get(epoch, 0) + 1, n)
                for epoch, n in target.items()
                if n > mark.heads.get(epoch, 0)
            ]
            # An epoch that is closed now may have got events since an earlier target was found.
            kept = target if mark.at is not None else {e: n for e, n in target.items() if e in now.heads}
            read = Mark(kept, max(mark.newest, *target))
            if not new:
                return Next([], read, more=False)
            begin = first_position(connection, new) if mark.at is None else mark.at + 1
            found = self.find(
                connection,
                query,
                begin,
                self._last(connection),
                text=text,
                text_events=None,
                limit=limit,
                until_s=until_s,
                more=[sa.or_(*(numbered(*each) for each in new))],
            )
            if found.reached is None:
                return Next(found.rows, read, more=False)
            return Next(found.rows, attrs.evolve(mark, at=found.reached, target=target), more=True)

    def _mark(self, connection: sa.Connection) -> Mark:
        return _heads(connection)

    def _pieces(
        self, connection: sa.Connection, query: Query, first: int, last: int, *, newest_first: bool
    ) -> Iterator[Piece]:
        conditions = query.event_conditions(events, common_parts)
        begin, end = parts_of(first)[0], parts_of(last)[0]
        if query == EVERYTHING:
            ranges = [(begin, end)]
        else:
            ranges = cut(block_ranges(connection, query, begin, end), newest_first=newest_first)
        for low, high in ranges:
            if low <= end and high >= begin:
                bounds = max(low, begin), min(high, end)
                yield Piece(
                    max(first, position(bounds[0], 0, 0)),
                    min(last, position(bounds[1] + 1, 0, 0) - 1),
                    [*within(bounds, first, last), *conditions],
                )

    def _places(self, conditions: Conditions, *, newest_first: bool) -> sa.Select[Any]:
        found = sa.select(events.c.written, events.c.epoch, events.c.n, events.c.ts_us).where(*conditions)
        return ordered(found, newest_first=newest_first)

    def _stored(self, conditions: Conditions, *, newest_first: bool) -> sa.Select[Any]:
        return ordered(STORED.where(*conditions), newest_first=newest_first)

    def _stored_event(self, row: sa.Row[Any]) -> StoredEvent:
        return stored(row)

    def _beside(self, position: int, *, newest_first: bool) -> sa.ColumnElement[bool]:
        row = sa.tuple_(events.c.written, events.c.epoch, events.c.n)
        other = sa.tuple_(*map(sa.literal, parts_of(position)))
        # The time alone finds the events by its index.
        return (
            sa.and_(events.c.written <= parts_of(position)[0], row < other)
            if newest_first
            else sa.and_(events.c.written >= parts_of(position)[0], row > other)
        )

    def _bodies(self) -> tuple[sa.ColumnElement[bytes], sa.ColumnElement[bytes]]:
        return events.c.body, common_parts.c.body


def _heads(connection: sa.Connection) -> Mark:
    """The mark after all events."""
    newest: int = connection.scalar(sa.select(sa.func.max(epochs.c.epoch))) or 0
    return Mark(heads_of(connection, sa.not_(epochs.c.closed)), newest)


def _unread(connection: sa.Connection, mark: Mark, now: Mark) -> Heads:
    """The last number of each epoch that may have events after a mark."""
    return heads_of(
        connection, epochs.c.epoch.in_({*now.heads, *mark.heads}) | (epochs.c.epoch > mark.newest)
    )


def cut(ranges: Sequence[Window], *, newest_first: bool) -> list[Window]:
    """The same times as ranges that do not overlap, each with the events of some _BLOCKS_AT_ONCE blocks."""
    found: list[Window] = []
    count = 0
    for low, high in sorted(ranges):
        begin, end = found[-1] if found else (0, -1)
        count += 1
        if not found or low > end + 1:
            found.append((low, high))
            count = 1
        elif count > _BLOCKS_AT_ONCE and begin < low:
            found[-1] = begin, low - 1
            found.append((low, max(end, high)))
            count = 1
        else:
            found[-1] = begin, max(end, high)
    return found[::-1] if newest_first else found
