"""Searches of the trail within a deadline: the newest matches, or the next ones after a follower's mark.

A search reads the trail piece by piece, each of some ten thousand events. So it ends soon after its deadline,
keeps what it has found, and knows how far it has read.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, TypeAlias

import attrs
import sqlalchemy as sa

from audit.calls import NUMBER, FoundCall
from audit.query import EVERYTHING, Query
from audit.reader import StoredEvent, TrailReader
from audit.schema import moment
from audit.search.cursors import Mark
from audit.textsearch import TEXT_EVENTS_MAX, Text

Conditions: TypeAlias = Sequence[sa.ColumnElement[bool]]

# Rows read between two looks at the clock; decoding them takes some milliseconds.
_ROWS_AT_ONCE = 128


@attrs.frozen
class Piece:
    """A part of the trail, and the conditions on a matching event in it."""

    first: int
    last: int
    conditions: Conditions


@attrs.frozen
class Found:
    """What a search has found, in its order."""

    rows: list[StoredEvent]
    stopped: str = ""
    """Why it ended before the end of the trail and below its limit: DEADLINE or TEXT."""
    reached: int | None = None
    """The last position that it has read, if it has not read all."""


DEADLINE, TEXT = "deadline", "text"


@attrs.frozen
class Newest:
    """A page of a search, the newest event first."""

    rows: list[StoredEvent]
    stopped: str
    older: int | None
    """The position before which the search goes on; None if nothing older matches."""
    searched_to: datetime | None
    """The time that a stopped search has reached."""
    mark: Mark
    """Where a follower goes on after the newest event that the search could see."""
    began: datetime | None
    """When the trail's oldest event happened."""


@attrs.frozen
class Next:
    """The next matches after a mark, the oldest first."""

    rows: list[StoredEvent]
    mark: Mark
    more: bool
    """Whether there are more events to read now."""


