"""The trail's file: how SQLite is told of it, and what reader and writer say when it cannot be used."""

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
    """Address the file; `mode` is SQLite's: "ro" or "rw", neither of which makes one."""
    # Not as one text: SQLAlchemy would undo the quotes, and `%`, `?` and `#` are then no part of a name.
    return sa.URL.create("sqlite", database=path.absolute().as_uri(), query={"mode": mode, "uri": "true"})


class NeedsRecovery(Exception):
    """A database cannot be read without a change; says which file stands in the way."""


@contextmanager
def untouched(path: Path) -> Iterator[sa.Connection]:
    """Read a database without a change on the disk, whether or not another process has it open.

    An ordinary reader makes a -shm where there is none. Raises NeedsRecovery for a -wal without a -shm, as a
    copy of a live database has it, and what SQLAlchemy raises.
    """
    wal, shm = (path.with_name(f"{path.name}-{end}") for end in ("wal", "shm"))
    if not wal.exists():
        # Without a write-ahead log the main file is complete.
        how = {"immutable": "1"}
    elif shm.exists():
        how = {"readonly_shm": "1"}
    else:
        raise NeedsRecovery(f"{wal.name} is there without its -shm, which the next start makes")
    engine = sa.create_engine(url(path, "ro").update_query_dict(how), poolclass=NullPool)
    with engine.connect() as connection:
        yield connection


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what a file can do wrong into AuditUnavailable."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        raise _unavailable(path, error.orig) from error
    except (sqlite3.Error, OSError) as error:
        raise _unavailable(path, error) from error


def damaged(path: Path, what: object) -> AuditUnavailable:
    """Of a file that holds what no hub has written."""
    return AuditUnavailable(
        f"the audit trail {path} is damaged: {what}; stop the hub, move the file and its -wal away, "
        "and put a copy in its place or begin a new one by `hawse admin audit accept`"
    )


def _unavailable(path: Path, error: BaseException | None) -> AuditUnavailable:
    if is_damaged(error):
        return damaged(path, error)
    if lacks_room_to_open(path, error):
        return AuditUnavailable(
            f"the audit trail {path} cannot be opened on a disk that is full: free 32 KiB of it, "
            f"or copy the file, and {path.name}-wal if that is there, to a folder elsewhere"
        )
    return AuditUnavailable(f"the audit trail {path} is unavailable: {explained(path, error)}")
