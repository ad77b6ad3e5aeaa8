"""The trail's file: its SQLite URL, and the errors of reader and writer for an unusable file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from audit.errors import AuditUnavailable
from audit.sqlite import explained, is_damaged, lacks_room_to_open


def url(path: Path, mode: str) -> sa.URL:
    """The file's URL; `mode` is SQLite's "ro" or "rw". Neither creates the file."""
    # Built from parts: in one string SQLAlchemy would unquote `%`, `?` and `#` of the file's name.
    return sa.URL.create("sqlite", database=path.absolute().as_uri(), query={"mode": mode, "uri": "true"})


class NeedsRecovery(Exception):
    """A database cannot be read without a change to it; the message names the file in the way."""


@contextmanager
def untouched(path: Path) -> Iterator[sa.Connection]:
    """Read a database without any change on the disk, whether or not another process has it open.

    An ordinary reader creates a missing -shm. Raises NeedsRecovery if there is a -wal without a -shm, as in a
    copy of a live database. SQLAlchemy's errors are raised unchanged.
    """
    wal, shm = (path.with_name(f"{path.name}-{end}") for end in ("wal", "shm"))
    if not wal.exists():
        # Without a write-ahead log the main file is complete.
        how = {"immutable": "1"}
    elif shm.exists():
        how = {"readonly_shm": "1"}
    else:
        raise NeedsRecovery(f"{wal.name} exists without its -shm, which the next start creates")
    engine = sa.create_engine(url(path, "ro").update_query_dict(how), poolclass=NullPool)
    with engine.connect() as connection:
        yield connection


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Translate all errors of a file into AuditUnavailable."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        raise _unavailable(path, error.orig) from error
    except (sqlite3.Error, OSError) as error:
        raise _unavailable(path, error) from error


def damaged(path: Path, what: object) -> AuditUnavailable:
    """The error for a file with contents that no hub has written."""
    return AuditUnavailable(
        f"the audit trail {path} is damaged: {what}; stop the hub, move the file and its -wal away, "
        "and put a copy in its place or begin a new one with `hawse admin audit accept`"
    )


def _unavailable(path: Path, error: BaseException | None) -> AuditUnavailable:
    if is_damaged(error):
        return damaged(path, error)
    if lacks_room_to_open(path, error):
        return AuditUnavailable(
            f"the audit trail {path} cannot be opened because its disk is full: free 32 KiB, "
            f"or copy the file, and {path.name}-wal if it exists, to a folder on another disk"
        )
    return AuditUnavailable(f"the audit trail {path} is unavailable: {explained(path, error)}")