class SearchReader(TrailReader):
    """Searches the trail; for one thread at a time."""

    def newest(
        self,
        query: Query = EVERYTHING,
        *,
        text: Text | None = None,
        before: int | None = None,
        limit: int,
        until_s: float = math.inf,
    ) -> Newest:
        """Find the newest matches before a position; `until_s` is on the monotonic clock."""
        with self._view() as connection:
            last = self._last(connection)
            oldest = self._oldest(connection)
            end = last if before is None else min(last, before - 1)
            found = self.find(
                connection, query, 1, end, text=text, limit=limit, until_s=until_s, newest_first=True
            )
            searched_to = None
            if found.stopped and found.reached is not None:
                searched_to = self._when(connection, found.reached)
            return Newest(
                found.rows,
                found.stopped,
                found.reached,
                searched_to,
                self._mark(connection),
                None if oldest is None else oldest[1],
            )

    def oldest(
        self,
        query: Query = EVERYTHING,
        *,
        text: Text | None = None,
        after: int,
        last: int,
        limit: int,
        until_s: float = math.inf,
    ) -> Found:
        """Find the oldest matches after a position, up to another one. The text is searched in all events."""
        with self._view() as connection:
            last = min(last, self._last(connection))
            return self.find(
                connection,
                query,
                after + 1,
                last,
                text=text,
                text_events=None,
                limit=limit,
                until_s=until_s,
            )

    def beside(
        self, query: Query, first: int, last: int, *, limit: int, until_s: float
    ) -> tuple[Found, Found]:
        """Find the matches before a position, the newest first, and those after another one."""
        with self._view() as connection:
            end = self._last(connection)
            before = self.find(
                connection, query, 1, first - 1, limit=limit, until_s=until_s, newest_first=True
            )
            after = self.find(connection, query, last + 1, end, limit=limit, until_s=until_s)
        return before, after

    def lookup(self, event: str) -> FoundCall:
        """The call with this id, with the only id that begins so, or of the row with this number.

        Raises NoSuchCall, and ValueError for a text that is none of these.
        """
        return self.by_number(event) if NUMBER.fullmatch(event) else self.by_id(event)

    @abstractmethod
    def by_number(self, number: str) -> FoundCall: ...

    @abstractmethod
    def by_id(self, prefix: str) -> FoundCall: ...

    def now(self) -> Mark:
        """The mark of a follower that has read all events."""
        with self._view() as connection:
            return self._mark(connection)

    @abstractmethod
    def after(
        self,
        mark: Mark,
        query: Query = EVERYTHING,
        *,
        text: Text | None = None,
        limit: int,
        until_s: float = math.inf,
    ) -> Next:
        """Find the next matches after a mark. Raises BadCursor for a mark of another trail."""

    def find(
        self,
        connection: sa.Connection,
        query: Query,
        first: int,
        last: int,
        *,
        text: Text | None = None,
        text_events: int | None = TEXT_EVENTS_MAX,
        limit: int,
        until_s: float,
        newest_first: bool = False,
        more: Conditions = (),
    ) -> Found:
        """Find matches between two positions, in order.

        The text is searched in `text_events` events; None is all.
        """
        rows: list[StoredEvent] = []
        for piece in self._pieces(connection, query, first, last, newest_first=newest_first):
            conditions = [*piece.conditions, *more]
            beyond = None
            if text is not None and text_events is not None:
                text_events, beyond = self._count(connection, conditions, text_events, newest_first)
                if beyond is not None:
                    conditions.append(self._beside(beyond, newest_first=not newest_first))
            if text is not None:
                conditions += text.conditions(*self._bodies())
            for number, row in enumerate(self._read(connection, conditions, newest_first=newest_first), 1):
                stored = self._stored_event(row)
                if text is None or text.is_in(stored.body):
                    rows.append(stored)
                    if len(rows) == limit:
                        return Found(rows, reached=stored.seq)
                if number % _ROWS_AT_ONCE == 0 and time.monotonic() >= until_s:
                    return Found(rows, DEADLINE, stored.seq)
            if beyond is not None:
                return Found(rows, TEXT, beyond + 1 if newest_first else beyond - 1)
            reached = piece.first if newest_first else piece.last
            if time.monotonic() >= until_s and reached != (first if newest_first else last):
                return Found(rows, DEADLINE, reached)
        return Found(rows)

    def _count(
        self,
        connection: sa.Connection,
        conditions: Conditions,
        left: int,
        newest_first: bool,
    ) -> tuple[int, int | None]:
        """Take a piece's events off the number of those that may still be searched.

        Also returns the position of the first event beyond that number, if the piece has one.
        """
        places = self._places(conditions, newest_first=newest_first)
        beyond = connection.execute(places.offset(left).limit(1)).first()
        if beyond is not None:
            return 0, self._position(beyond)
        count = connection.scalar(sa.select(sa.func.count()).select_from(places.order_by(None).subquery()))
        return left - (count or 0), None

    def _read(
        self,
        connection: sa.Connection,
        conditions: Conditions,
        *,
        newest_first: bool,
    ) -> Iterator[sa.Row[Any]]:
        """The rows of the matching events, in order, without all of them in memory."""
        found = self._stored(conditions, newest_first=newest_first)
        with connection.execute(found, execution_options={"yield_per": _ROWS_AT_ONCE}) as result:
            yield from result

    @abstractmethod
    def _pieces(
        self, connection: sa.Connection, query: Query, first: int, last: int, *, newest_first: bool
    ) -> Iterator[Piece]:
        """The parts between two positions that may have matches, in order; each is read within a moment."""

    @abstractmethod
    def _places(self, conditions: Conditions, *, newest_first: bool) -> sa.Select[Any]:
        """Select the places of events and their times (`ts_us`), in order."""

    @abstractmethod
    def _stored(self, conditions: Conditions, *, newest_first: bool) -> sa.Select[Any]:
        """Select events, in order."""

    @abstractmethod
    def _stored_event(self, row: sa.Row[Any]) -> StoredEvent:
        """The event of a selected row."""

    @abstractmethod
    def _beside(self, position: int, *, newest_first: bool) -> sa.ColumnElement[bool]:
        """The condition that an event is before a position, or after it."""

    @abstractmethod
    def _bodies(self) -> tuple[sa.ColumnElement[bytes], sa.ColumnElement[bytes]]:
        """The columns of an event's own part, and of its common part."""

    @abstractmethod
    def _mark(self, connection: sa.Connection) -> Mark:
        """The mark after all events of the view."""

    def _when(self, connection: sa.Connection, position: int) -> datetime | None:
        """When the first event from a position on happened."""
        found = self._places([self._beside(position - 1, newest_first=False)], newest_first=False)
        row = connection.execute(found.limit(1)).first()
        return None if row is None else moment(row.ts_us)
