"""Where in the trail to search: a block range index, as PostgreSQL's BRIN.

Of each BLOCK_EVENTS numbers in a row it says between which times their events happened, and which agents,
clusters and kinds they name. It is written once a block, when that is full. An ordinary index is written with
each event: three of them took a fifth of what the trail costs, and half of what it writes to the disk.

A block that nothing is known of is searched: the one that is being filled, and those of an earlier version's
file until the writer has caught up with them. So is what a writer of an earlier version adds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import chain

import sqlalchemy as sa

from audit.query import Wanted
from audit.schema import block_names, blocks

# A search for a rare name reads so many events for each that it finds, in about 0.1 ms.
BLOCK_EVENTS = 1024
# Of those that were left out, so many with each that is filled: 25 ms of the writer's.
_CAUGHT_UP_MAX = 64
# What one query of a search walks through, so that its answer is bounded too.
_STRETCH_BLOCKS_MAX = 64


def note_full(cursor: sqlite3.Cursor, before: int, newest: int) -> None:
    """Note what is in the blocks that the events behind `before`, up to `newest`, have filled.

    In the writer's transaction. It takes the next blocks that nothing is known of, so a few that others have
    left out too.
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
        cursor.execute(_NOTE_TIMES, values)


def stretches(
    connection: sa.Connection, wanted: Wanted, first: int, last: int, *, newest_first: bool = False
) -> Iterator[tuple[int, int]]:
    """Tell between which numbers from `first` to `last` what is wanted may be, in their order.

    In a transaction of the caller's, or what is written meanwhile may be passed over.
    """
    numbers = range(first // BLOCK_EVENTS, last // BLOCK_EVENTS + 1)
    unknown = range(max(numbers.start, _known(connection)), numbers.stop)
    order = blocks.c.number.desc() if newest_first else blocks.c.number
    within = blocks.c.number.between(numbers.start, min(unknown.start, numbers.stop) - 1)
    found = sa.select(blocks.c.number).where(within, *wanted.of_block()).order_by(order)
    known = connection.scalars(found) if unknown.start > numbers.start else ()
    ordered = chain(reversed(unknown), known) if newest_first else chain(known, unknown)
    for run in _runs(ordered):
        begin, end = min(run) * BLOCK_EVENTS, (max(run) + 1) * BLOCK_EVENTS
        yield max(first, begin), min(last, end - 1)


def known_blocks_end(connection: sa.Connection) -> int:
    """The number of the first event whose block nothing is known of."""
    return _known(connection) * BLOCK_EVENTS


def forget_before(connection: sa.Connection, event: int) -> None:
    """Forget the blocks of which no event from this one on is, in a transaction of the caller's."""
    block = event // BLOCK_EVENTS
    connection.execute(sa.delete(block_names).where(block_names.c.block < block))
    connection.execute(sa.delete(blocks).where(blocks.c.number < block))


def _known(connection: sa.Connection) -> int:
    """The number of the first block that nothing is known of, nor of any behind it."""
    # A reader does not bring a file up to date.
    if not connection.exec_driver_sql(_HAS_BLOCKS).scalar():
        return 0
    newest: int | None = connection.scalar(sa.select(sa.func.max(blocks.c.number)))
    return 0 if newest is None else newest + 1


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The first and the last of those that follow one another, up or down."""
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
# There are none of numbers that were lost.
_FIRST_UNKNOWN = (
    "SELECT min(seq) FROM events WHERE seq >= (SELECT coalesce(max(number) + 1, 0) FROM blocks) * ?"
)
_NOTE_TIMES = """
INSERT INTO blocks (number, first_us, last_us)
SELECT :block, min(ts_us), max(ts_us) FROM events WHERE seq >= :first AND seq < :end
"""
# One statement, since beside a busy event loop each costs much, and one walk for all three: SQLite keeps what
# is asked for more than once.
_NOTE_NAMES = """
WITH here AS (
    SELECT DISTINCT agent, cluster, kind FROM events WHERE seq >= :first AND seq < :end
)
INSERT INTO block_names (block, "column", name)
SELECT :block, 'agent', agent FROM here
UNION SELECT :block, 'cluster', cluster FROM here
UNION SELECT :block, 'kind', kind FROM here
"""
