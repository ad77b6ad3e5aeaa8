from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from audit.sqlite import explained, is_damaged


def failure(path: Path) -> sqlite3.Error:
    """How SQLite fails when a row is written to the file."""
    try:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA max_page_count = 1")
            connection.execute("CREATE TABLE t (c)")
    except sqlite3.Error as error:
        return error
    raise AssertionError("it did not fail")


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
