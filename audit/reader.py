"""Reads the trail: selects events by a query, and returns each as the JSON that was written.

Another process can read while the hub writes, over its own read-only connections.
"""

from __future__ import annotations

import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
import msgspec
import sqlalchemy as sa

from audit import schema
from audit.blocks import stretches
from audit.errors import NoTrail
from audit.file import damaged, translated, url
from audit.query import EVERYTHING, Query
from audit.schema import common_parts, events, moment
from audit.shared import members_of, whole

# How long `follow` may take to yield a new event.
POLL_S = 0.5
# Maximum rows per query in memory; longer results are read page by page.
PAGE_ROWS_MAX = 1000


@attrs.frozen
class StoredEvent:
    """A row: its position in the trail's order and the event's JSON."""

    seq: int
    """In a file the event's number."""
    body: bytes
    place: tuple[int, int] | None = None
    """In PostgreSQL: the epoch, and the event's number in it."""

    @property
    def number(self) -> str:
        """The number for people, which `hawse audit show` takes; the shared epoch is not named."""
        if self.place is None:
            return str(self.seq)
        epoch, n = self.place
        return f"{epoch}.{n}" if epoch else str(n)

    @property
    def line(self) -> bytes:
        """The JSON with the event's number in it, without a newline."""
        epoch, n = self.place or (0, self.seq)
        begin = b'{"epoch":%d,"seq":%d,' % (epoch, n) if epoch else b'{"seq":%d,' % n
        return begin + self.body[1:]


class TrailReader(ABC):
    """The trail for a process beside the hub: read-only, page by page."""

    def last(self) -> int:
        """The newest event's position, or 0 if there is none."""
        with self._view() as connection:
            return self._last(connection)

    def began(self) -> datetime | None:
        """When the oldest remaining event happened, or None if there is none."""
        with self._view() as connection:
            oldest = self._oldest(connection)
            return None if oldest is None else oldest[1]

    def holds(self, query: Query) -> bool:
        """Whether any event matches."""
        with self._view() as connection:
            last = self._last(connection)
            return bool(last) and self._nth(connection, query, 1, last, newest_first=True) is not None

    def beyond(self, query: Query, newest: int) -> int | None:
        """The position of the first match beyond the `newest` newest ones; None if there are no more."""
        with self._view() as connection:
            last = self._last(connection)
            return self._nth(connection, query, 1, last, skip=newest, newest_first=True) if last else None

    def span(self, query: Query = EVERYTHING, newest: int | None = None) -> tuple[int, int]:
        """The first and the last position of all matching events, or of the `newest` newest of them.

        If there is none, the first is the next one to be written, and the last is the one before it.
        """
        with self._view() as connection:
            last = self._last(connection)
            ends = 1, last
            timed = query.only_time()
            if last and timed != EVERYTHING:
                begin = self._nth(connection, timed, *ends)
                end = self._nth(connection, timed, *ends, newest_first=True)
                ends = (last + 1, last) if begin is None or end is None else (begin, end)
            if newest is not None and last:
                # The newest event that is left out.
                before = self._nth(connection, query, *ends, skip=newest, newest_first=True)
                ends = ends if before is None else (before + 1, ends[1])
            return ends

    def events(self, first: int, last: int, query: Query = EVERYTHING) -> Iterator[StoredEvent]:
        """Read matching events page by page, so that a trail of millions is never in memory as a whole."""
        while page := self.query(query, after_seq=first - 1, last_seq=last):
            yield from page
            first = page[-1].seq + 1

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def follow(self, first: int, query: Query = EVERYTHING) -> Iterator[StoredEvent]:
        """Read matching events from a position on, and then each new one; never ends."""

    @abstractmethod
    def query(
        self,
        query: Query = EVERYTHING,
        *,
        after_seq: int = 0,
        last_seq: int | None = None,
        limit: int = PAGE_ROWS_MAX,
    ) -> list[StoredEvent]:
        """Read the oldest matching events after a position, at most a page of them."""

    @abstractmethod
    def _view(self) -> AbstractContextManager[sa.Connection]:
        """A connection with a consistent view of the trail."""

    def _nth(
        self,
        connection: sa.Connection,
        query: Query,
        first: int,
        last: int,
        *,
        skip: int = 0,
        newest_first: bool = False,
    ) -> int | None:
        """The position of the matching event after `skip` others, from one end of a range; None if there are
        too few.
        """
        for search in self._searches(connection, query, first, last, newest_first=newest_first):
            found = connection.execute(search.limit(skip + 1)).all()
            if len(found) > skip:
                return self._position(found[skip])
            skip -= len(found)
        return None

    @abstractmethod
    def _searches(
        self, connection: sa.Connection, query: Query, first: int, last: int, *, newest_first: bool
    ) -> Iterator[sa.Select[tuple[Any, ...]]]:
        """Select the places of the matching events in a range, in order, by one statement after the other."""

    @abstractmethod
    def _position(self, place: sa.Row[tuple[Any, ...]]) -> int:
        """The position of a place that was found."""

    @abstractmethod
    def _oldest(self, connection: sa.Connection) -> tuple[int, datetime] | None:
        """The position of the oldest event, and when it happened."""

    @abstractmethod
    def _last(self, connection: sa.Connection) -> int: ...


