"""The trail as it is read: which events are wanted, and each as the JSON that it was written from.

Another process reads it beside the hub, by connections of its own that are opened read-only.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from audit.query import EVERYTHING, Wanted
from audit.schema import common_parts, events, moment
from audit.shared import members_of, whole

# Rows a query holds in memory at once; longer answers are read page by page.
PAGE_ROWS_MAX = 1000


@attrs.frozen
class StoredEvent:
    """A row: its place in the trail and the event's JSON."""

    seq: int
    body: bytes

    @property
    def line(self) -> bytes:
        """The JSON with the sequence number in it, without a newline."""
        return b'{"seq":%d,%s' % (self.seq, self.body[1:])


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
        self._engine = sa.create_engine(url(path, "ro"))

    def close(self) -> None:
        self._engine.dispose()

    def last(self) -> int:
        """The newest event's number, 0 where there is none."""
        with translated(self.path), self._engine.connect() as connection:
            return self._last(connection)

    def began(self) -> datetime | None:
        """When the oldest event happened that is still there; None where there is none."""
        with self._view() as connection:
            oldest = self._oldest(connection)
            return None if oldest is None else oldest[1]

    def holds(self, wanted: Wanted) -> bool:
        """Whether there is any such event."""
        with self._view() as connection:
            last = self._last(connection)
            return bool(last) and self._nth(connection, wanted, 1, last, newest_first=True) is not None

    def beyond(self, wanted: Wanted, newest: int) -> int | None:
        """The number of the newest event that is wanted and not one of the newest so many of them."""
        with self._view() as connection:
            last = self._last(connection)
            return self._nth(connection, wanted, 1, last, skip=newest, newest_first=True) if last else None

    def span(self, wanted: Wanted = EVERYTHING, newest: int | None = None) -> tuple[int, int]:
        """The first and the last number of what is wanted and is there now, or of the newest so many of it.

        Where there is none, the first is the number that comes next, and the last the one before it.
        """
        with self._view() as connection:
            last = self._last(connection)
            ends = 1, last
            time = wanted.only_time()
            if last and time != EVERYTHING:
                begin = self._nth(connection, time, *ends)
                end = self._nth(connection, time, *ends, newest_first=True)
                ends = (last + 1, last) if begin is None or end is None else (begin, end)
            if newest is not None and last:
                # The newest of those that are too many.
                before = self._nth(connection, wanted, *ends, skip=newest, newest_first=True)
                ends = ends if before is None else (before + 1, ends[1])
            return ends

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
        limit = min(limit, PAGE_ROWS_MAX)
        page: list[StoredEvent] = []
        # One view for all: a writer of this version may bring the file up to date just now.
        with self._view() as connection:
            version = schema.version(connection, self.path)
            stored = _STORED_WHOLE if version == schema.WITHOUT_COMMON_PARTS else STORED
            last = self._last(connection) if last_seq is None else last_seq
            for stretch in stretches(connection, wanted, after_seq + 1, last):
                found = stored.where(events.c.seq.between(*stretch), *wanted.of_event())
                rows = connection.execute(found.order_by(events.c.seq).limit(limit - len(page)))
                page += [StoredEvent(row.seq, body_of(row, self.path)) for row in rows]
                if len(page) == limit:
                    break
        return page

    @contextmanager
    def _view(self) -> Iterator[sa.Connection]:
        """A connection that sees the file as it is now."""
        with translated(self.path), self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            yield connection

    def _nth(
        self,
        connection: sa.Connection,
        wanted: Wanted,
        first: int,
        last: int,
        *,
        skip: int = 0,
        newest_first: bool = False,
    ) -> int | None:
        """The number of an event that is wanted, from one end of a span on; None where there are too few."""
        order = events.c.seq.desc() if newest_first else events.c.seq
        for stretch in stretches(connection, wanted, first, last, newest_first=newest_first):
            found = sa.select(events.c.seq).where(events.c.seq.between(*stretch), *wanted.of_event())
            numbers: Sequence[int] = connection.scalars(found.order_by(order).limit(skip + 1)).all()
            if len(numbers) > skip:
                return numbers[skip]
            skip -= len(numbers)
        return None

    def _oldest(self, connection: sa.Connection) -> tuple[int, datetime] | None:
        """The number of the oldest event, and when it happened."""
        if not self._last(connection):
            return None
        found = sa.select(events.c.seq, events.c.ts_us).order_by(events.c.seq).limit(1)
        row = connection.execute(found).first()
        return None if row is None else (row.seq, moment(row.ts_us))

    def _last(self, connection: sa.Connection) -> int:
        # A file without tables is a trail that nothing was written to yet.
        if not schema.version(connection, self.path):
            return 0
        return connection.scalar(sa.select(sa.func.max(events.c.seq))) or 0


# What `body_of` needs of an event.
STORED = sa.select(
    *(events.c.seq, events.c.eid, events.c.kind, events.c.phase, events.c.ts_us, events.c.body),
    *(events.c.common, common_parts.c.body.label("common_body")),
).select_from(events.outerjoin(common_parts, common_parts.c.number == events.c.common))
_STORED_WHOLE = sa.select(events.c.seq, events.c.body, sa.null().label("common"))


def body_of(row: sa.Row[Any], path: Path) -> bytes:
    """The event's JSON; raises AuditUnavailable when the file has lost a part of it."""
    if row.common is not None and row.common_body is None:
        raise damaged(path, f"what event {row.seq} has in common with others is missing")
    try:
        if row.common is None:
            members_of(row.body)
            body = bytes(row.body)
        else:
            ts = moment(row.ts_us)
            body = whole(row.body, row.common_body, eid=row.eid, kind=row.kind, phase=row.phase, ts=ts)
        # What it only passes on, msgspec does not look at.
        body.decode()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise damaged(path, f"event {row.seq} is no JSON ({error})") from error
    except (TypeError, OverflowError) as error:
        # SQLite keeps a value of any type in any column.
        raise damaged(path, f"event {row.seq} has values of types that no hub has written") from error
    return body
