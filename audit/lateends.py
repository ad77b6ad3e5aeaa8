"""Where a call has its last row, if that is far behind its first one.

Nearly every call has both rows within a moment, so a reader finds the second close behind the first. A watch
of an hour, or an exec beside a busy fleet, has millions of rows between them. Only such a call has an entry
here, so a read costs nothing, and neither does a write that is answered at once. An index of all ids would
take 50 bytes an event, and a page to write with each.

Calls that ended under an earlier version have no entry. Their last rows are found by a search.
"""

from __future__ import annotations

import sqlalchemy as sa

from audit.blocks import BLOCK_EVENTS
from audit.ids import first_id
from audit.schema import events, late_ends

# A reader walks through so many rows in about a millisecond.
NEAR_EVENTS = 8 * BLOCK_EVENTS

# For the rows behind a number, before their intents are forgotten. OR IGNORE: where to search is no reason to
# refuse an event.
NOTE = (
    "INSERT OR IGNORE INTO late_ends (eid, seq) SELECT events.eid, events.seq FROM events "
    "JOIN open_intents ON open_intents.eid = events.eid "
    "WHERE events.seq > ? AND events.seq - open_intents.seq > ?"
)


def forget_before(connection: sa.Connection, event: int) -> None:
    """Forget the ends before this event, while the events are still there; in the caller's transaction."""
    newest = sa.select(events.c.ts_us).where(events.c.seq < event).order_by(events.c.seq.desc()).limit(1)
    ts_us = connection.scalar(newest)
    if ts_us is not None:
        # By the ids first, which are in the order of time: what ended later is walked through, and no more.
        before = late_ends.c.eid < first_id(ts_us // 1000 + 1)
        connection.execute(sa.delete(late_ends).where(before, late_ends.c.seq < event))