class AuditReader(TrailReader):
    """The trail in a file."""

    def __init__(self, path: Path) -> None:
        with translated(path):
            # From Python 3.14 on, Path.is_file returns False for a file that may not be inspected.
            try:
                is_file = stat.S_ISREG(path.stat().st_mode)
            except (FileNotFoundError, NotADirectoryError):
                is_file = False
            if not is_file:
                raise NoTrail(f"there is no audit trail at {path}")
        self.path = path
        self._engine = sa.create_engine(url(path, "ro"))

    def close(self) -> None:
        self._engine.dispose()

    def follow(self, first: int, query: Query = EVERYTHING) -> Iterator[StoredEvent]:
        while True:
            while (last := self.last()) < first:
                time.sleep(POLL_S)
            yield from self.events(first, last, query)
            first = last + 1

    def query(
        self,
        query: Query = EVERYTHING,
        *,
        after_seq: int = 0,
        last_seq: int | None = None,
        limit: int = PAGE_ROWS_MAX,
    ) -> list[StoredEvent]:
        limit = min(limit, PAGE_ROWS_MAX)
        page: list[StoredEvent] = []
        # One transaction for everything: a writer may be upgrading the file at this moment.
        with self._view() as connection:
            version = schema.version(connection, self.path)
            stored = _STORED_WHOLE if version == schema.WITHOUT_COMMON_PARTS else STORED
            last = self._last(connection) if last_seq is None else last_seq
            for stretch in stretches(connection, query, after_seq + 1, last):
                found = stored.where(events.c.seq.between(*stretch), *query.event_conditions())
                rows = connection.execute(found.order_by(events.c.seq).limit(limit - len(page)))
                page += [StoredEvent(row.seq, body_of(row, self.path)) for row in rows]
                if len(page) == limit:
                    break
        return page

    @contextmanager
    def _view(self) -> Iterator[sa.Connection]:
        with translated(self.path), self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            yield connection

    def _searches(
        self, connection: sa.Connection, query: Query, first: int, last: int, *, newest_first: bool
    ) -> Iterator[sa.Select[tuple[Any, ...]]]:
        order = events.c.seq.desc() if newest_first else events.c.seq
        for stretch in stretches(connection, query, first, last, newest_first=newest_first):
            found = sa.select(events.c.seq).where(events.c.seq.between(*stretch), *query.event_conditions())
            yield found.order_by(order)

    def _position(self, place: sa.Row[tuple[Any, ...]]) -> int:
        seq: int = place.seq
        return seq

    def _oldest(self, connection: sa.Connection) -> tuple[int, datetime] | None:
        if not self._last(connection):
            return None
        found = sa.select(events.c.seq, events.c.ts_us).order_by(events.c.seq).limit(1)
        row = connection.execute(found).first()
        return None if row is None else (row.seq, moment(row.ts_us))

    def _last(self, connection: sa.Connection) -> int:
        # A file without tables is a trail without events yet.
        if not schema.version(connection, self.path):
            return 0
        return connection.scalar(sa.select(sa.func.max(events.c.seq))) or 0


# The columns of an event that `body_of` needs.
STORED = sa.select(
    *(events.c.seq, events.c.eid, events.c.kind, events.c.phase, events.c.ts_us, events.c.body),
    *(events.c.common, common_parts.c.body.label("common_body")),
).select_from(events.outerjoin(common_parts, common_parts.c.number == events.c.common))
_STORED_WHOLE = sa.select(events.c.seq, events.c.body, sa.null().label("common"))


def body_of(row: sa.Row[Any], path: Path) -> bytes:
    """The event's JSON; raises AuditUnavailable if the file has lost a part of it."""
    if row.common is not None and row.common_body is None:
        raise damaged(path, f"the common part of event {row.seq} is missing")
    try:
        return json_of(row)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise damaged(path, f"event {row.seq} is not JSON ({error})") from error
    except (TypeError, OverflowError) as error:
        # SQLite stores values of any type in any column.
        raise damaged(path, f"event {row.seq} has values of types that no hub has written") from error


def json_of(row: sa.Row[tuple[Any, ...]]) -> bytes:
    """The event's JSON, from its row and its common part.

    Raises DecodeError, UnicodeDecodeError, OverflowError or TypeError if one of them is damaged.
    """
    if row.common is None:
        members_of(row.body)
        body = bytes(row.body)
    else:
        ts = moment(row.ts_us)
        body = whole(row.body, row.common_body, eid=row.eid, kind=row.kind, phase=row.phase, ts=ts)
    # msgspec does not check the text that it copies unparsed.
    body.decode()
    return body
