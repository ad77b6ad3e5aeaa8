from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from audit.sqlite import explained, is_damaged


def failure(path: Path) -> sqlite3.Error:
    """SQLite's error when a row is written to the file."""
    try:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA max_page_count = 1")
            connection.execute("CREATE TABLE t (c)")
    except sqlite3.Error as error:
        return error
    raise AssertionError("it did not fail")


def test_whom_the_system_refuses_is_told_who_may(path: Path) -> None:
    refused = PermissionError(errno.EACCES, "Permission denied", str(path))
    assert explained(path, refused) == (
        "Permission denied: run this as the user that the data folder belongs to"
    )
    assert explained(path, OSError(errno.EIO, "Input/output error", str(path))) == "Input/output error"


@pytest.mark.parametrize(
    ("spoil", "damaged", "told"),
    [
        (lambda path: path.write_bytes(b"no database" * 100), True, "file is not a database"),
        (lambda path: path.touch(), False, "database or disk is full: free some of the disk"),
        (
            lambda path: path.mkdir(),
            False,
            "unable to open database file: it, its -wal and its -shm have to be files that this user "
            "can write",
        ),
    ],
)
def test_what_sqlite_says_comes_with_the_next_step(
    path: Path, spoil: Callable[[Path], object], damaged: bool, told: str
) -> None:
    spoil(path)
    error = failure(path)
    assert (is_damaged(error), explained(path, error)) == (damaged, told)
