"""Searches of a trail in a file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from audit.blocks import stretches
from audit.calls import CallReader
from audit.file import url
from audit.names import NameReader
from audit.query import EVERYTHING, Query
from audit.reader import STORED, StoredEvent, body_of
from audit.schema import common_parts, events
from audit.search.cursors import BadCursor, Mark
from audit.search.search import Conditions, Next, Piece, SearchReader
from audit.textsearch import Text

# SQLite's largest integer. A client's cursor may have a higher one.
_POSITION_MAX = 2**63 - 1


class FileSearch(CallReader, NameReader, SearchReader):
    """Searches a trail in a file, which a hub of this version has opened for writing."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        # A connection that is kept would save 0.25 ms. It would also keep the -wal of a file that is moved
        # away, and read on from that file.
        self._engine = sa.create_engine(url(path, "ro"), poolclass=NullPool)

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
            last, read = self._last(connection), mark.heads.get(0, 0)
            if mark != _mark(read) or read > last:
                raise BadCursor("the cursor is of another trail")
            found = self.find(
                connection, query, read + 1, last, text=text, text_events=None, limit=limit, until_s=until_s
            )
            reached = last if found.reached is None else found.reached
            return Next(found.rows, _mark(reached), reached < last)

    def _mark(self, connection: sa.Connection) -> Mark:
        return _mark(self._last(connection))

    def _pieces(
        self, connection: sa.Connection, query: Query, first: int, last: int, *, newest_first: bool
    ) -> Iterator[Piece]:
        conditions = query.event_conditions()
        for begin, end in stretches(connection, query, first, last, newest_first=newest_first):
            yield Piece(begin, end, [events.c.seq.between(begin, end), *conditions])

    def _places(self, conditions: Conditions, *, newest_first: bool) -> sa.Select[Any]:
        found = sa.select(events.c.seq, events.c.ts_us).where(*conditions)
        return found.order_by(_order(newest_first=newest_first))

    def _stored(self, conditions: Conditions, *, newest_first: bool) -> sa.Select[Any]:
        return STORED.where(*conditions).order_by(_order(newest_first=newest_first))

    def _stored_event(self, row: sa.Row[Any]) -> StoredEvent:
        return StoredEvent(row.seq, body_of(row, self.path))

    def _beside(self, position: int, *, newest_first: bool) -> sa.ColumnElement[bool]:
        position = min(position, _POSITION_MAX)
        return events.c.seq < position if newest_first else events.c.seq > position

    def _bodies(self) -> tuple[sa.ColumnElement[bytes], sa.ColumnElement[bytes]]:
        return events.c.body, common_parts.c.body


def _mark(last: int) -> Mark:
    return Mark({0: last})


def _order(*, newest_first: bool) -> sa.ColumnElement[int]:
    return events.c.seq.desc() if newest_first else events.c.seq.asc()
