"""The trail as it is read: which events are wanted, and each as the JSON that it was written from.

Another process reads it beside the hub, by connections of its own that are opened read-only.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
import msgspec
import sqlalchemy as sa

from audit import schema
from audit.errors import NoTrail
from audit.file import damaged, translated, url
from audit.record import Kind
from audit.schema import common_parts, events, microseconds, moment
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
        self._engine = sa.create_engine(url(path, "ro"))

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
            stored = _STORED_WHOLE if version == schema.WITHOUT_COMMON_PARTS else STORED
            found = stored.where(*matches).order_by(events.c.seq).limit(min(limit, PAGE_ROWS_MAX))
            return [StoredEvent(row.seq, body_of(row, self.path)) for row in connection.execute(found)]

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
    return body
