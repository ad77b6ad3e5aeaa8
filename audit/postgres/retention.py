"""Prunes a trail in PostgreSQL, as audit.retention does in a file.

The owner's function `trail_prune` deletes the rows, since the hub's role may not. It refuses to delete events
of the last KEPT_HOURS_MIN hours, and the first event of a call that has not ended.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from audit.errors import AuditUnavailable
from audit.postgres import arrays
from audit.postgres.link import Statement
from audit.postgres.reader import PostgresReader, parts_of, position
from audit.postgres.schema import KEPT_HOURS_MIN, events, open_intents
from audit.postgres.store import PostgresStore
from audit.query import EVERYTHING, Query
from audit.record import Event
from audit.retention import Removal, new_file, summed
from audit.schema import microseconds

# Rows per transaction, which takes some 0.1 s. Nothing waits for it, but one transaction for all rows could
# exceed STATEMENT_S.
SLICE_ROWS = 5000

_PRUNE = Statement(b"prune", b"SELECT trail_prune($1, $2, $3)")


class PrunablePostgresStore(PostgresStore):
    """A trail that is opened for pruning, possibly while hubs write to it."""

    def prune(
        self,
        before: datetime,
        make_event: Callable[[Removal], Event],
        archive: Path | None = None,
        progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    ) -> Removal | None:
        """Remove the events older than `before`, and return which they were; None if there are none.

        As `PrunableStore.prune`. Raises AuditUnavailable for a time within the last KEPT_HOURS_MIN hours.
        """
        with closing(_Reader(self._conninfo)) as reader:
            ends = reader.oldest(before)
            if ends is None:
                return None
            slices = reader.slices(*ends)
            total = len(slices) * SLICE_ROWS
            with new_file(archive) as file:
                removal = summed(reader, *ends, file, lambda done: progress("events read", done, total))
        self.append([make_event(removal)])
        with self._translated():
            for number, last in enumerate(slices, 1):
                written, epoch, n = parts_of(last)
                values = arrays.int8(written), arrays.int4(epoch), arrays.int8(n)
                self._run([(_PRUNE, values)])
                progress("events removed", min(number * SLICE_ROWS, removal.count), removal.count)
        return removal


class _Reader(PostgresReader):
    """Finds the events that can be removed, while others write to the trail."""

    def oldest(self, before: datetime) -> tuple[int, int] | None:
        """The positions of the first and the last event that can be removed; None if none can.

        These are all events before the first one that is not older than `before`, or that began a call that
        is still open, or that was written within the last KEPT_HOURS_MIN hours.
        """
        with self._view() as connection:
            now: datetime = connection.exec_driver_sql("SELECT now()").scalar_one().astimezone(UTC)
            newest = now - timedelta(hours=KEPT_HOURS_MIN)
            if before > newest:
                raise AuditUnavailable(
                    f"a trail in PostgreSQL keeps the events of the last {KEPT_HOURS_MIN} hours"
                )
            first, last = self._oldest(connection), self._last(connection)
            if first is None:
                return None
            begun = (
                sa.select(events.c.written, events.c.epoch, events.c.n)
                .join(
                    open_intents,
                    sa.and_(open_intents.c.epoch == events.c.epoch, open_intents.c.n == events.c.n),
                )
                .order_by(events.c.written, events.c.epoch, events.c.n)
                .limit(1)
            )
            kept = [self._nth(connection, Query(since=before), 1, last)]
            kept += [position(*row) for row in connection.execute(begun)]
            kept.append(position(microseconds(newest), 0, 0))
            end = min(each for each in kept if each is not None)
            found = self._nth(connection, EVERYTHING, 1, end - 1, newest_first=True)
        return None if found is None else (first[0], found)

    def slices(self, first: int, last: int) -> list[int]:
        """The last positions of parts of SLICE_ROWS events."""
        found: list[int] = []
        with self._view() as connection:
            while True:
                end = self._nth(connection, EVERYTHING, first, last, skip=SLICE_ROWS - 1)
                if end is None or end >= last:
                    return [*found, last]
                found.append(end)
                first = end + 1
