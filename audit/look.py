"""Whether a hub could go on in the trail's file, without a change to it."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from audit import schema
from audit.file import translated, untouched
from audit.store import TrailMark, missing, newest_event, refuse_another, refuse_stray_wal


def look_at_trail(path: Path, expected: TrailMark | None) -> None:
    """Return when a start would take the file, or make one where there is none.

    Raises what a start would raise, AuditUnavailable and AnotherTrail, and NeedsRecovery. Of a file of an
    earlier version only that is looked at: the start brings it up to date first.
    """
    with translated(path):
        if not path.exists():
            if expected is not None:
                raise missing(path)
            refuse_stray_wal(path)
            return
        with untouched(path) as connection:
            if schema.is_current(connection, path) and expected is not None:
                found = connection.scalar(sa.select(schema.trail.c.id))
                refuse_another(path, found, newest_event(connection), expected)
