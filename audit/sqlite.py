"""Explains SQLite's errors for an unusable file, with the next step."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

# The size of a new -shm, and SQLite's errors if it cannot create one.
_SHM_BYTES = 32 * 1024
_SHM_REFUSED = frozenset({sqlite3.SQLITE_IOERR_SHMOPEN, sqlite3.SQLITE_IOERR_SHMSIZE})
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_REFUSED = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM})

_USABLE = "it, its -wal and its -shm have to be files that this user can write"


def is_damaged(error: BaseException | None) -> bool:
    """Whether the file's contents are not a database, or only a part of one, or invalid text."""
    # Python's module detects invalid text, and sets no error code.
    return _code(error) & 0xFF in _DAMAGED or str(error).startswith("Could not decode to UTF-8")


def lacks_room_to_open(path: Path, error: BaseException | None) -> bool:
    """Whether the file cannot be opened because its disk is full.

    If no process has the file open, even a reader creates its -shm first. Without space for it, SQLite
    reports "disk I/O error".
    """
    if _code(error) in _SHM_REFUSED:
        with suppress(OSError):
            disk = os.statvfs(path.parent)
            return disk.f_bavail * disk.f_frsize < _SHM_BYTES
    return False


def explained(path: Path, error: BaseException | None) -> str:
    """SQLite's or the system's error for the file, and the next step if it is known."""
    if lacks_room_to_open(path, error):
        return f"{error}, since the disk is full: free 32 KiB of it"
    if isinstance(error, PermissionError):
        return f"{error.strerror}: run this as the user that the data folder belongs to"
    if isinstance(error, IsADirectoryError):
        return f"{error.strerror}: {_USABLE}"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    match _code(error) & 0xFF:
        case sqlite3.SQLITE_FULL:
            return f"{error}: free some of the disk"
        case code if code in _REFUSED:
            return f"{error}: {_USABLE}"
    return str(error)


def _code(error: BaseException | None) -> int:
    return getattr(error, "sqlite_errorcode", 0)
