"""Finds the rows of one call by its id, in milliseconds among millions of events.

An id is a UUIDv7, which begins with its creation time. A call's first row is written within seconds of that
time, so it is in one of the few blocks of that time (audit.blocks). Its last row follows closely, or has an
entry of its own (audit.lateends).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta

import attrs
import sqlalchemy as sa

from audit import lateends
from audit.blocks import stretches
from audit.errors import NoSuchCall
from audit.ids import milliseconds
from audit.query import Query
from audit.reader import AuditReader, StoredEvent
from audit.record import Phase
from audit.schema import events, late_ends, open_intents

# From an id's creation until its first row is written. A long read has a row after 5 s; on a machine that was
# suspended meanwhile, it comes later.
ROW_WRITTEN_S = 60
# A flood's row has the time of the first event that it counts (up to audit.recording.flood.WINDOW_S before
# its id's), rounded up.
_TIME_BEFORE_S = 11
# An id prefix of this length covers about a minute. A shorter prefix may match a year of events.
PREFIX_CHARACTERS_MIN = 8
# Maximum candidates to list for an ambiguous prefix.
CANDIDATES_MAX = 5

# The number of a row. Ids begin with a zero until the year 2527, and numbers do not. Far below 2^63, SQLite's
# limit. In PostgreSQL a hub's rows have the number of its epoch before their own.
NUMBER = re.compile(r"(?:[1-9][0-9]{0,8}\.)?[1-9][0-9]{0,17}")

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@attrs.frozen
class FoundCall:
    """One call, or another event with a single row."""

    rows: list[StoredEvent]
    open: bool = False
    """Whether the call has not ended yet."""


def check_id(prefix: str) -> None:
    """Check the beginning of an id; raises ValueError, and NoSuchCall for an id that is not of Hawse."""
    if len(prefix) < PREFIX_CHARACTERS_MIN or _ID.fullmatch(prefix + _FILLED[len(prefix) :]) is None:
        raise ValueError(f"{prefix!a} is neither an event id nor the beginning of one")
    if prefix[_VERSION_AT : _VERSION_AT + 1] not in {"", "7"}:
        raise NoSuchCall(
            f"{prefix} is not an id of Hawse, whose third group begins with 7: a call with this Audit-ID "
            "reached the API server without Hawse"
        )


def only_id(eids: Collection[str], prefix: str, extent: Callable[[], str]) -> str:
    """The only id of those with this prefix; raises NoSuchCall, with the trail's extent for none."""
    if len(eids) > 1:
        some = ", ".join(sorted(eids)[:CANDIDATES_MAX])
        raise NoSuchCall(f"{prefix} is the beginning of more than one id: {some}; give more characters")
    for eid in eids:
        return eid
    raise NoSuchCall(f"no event has the id {prefix}: {extent()}")


def written_between(prefix: str) -> Query:
    """Selects the time in which the first row of a call with such an id was written."""
    earliest, latest = _made(prefix)
    return Query(
        since=earliest - timedelta(seconds=_TIME_BEFORE_S), until=latest + timedelta(seconds=ROW_WRITTEN_S)
    )


def made_before(prefix: str, when: datetime) -> bool:
    """Whether any id with this prefix was made before then."""
    return _made(prefix)[1] < when


def _made(prefix: str) -> tuple[datetime, datetime]:
    earliest, latest = (
        datetime.fromtimestamp(min(ms, _LATEST_MS) / 1000, UTC) for ms in milliseconds(prefix)
    )
    return earliest, latest


