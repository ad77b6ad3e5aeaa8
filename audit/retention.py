"""Prunes a trail: removes its oldest events, and adds an event that identifies them.

Only the beginning of the trail can be removed, so the remaining numbers have no gaps. The event
`audit.pruned` names the removed numbers, and the SHA-256 of the events as `hawse audit list --json` prints
them, one per line. So the archive that is written, or any other copy of these events, can be proved to be
complete and unchanged. The next removal covers this event like any other.

First the archive is written to the disk, then the event is added. Then the events are removed in slices,
since the hub waits for its writes meanwhile. A prune that is killed in between has removed less than its
event says, and never an event that it does not cover. The next prune removes the rest.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

import attrs
import sqlalchemy as sa

from audit import blocks, lateends
from audit.display import json_line
from audit.errors import AuditUnavailable
from audit.file import translated
from audit.query import Query
from audit.reader import AuditReader, TrailReader
from audit.record import Event
from audit.schema import SPAN_EVENTS, common_parts, deletable, events, open_intents
from audit.store import AuditStore

# Rows per transaction: it takes milliseconds, while the hub's own writes wait.
SLICE_ROWS = 500
# The pause after a slice, as a multiple of the slice's duration. SQLite has no queue of writers: one that
# finds the file locked retries after 1, 2, 5, 10 ms and so on, up to 100, and never waits longer than twice
# its wait so far. So a writer that came during a slice retries within the pause after it, however slow the
# disk is.
PAUSE_SLICES = 4


@attrs.frozen
class Removal:
    """The beginning of a trail that is removed."""

    first: int
    last: int
    """Positions."""
    count: int
    sha256: str
    """Of its events' lines, each with a newline at the end."""
    ends: tuple[str, str]
    """The numbers of the first and the last event, for people."""

    def __str__(self) -> str:
        what = "event" if self.count == 1 else "events"
        return f"{self.count} {what}, {self.ends[0]} to {self.ends[1]}, sha256={self.sha256}"


class PrunableStore(AuditStore):
    """A trail that is opened for pruning, possibly while a hub writes to it."""

    def prune(
        self,
        before: datetime,
        make_event: Callable[[Removal], Event],
        archive: Path | None = None,
        progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    ) -> Removal | None:
        """Remove the events older than `before`, and return which they were; None if there are none.

        The event from `make_event` is written first. `progress` is called with the step, the amount done, and
        the total. Raises OSError if the archive cannot be written, or exists already; then nothing is
        removed. Raises AuditUnavailable; then the removed events are a beginning of those in the event, or
        none.
        """
        with closing(_Reader(self.path)) as reader:
            found = reader.oldest(before)
            if found is None:
                return None
            total = found[1] - found[0] + 1
            with new_file(archive) as file:
                removal = summed(reader, *found, file, lambda done: progress("events read", done, total))
        self.append([make_event(removal)])
        for last in range(removal.first + SLICE_ROWS - 1, removal.last, SLICE_ROWS):
            locked_s = self._remove(last)
            progress("events removed", last - removal.first + 1, removal.count)
            time.sleep(PAUSE_SLICES * locked_s)
        self._remove(removal.last)
        return removal

    def _remove(self, last: int) -> float:
        """Remove all events up to a number; returns for how many seconds other writers had to wait."""
        with translated(self.path):
            with self._transaction() as connection:
                locked_s = time.monotonic()
                lateends.forget_before(connection, last + 1)
                with deletable(connection):
                    connection.execute(sa.delete(events).where(events.c.seq <= last))
                # No remaining or future event refers to a common part older than this.
                needed = sa.select(sa.func.min(common_parts.c.number)).where(
                    common_parts.c.seq > last - SPAN_EVENTS
                )
                connection.execute(
                    sa.delete(common_parts).where(common_parts.c.number < needed.scalar_subquery())
                )
                blocks.forget_before(connection, last + 1)
            return time.monotonic() - locked_s


class _Reader(AuditReader):
    """Finds the events that can be removed, while others write to the trail."""

    def oldest(self, before: datetime) -> tuple[int, int] | None:
        """The numbers of the first and the last event that can be removed; None if none can.

        These are all events before the first one that is not older than `before`, or that began a call that
        is still open. So after a wrong clock, events are kept for longer, and never removed too early.
        """
        # This may scan all old events, but it delays no writer.
        with self._view() as connection:
            newest = connection.scalar(sa.select(sa.func.max(events.c.seq)))
            first = connection.scalar(sa.select(sa.func.min(events.c.seq)))
            begun = connection.scalar(sa.select(sa.func.min(open_intents.c.seq)))
            if first is None or newest is None:
                return None
            kept = self._nth(connection, Query(since=before), first, newest)
        last = min([newest, *(seq - 1 for seq in (kept, begun) if seq is not None)])
        return (first, last) if last >= first else None


def summed(
    reader: TrailReader, first: int, last: int, archive: IO[bytes] | None, progress: Callable[[int], None]
) -> Removal:
    """Read the events of a removal, and write them to its archive."""
    digest, count = hashlib.sha256(), 0
    ends: tuple[str, str] | None = None
    for stored in reader.events(first, last):
        line = json_line(stored).encode("ascii") + b"\n"
        digest.update(line)
        if archive is not None:
            archive.write(line)
        count += 1
        ends = ends[0] if ends is not None else stored.number, stored.number
        progress(count)
    # Only beginnings are removed. So if the first event still exists, all of them were read.
    if [stored.seq for stored in reader.query(limit=1)] != [first]:
        raise AuditUnavailable(
            "the audit trail is being shortened by another process: try again when that has ended"
        )
    assert ends is not None, "the first event was read"
    return Removal(first, last, count, digest.hexdigest(), ends)


@contextmanager
def new_file(path: Path | None) -> Iterator[IO[bytes] | None]:
    """A new file, readable only by its owner, which is on the disk when the block ends; None without a path.

    It gets its name only at the end: a block that raises leaves no file. Raises FileExistsError if the name
    is taken, before the block if possible.
    """
    if path is None:
        yield None
        return
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    folder = path.absolute().parent
    with tempfile.NamedTemporaryFile(prefix=".hawse-audit-", dir=folder) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        # link() instead of rename(): it refuses to replace an existing name.
        os.link(file.name, path)
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
