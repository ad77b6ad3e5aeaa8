from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.store import Store


def opened(file: Path) -> Store:
    return Store(file, org="main", clock=lambda: 1000.0)


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    with closing(opened(tmp_path / "hub.db")) as store:
        store.add_team("sre")
        files = list(tmp_path.iterdir())
        assert {file.name for file in files} == {"hub.db", "hub.db-wal", "hub.db-shm"}
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_a_file_that_is_no_database_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "hub.db").write_bytes(b"not a database, " * 100)
    told = r"hub\.db is damaged: file is not a database; restore a backup$"
    with pytest.raises(StoreUnavailableError, match=told):
        opened(tmp_path / "hub.db")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreUnavailableError, match="unable to open database file: it, its -wal and"):
        opened(tmp_path / "folder")
    with pytest.raises(StoreUnavailableError, match="No such file"):
        opened(tmp_path / "none" / "hub.db")


def test_a_second_engine_of_the_process_keeps_the_locks_of_the_first(tmp_path: Path) -> None:
    """Without them, the next process that leaves the database deletes the -wal, and with it later changes."""
    file = tmp_path / "hub.db"
    leave = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM teams'); c.close()"
    )
    with closing(opened(file)) as store, closing(opened(file)):
        subprocess.run([sys.executable, "-c", leave, file], check=True)
        assert (tmp_path / "hub.db-wal").exists()
        store.add_team("sre")
        with closing(sqlite3.connect(file)) as other:
            assert other.execute("SELECT name FROM teams").fetchall() == [("sre",)]


def test_a_reader_waits_for_no_writer(tmp_path: Path) -> None:
    with closing(opened(tmp_path / "hub.db")) as one, closing(opened(tmp_path / "hub.db")) as other:
        with one._change():
            assert other.snapshot().version == other.version()
