"""The trail's file: how SQLite is told of it, and what reader and writer say when it cannot be used."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import sqlalchemy as sa

from audit.errors import AuditUnavailable

# What SQLite makes of a -shm at first, and how it says that it could not.
_SHM_BYTES = 32 * 1024
_SHM_REFUSED = frozenset({sqlite3.SQLITE_IOERR_SHMOPEN, sqlite3.SQLITE_IOERR_SHMSIZE})


def url(path: Path, mode: str) -> sa.URL:
    """Address the file; `mode` is SQLite's: "ro" or "rw", neither of which makes one."""
    # Not as one text: SQLAlchemy would undo the quotes, and `%`, `?` and `#` are then no part of a name.
    return sa.URL.create("sqlite", database=path.absolute().as_uri(), query={"mode": mode, "uri": "true"})


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what a file can do wrong into AuditUnavailable."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        raise AuditUnavailable(_unavailable(path, error.orig)) from error
    except (sqlite3.Error, OSError) as error:
        raise AuditUnavailable(_unavailable(path, error)) from error


def _unavailable(path: Path, error: BaseException | None) -> str:
    """What SQLite or the system says of a file, or that its disk is full.

    While nobody has the file open, even a reader begins by making its -shm, and of one that finds no room
    SQLite says "disk I/O error".
    """
    if getattr(error, "sqlite_errorcode", None) in _SHM_REFUSED:
        with suppress(OSError):
            disk = os.statvfs(path.parent)
            if disk.f_bavail * disk.f_frsize < _SHM_BYTES:
                return (
                    f"the audit trail {path} cannot be opened on a disk that is full: free 32 KiB of it, "
                    f"or copy the file, and {path.name}-wal if that is there, to a folder elsewhere"
                )
    return f"the audit trail {path} is unavailable: {error}"
