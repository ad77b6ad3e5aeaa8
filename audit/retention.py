"""Shortens a trail: its oldest events go, and an event stays that says which they were.

Only a beginning of the trail can go, so that what is left has no holes: its numbers go on from the last one
that was removed. The event `audit.pruned` names the numbers, and the SHA-256 of the removed events as
`hawse audit list --json` prints them, a line each. So whoever kept them, by the archive that is written or by
a copy of his own, can show that they are the ones; and the next removal vouches for this event as for others.

First the archive is on the disk, then the event, then the events go, some at a time, since the hub waits for
its turn to write meanwhile. Whoever is killed in between has removed less than the event says, and never
what no event tells of; the next removal names what was left.
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
from audit.query import Wanted
from audit.reader import AuditReader
from audit.record import Event
from audit.schema import common_parts, deletable, events, open_intents
from audit.shared import SPAN_EVENTS
from audit.store import AuditStore

# A transaction of so many takes milliseconds, and the hub's own writes wait for it.
SLICE_ROWS = 500
# So many times what the last slice took. SQLite has no queue of writers: who finds the file locked looks
# again after 1, 2, 5, 10 ms and so on, up to 100, never longer than twice what it has waited for already.
# So whoever came during a slice comes again in the pause behind it, however slow the disk is.
PAUSE_SLICES = 4


@attrs.frozen
class Removal:
    """A beginning of the trail that is to go."""

    first: int
    last: int
    """Sequence numbers."""
    count: int
    sha256: str
    """Of its events' lines, each with a newline behind it."""

    def __str__(self) -> str:
        what = "event" if self.count == 1 else "events"
        return f"{self.count} {what}, {self.first} to {self.last}, sha256={self.sha256}"


class PrunableStore(AuditStore):
    """A trail that is opened to be shortened, also while a hub writes to it."""

    def prune(
        self,
        before: datetime,
        tell: Callable[[Removal], Event],
        archive: Path | None = None,
        progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    ) -> Removal | None:
        """Remove what is older than `before`, and return what that was; None when nothing is.

        The event that `tell` makes of it comes into the trail first. `progress` hears what was done, how much
        of it, and of how much. Raises OSError for an archive that cannot be written, or is there already:
        nothing is removed then. Raises AuditUnavailable: what was removed by then is a beginning of what the
        event says, or nothing.
        """
        with closing(_Reader(self.path)) as reader:
            found = reader.oldest(before)
            if found is None:
                return None
            with _new_file(archive) as file:
                removal = _summed(reader, *found, file, progress)
        self.append([tell(removal)])
        for last in range(removal.first + SLICE_ROWS - 1, removal.last, SLICE_ROWS):
            locked_s = self._remove(last)
            progress("events removed", last - removal.first + 1, removal.count)
            time.sleep(PAUSE_SLICES * locked_s)
        self._remove(removal.last)
        return removal

    def _remove(self, last: int) -> float:
        """Remove all up to an event; returns for how many seconds others could not write."""
        with translated(self.path):
            with self._transaction() as connection:
                locked_s = time.monotonic()
                lateends.forget_before(connection, last + 1)
                with deletable(connection):
                    connection.execute(sa.delete(events).where(events.c.seq <= last))
                # No event that stays, or is yet to come, needs one that was written earlier.
                needed = sa.select(sa.func.min(common_parts.c.number)).where(
                    common_parts.c.seq > last - SPAN_EVENTS
                )
                connection.execute(
                    sa.delete(common_parts).where(common_parts.c.number < needed.scalar_subquery())
                )
                blocks.forget_before(connection, last + 1)
            return time.monotonic() - locked_s


class _Reader(AuditReader):
    """The trail beside its writers, read for what can go."""

    def oldest(self, before: datetime) -> tuple[int, int] | None:
        """The numbers of the first and the last event that can go; None when none can.

        All up to the first one that is not older than `before`, or that began what has not ended. So a clock
        that was wrong for a while keeps events for longer, and never removes any too early.
        """
        # It may walk through all that is old, which has no writer wait.
        with self._view() as connection:
            newest = connection.scalar(sa.select(sa.func.max(events.c.seq)))
            first = connection.scalar(sa.select(sa.func.min(events.c.seq)))
            begun = connection.scalar(sa.select(sa.func.min(open_intents.c.seq)))
            if first is None or newest is None:
                return None
            kept = self._nth(connection, Wanted(since=before), first, newest)
        last = min([newest, *(seq - 1 for seq in (kept, begun) if seq is not None)])
        return (first, last) if last >= first else None


def _summed(
    reader: AuditReader,
    first: int,
    last: int,
    archive: IO[bytes] | None,
    progress: Callable[[str, int, int], None],
) -> Removal:
    """Read the events of a removal, and write them to its archive."""
    digest, count = hashlib.sha256(), 0
    for stored in reader.events(first, last):
        line = json_line(stored).encode("ascii") + b"\n"
        digest.update(line)
        if archive is not None:
            archive.write(line)
        count += 1
        progress("events read", count, last - first + 1)
    # Only a beginning can be removed, so with the first event still there all of them were.
    if [stored.seq for stored in reader.query(limit=1)] != [first]:
        raise AuditUnavailable(
            f"{reader.path} is being shortened by another process: try again when that has ended"
        )
    return Removal(first, last, count, digest.hexdigest())


@contextmanager
def _new_file(path: Path | None) -> Iterator[IO[bytes] | None]:
    """A file of the owner's alone, which is on the disk when the block has ended; none without a path.

    It has its name only then: a block that raises leaves no file. Raises FileExistsError for a name that is
    taken, before the block if it can.
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
        # link() and not rename(): it refuses a name that exists.
        os.link(file.name, path)
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
