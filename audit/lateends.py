"""The position of a call's last row, if it is far behind the first row.

Nearly every call has both rows within a moment, so a reader finds the last one close behind the first. A
watch of an hour, or an exec on a busy hub, has millions of rows between them. Only such a call has an entry
here, so reads and short writes cost nothing. An index of all ids would take 50 bytes per event, and a page
write with each.

Calls that ended under an earlier version have no entry; their last rows are found by a search.
"""

from __future__ import annotations

import sqlalchemy as sa

from audit.blocks import BLOCK_EVENTS
from audit.ids import first_id
from audit.schema import events, late_ends

# A reader scans this many rows in about a millisecond.
NEAR_EVENTS = 8 * BLOCK_EVENTS

# For the rows after a number; runs before their intents are deleted. OR IGNORE: a search hint must never make
# an event fail.
NOTE = (
    "INSERT OR IGNORE INTO late_ends (eid, seq) SELECT events.eid, events.seq FROM events "
    "JOIN open_intents ON open_intents.eid = events.eid "
    "WHERE events.seq > ? AND events.seq - open_intents.seq > ?"
)


def forget_before(connection: sa.Connection, event: int) -> None:
    """Delete the entries of rows before this event, while these rows still exist; in the caller's
    transaction.
    """
    newest = sa.select(events.c.ts_us).where(events.c.seq < event).order_by(events.c.seq.desc()).limit(1)
    ts_us = connection.scalar(newest)
    if ts_us is not None:
        # Narrowed by id first, since ids are in time order: only entries of calls that began by then are
        # scanned.
        before = late_ends.c.eid < first_id(ts_us // 1000 + 1)
        connection.execute(sa.delete(late_ends).where(before, late_ends.c.seq < event))
