"""Finds the rows of one call in PostgreSQL by its id, as audit.calls does in a file."""

from __future__ import annotations

import re

import sqlalchemy as sa

from audit.calls import (
    CANDIDATES_MAX,
    OPENING,
    FoundCall,
    check_id,
    made_before,
    only_id,
    written_between,
)
from audit.errors import NoSuchCall
from audit.lateends import NEAR_EVENTS
from audit.postgres.reader import STORED, PostgresReader, ordered, parts_of, position, stored, windows
from audit.postgres.schema import events, late_ends, open_intents


class PostgresCallReader(PostgresReader):
    """Searches the trail for one call."""

    def by_number(self, number: str) -> FoundCall:
        """The call that the row of this number belongs to, such as 17 or 3.17; raises NoSuchCall."""
        epoch, _, n = number.rpartition(".")
        with self._view() as connection:
            found = sa.select(events.c.eid).where(events.c.epoch == int(epoch or 0), events.c.n == int(n))
            eid = connection.scalar(found)
            if eid is None:
                raise NoSuchCall(f"no event has the number {number}: {self._extent(connection)}")
        return self.by_id(eid)

    def by_id(self, prefix: str) -> FoundCall:
        """The call with this id, or with the only id that has this prefix; raises NoSuchCall, ValueError."""
        prefix = prefix.lower()
        check_id(prefix)
        with self._view() as connection:
            firsts = self._first_rows(connection, prefix)
            ends = self._noted_ends(connection, prefix)
            eid = only_id({*firsts, *ends}, prefix, lambda: self._extent(connection))
            first, end = firsts.get(eid), ends.get(eid)
            is_open = False
            if first is not None and end is None:
                end, is_open = self._end_of(connection, eid, first)
            # If the first row is pruned, both searches may find the last one.
            found = sorted({each for each in (first, end) if each is not None})
            rows = [
                stored(row)
                for _, epoch, n in map(parts_of, found)
                for row in connection.execute(STORED.where(events.c.epoch == epoch, events.c.n == n))
            ]
        return FoundCall(rows, is_open)

    def _first_rows(self, connection: sa.Connection, prefix: str) -> dict[str, int]:
        """The ids with this prefix, each with the position of its first remaining row."""
        begins = events.c.eid.between(*_ids(prefix))
        found: dict[str, int] = {}
        searches = [
            ordered(_ROWS.where(events.c.written.between(*window), begins))
            for window in windows(connection, written_between(prefix), 0, self._last(connection))
        ]
        oldest = self._oldest(connection)
        if oldest is not None and made_before(prefix, oldest[1]):
            # The first row may be pruned while the last one, close behind it, remains.
            near = ordered(_ROWS).limit(NEAR_EVENTS).subquery()
            searches.append(sa.select(near).where(near.c.eid.between(*_ids(prefix))))
        for search in searches:
            for eid, written, epoch, n in connection.execute(search):
                found.setdefault(eid, position(written, epoch, n))
                if len(found) > CANDIDATES_MAX:
                    return found
        return found

    def _noted_ends(self, connection: sa.Connection, prefix: str) -> dict[str, int]:
        noted = (
            sa.select(late_ends.c.eid, events.c.written, events.c.epoch, events.c.n)
            .join(events, sa.and_(events.c.epoch == late_ends.c.epoch, events.c.n == late_ends.c.n))
            .where(late_ends.c.eid.between(*_ids(prefix)))
            .limit(CANDIDATES_MAX + 1)
        )
        return {row.eid: position(row.written, row.epoch, row.n) for row in connection.execute(noted)}

    def _end_of(self, connection: sa.Connection, eid: str, first: int) -> tuple[int | None, bool]:
        """The position of a call's last row if it has a second row, and whether the call is still open."""
        _, epoch, n = parts_of(first)
        here = sa.select(events.c.phase).where(events.c.epoch == epoch, events.c.n == n)
        if connection.scalar(here) not in OPENING:
            return None, False
        near = sa.select(events.c.written, events.c.epoch, events.c.n).where(
            events.c.epoch == epoch, events.c.n.between(n + 1, n + NEAR_EVENTS), events.c.eid == eid
        )
        row = connection.execute(near.order_by(events.c.n).limit(1)).first()
        if row is not None:
            return position(*row), False
        is_open = sa.exists().where(open_intents.c.eid == eid)
        return None, bool(connection.scalar(sa.select(is_open)))

    def _extent(self, connection: sa.Connection) -> str:
        oldest = self._oldest(connection)
        if oldest is None:
            return "the trail holds no event yet"
        return f"the trail has events from {oldest[1]:%Y-%m-%d %H:%M:%S} UTC on"


_ROWS = sa.select(events.c.eid, events.c.written, events.c.epoch, events.c.n)


def _ids(prefix: str) -> tuple[str, str]:
    """The lowest and the highest id with a prefix."""
    lowest, highest = (re.sub("[0-9a-f]", digit, _FORM) for digit in "0f")
    return prefix + lowest[len(prefix) :], prefix + highest[len(prefix) :]


_FORM = "00000000-0000-0000-0000-000000000000"