class CallReader(AuditReader):
    """Searches the trail for one call."""

    def by_number(self, number: str) -> FoundCall:
        """The call that the row of this number belongs to; raises NoSuchCall."""
        with self._view() as connection:
            if not self._last(connection):
                raise NoSuchCall("the trail holds no event yet")
            # A number with a point is one of a trail in PostgreSQL.
            seq = int(number) if number.isdigit() else 0
            eid = connection.scalar(sa.select(events.c.eid).where(events.c.seq == seq))
            if eid is None:
                raise NoSuchCall(f"no event has the number {number}: {self._extent(connection)}")
        return self.by_id(eid)

    def by_id(self, prefix: str) -> FoundCall:
        """The call with this id, or with the only id that has this prefix; raises NoSuchCall, ValueError."""
        prefix = prefix.lower()
        check_id(prefix)
        with self._view() as connection:
            if not self._last(connection):
                raise NoSuchCall("the trail holds no event yet")
            firsts = self._first_rows(connection, prefix)
            ends = self._noted_ends(connection, prefix)
            eid = only_id({*firsts, *ends}, prefix, lambda: self._extent(connection))
            first, end = firsts.get(eid), ends.get(eid)
            opened = False
            if first is not None and end is None:
                end, opened = self._end_of(connection, eid, first)
            # If the first row is pruned, both searches may find the last one.
            numbers = sorted({seq for seq in (first, end) if seq is not None})
            rows = [row for seq in numbers for row in self.query(after_seq=seq - 1, last_seq=seq)]
            if not rows:
                # An earlier version prunes the row and keeps the entry of its end.
                raise NoSuchCall(f"no event has the id {eid}: {self._extent(connection)}")
        return FoundCall(rows, opened)

    def _first_rows(self, connection: sa.Connection, prefix: str) -> dict[str, int]:
        """The ids with this prefix, each with its first remaining row."""
        found: dict[str, int] = {}
        whole = len(prefix) == len(_FILLED)
        for stretch in self._written(connection, prefix):
            here = sa.select(events.c.eid, events.c.seq).where(
                events.c.seq.between(*stretch), _begins(events.c.eid, prefix)
            )
            for eid, seq in connection.execute(here.order_by(events.c.seq).limit(None if not whole else 1)):
                found.setdefault(eid, seq)
                if len(found) > CANDIDATES_MAX:
                    return found
            if found and whole:
                break
        return found

    def _written(self, connection: sa.Connection, prefix: str) -> list[tuple[int, int]]:
        """The ranges of event numbers that may hold the first row of such an id."""
        last = self._last(connection)
        made = written_between(prefix)
        found = list(stretches(connection, made, 1, last))
        oldest = self._oldest(connection)
        if oldest is not None and made_before(prefix, oldest[1]):
            # The first row may be pruned while the last one, close behind it, remains.
            found.append((oldest[0], oldest[0] + lateends.NEAR_EVENTS))
        return found

    def _noted_ends(self, connection: sa.Connection, prefix: str) -> dict[str, int]:
        # Readers do not upgrade the file, so the table may be missing.
        if not connection.exec_driver_sql(_HAS_LATE_ENDS).scalar():
            return {}
        noted = sa.select(late_ends.c.eid, late_ends.c.seq).where(_begins(late_ends.c.eid, prefix))
        return {row.eid: row.seq for row in connection.execute(noted.limit(CANDIDATES_MAX + 1))}

    def _end_of(self, connection: sa.Connection, eid: str, first: int) -> tuple[int | None, bool]:
        """The number of a call's last row if it has a second row, and whether the call is still open."""
        row = connection.execute(
            sa.select(events.c.phase, events.c.agent, events.c.cluster).where(events.c.seq == first)
        ).one()
        if row.phase not in OPENING:
            return None, False
        near = first + lateends.NEAR_EVENTS
        end = self._row_between(connection, eid, first + 1, near)
        if end is not None:
            return end, False
        if connection.scalar(sa.select(open_intents.c.seq).where(open_intents.c.eid == eid)) is not None:
            return None, True
        # The call ended under an earlier version, which did not note ends.
        same = Query(agent=row.agent or None, cluster=row.cluster or None)
        for stretch in stretches(connection, same, near + 1, self._last(connection)):
            end = self._row_between(connection, eid, *stretch)
            if end is not None:
                return end, False
        return None, False

    def _row_between(self, connection: sa.Connection, eid: str, first: int, last: int) -> int | None:
        found = sa.select(events.c.seq).where(events.c.seq.between(first, last), events.c.eid == eid)
        seq: int | None = connection.scalar(found.order_by(events.c.seq).limit(1))
        return seq

    def _extent(self, connection: sa.Connection) -> str:
        oldest = self._oldest(connection)
        assert oldest is not None, "the trail holds events"
        first, since = oldest
        older = "; older ones were pruned: search your archives" if first > 1 else ""
        return (
            f"the trail has {first} to {self._last(connection)}, from {since:%Y-%m-%d %H:%M:%S} UTC on{older}"
        )


def _begins(column: sa.ColumnElement[str], prefix: str) -> sa.ColumnElement[bool]:
    # `g` sorts after every hexadecimal digit.
    return column == prefix if len(prefix) == len(_FILLED) else column.between(prefix, prefix + "g")


# The position of the version digit in a UUID.
_VERSION_AT = 14
# Later times in an id are clamped to the year 9000: a datetime ends with the year 9999.
_LATEST_MS = 221_845_392_000_000
_FILLED = "00000000-0000-0000-0000-000000000000"
OPENING = frozenset(phase.value for phase in Phase if phase.opens)
_HAS_LATE_ENDS = "SELECT 1 FROM sqlite_master WHERE name = 'late_ends'"
