"""Checks whether a hub could continue the trail in its file, without changing the file."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from audit import schema
from audit.file import translated, untouched
from audit.store import TrailMark, missing, newest_event, refuse_another, refuse_stray_wal


def check_trail(path: Path, expected: TrailMark | None) -> None:
    """Return if a start would accept the file, or create one because there is none.

    Raises the errors of a start, AuditUnavailable and AnotherTrail, and NeedsRecovery. For a file of an
    earlier version only the version is checked: the start upgrades it first.
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
