from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox import postgres
from sandbox.postgres import find_binaries, new_folder


def test_folders_of_servers_that_have_ended_are_removed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    pids = {"served": os.getpid(), "killed": ended.pid, "new": ended.pid}
    for name, pid in pids.items():
        data = tmp_path / f"{postgres.PREFIX}{name}" / "data"
        data.mkdir(parents=True)
        (data / "postmaster.pid").write_text(f"{pid}\n{data}\n")
    (tmp_path / f"{postgres.PREFIX}stopped").mkdir()
    (tmp_path / "another").mkdir()
    for folder in tmp_path.iterdir():
        if not folder.name.endswith("new"):
            os.utime(folder, (0, 0))
    made, _ = new_folder(tmp_path)
    left = {folder.name.removeprefix(postgres.PREFIX) for folder in tmp_path.iterdir() if folder != made}
    assert left == {"served", "new", "another"}


def test_a_server_on_path_is_found_where_the_system_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "DEBIAN", tmp_path / "none")
    monkeypatch.setattr(postgres, "WHEEL", "no-such-wheel")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binaries() is None
    for program in ("initdb", "postgres"):
        (tmp_path / program).touch(mode=0o755)
    assert find_binaries() == tmp_path
    (tmp_path / "postgres").unlink()
    assert find_binaries() is None
