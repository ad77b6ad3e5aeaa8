"""The search index of the trail: a block range index, as in PostgreSQL's BRIN.

A block is BLOCK_EVENTS consecutive event numbers. The index keeps the time range of each block, and the
agents, clusters and kinds in it. It is written once per block, when the block is full. An ordinary index is
written with each event: three of them took a fifth of the trail's cost and half of its disk writes.

It also has the members of the JSON that people search for (audit.members.MemberNames), if one writer has
written the whole block. They are not read back from the rows, which would take 5 ms of the writer's time. A
block without them, as after a restart, is searched event by event.

Blocks that are not indexed yet are searched event by event. These are the block that is filling up, and
blocks written by an earlier version, until the writer has indexed them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

import msgspec
import sqlalchemy as sa

from audit.members import MemberNames
from audit.query import Query
from audit.record import Event
from audit.schema import block_names, blocks

# For a rare name, a search reads this many events per match, in about 0.1 ms.
BLOCK_EVENTS = 1024
# Maximum unindexed blocks to catch up on per full block: 25 ms of the writer's time.
_CAUGHT_UP_MAX = 64
# Maximum consecutive blocks that one query of a search reads, which also bounds its answer.
_STRETCH_BLOCKS_MAX = 64


class Filling:
    """The names in the block that is filling up, if this writer has written all of it."""

    def __init__(self) -> None:
        self._next = 0
        self._names: MemberNames | None = None

    def forget(self) -> None:
        """Drop the names: the batch was rolled back, or the file may be another one."""
        self._next = 0

    def add(self, before: int, events: Iterable[Event]) -> dict[int, MemberNames]:
        """Add the events after a number, and return the names of the blocks that are full with them."""
        full: dict[int, MemberNames] = {}
        names = self._names if before + 1 == self._next else None
        number = before
        for number, event in enumerate(events, before + 1):
            # There is no event 0.
            if number % BLOCK_EVENTS == 0 or number == 1:
                names = MemberNames()
            if names is not None:
                names.add(event)
                if (number + 1) % BLOCK_EVENTS == 0:
                    full[number // BLOCK_EVENTS] = names
        self._names, self._next = names, number + 1
        return full


def note_full(
    cursor: sqlite3.Cursor,
    before: int,
    newest: int,
    known: Mapping[int, MemberNames],
) -> None:
    """Index the blocks that became full with the events after `before`, up to `newest`.

    `known` has the members of some of them.

    Runs in the writer's transaction. It indexes the oldest unindexed blocks first, so it also catches up on a
    few that other writers left unindexed.
    """
    full = (newest + 1) // BLOCK_EVENTS
    if (before + 1) // BLOCK_EVENTS == full:
        return
    for _ in range(_CAUGHT_UP_MAX):
        (event,) = cursor.execute(_FIRST_UNKNOWN, (BLOCK_EVENTS,)).fetchone()
        if event is None or event // BLOCK_EVENTS >= full:
            return
        number = event // BLOCK_EVENTS
        values = {"block": number, "first": number * BLOCK_EVENTS, "end": (number + 1) * BLOCK_EVENTS}
        cursor.execute(_NOTE_NAMES, values)
        if number in known:
            members = msgspec.json.encode(known[number].columns()).decode()
            cursor.execute(_NOTE_MEMBERS, (number, members))
        cursor.execute(_NOTE_TIMES, values)


def stretches(
    connection: sa.Connection, query: Query, first: int, last: int, *, newest_first: bool = False
) -> Iterator[tuple[int, int]]:
    """Yield ranges of event numbers between `first` and `last` that may hold matches, in order.

    Call it in a transaction, or events written meanwhile may be missed.
    """
    numbers = range(first // BLOCK_EVENTS, last // BLOCK_EVENTS + 1)
    unknown = range(max(numbers.start, _known(connection)), numbers.stop)
    order = blocks.c.number.desc() if newest_first else blocks.c.number
    within = blocks.c.number.between(numbers.start, min(unknown.start, numbers.stop) - 1)
    found = sa.select(blocks.c.number).where(within, *query.block_conditions()).order_by(order)
    known = connection.scalars(found) if unknown.start > numbers.start else ()
    ordered = chain(reversed(unknown), known) if newest_first else chain(known, unknown)
    for run in _runs(ordered):
        begin, end = min(run) * BLOCK_EVENTS, (max(run) + 1) * BLOCK_EVENTS
        yield max(first, begin), min(last, end - 1)


def known_blocks_end(connection: sa.Connection) -> int:
    """The number of the first event whose block is not indexed."""
    return _known(connection) * BLOCK_EVENTS


def forget_before(connection: sa.Connection, event: int) -> None:
    """Delete the index entries of blocks that end before this event, in the caller's transaction."""
    block = event // BLOCK_EVENTS
    connection.execute(sa.delete(block_names).where(block_names.c.block < block))
    connection.execute(sa.delete(blocks).where(blocks.c.number < block))


def _known(connection: sa.Connection) -> int:
    """The number of the first block after the last indexed one."""
    # Readers do not upgrade the file, so the table may be missing.
    if not connection.exec_driver_sql(_HAS_BLOCKS).scalar():
        return 0
    newest: int | None = connection.scalar(sa.select(sa.func.max(blocks.c.number)))
    return 0 if newest is None else newest + 1


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The first and the last number of each run of consecutive numbers, ascending or descending."""
    run: tuple[int, int] | None = None
    for number in numbers:
        if run is not None and abs(number - run[1]) == 1 and abs(number - run[0]) < _STRETCH_BLOCKS_MAX:
            run = run[0], number
            continue
        if run is not None:
            yield run
        run = number, number
    if run is not None:
        yield run


_HAS_BLOCKS = "SELECT 1 FROM sqlite_master WHERE name = 'blocks'"
# Blocks whose events were lost are skipped.
_FIRST_UNKNOWN = (
    "SELECT min(seq) FROM events WHERE seq >= (SELECT coalesce(max(number) + 1, 0) FROM blocks) * ?"
)
_NOTE_TIMES = """
INSERT INTO blocks (number, first_us, last_us)
SELECT :block, min(ts_us), max(ts_us) FROM events WHERE seq >= :first AND seq < :end
"""
_NOTE_MEMBERS = """
INSERT INTO block_names (block, "column", name)
SELECT ?, json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)
"""
# One statement, since each is expensive beside a busy event loop. The common table expression scans the
# events once for all three columns: SQLite materialises it if it is used more than once.
_NOTE_NAMES = """
WITH here AS (
    SELECT DISTINCT agent, cluster, kind FROM events WHERE seq >= :first AND seq < :end
)
INSERT INTO block_names (block, "column", name)
SELECT :block, 'agent', agent FROM here
UNION SELECT :block, 'cluster', cluster FROM here
UNION SELECT :block, 'kind', kind FROM here
"""
