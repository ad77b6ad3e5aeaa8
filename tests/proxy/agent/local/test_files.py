from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.agent.local import files
from proxy.agent.local.errors import AgentError, NotWritableError
from proxy.agent.local.files import cache_folder, config_folder, locked, read_private, write_private


def test_folders_follow_the_xdg_specification() -> None:
    assert config_folder({"XDG_CONFIG_HOME": "/c", "HOME": "/h"}) == "/c/hawse"
    assert config_folder({"XDG_CONFIG_HOME": "relative", "HOME": "/h"}) == "/h/.config/hawse"
    assert cache_folder({"HOME": "/h"}) == "/h/.cache/hawse"
    assert cache_folder({}).startswith("/")


def test_a_private_file_and_its_folders_are_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    assert read_private(str(path)) is None
    write_private(str(path), b"one")
    write_private(str(path), b"two")
    assert read_private(str(path)) == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_nobody_is_waiting_where_a_secret_is_written_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A folder that others may write to, as with `hawse kubeconfig --output /tmp/config`.
    path = tmp_path / "file"
    with (tmp_path / f"file.{os.getpid()}.new").open("w+b") as trap:
        write_private(str(path), b"secret")
        assert trap.read() == b""
    monkeypatch.setattr(os, "urandom", bytes)
    guessed = tmp_path / f"file.{'00' * 8}.new"
    for make in (lambda: guessed.write_bytes(b"mine"), lambda: guessed.symlink_to(tmp_path / "target")):
        make()
        with pytest.raises(AgentError, match=r"cannot write .*: File exists"):
            write_private(str(path), b"another")
        guessed.unlink()
    assert not (tmp_path / "target").exists()
    assert read_private(str(path)) == b"secret"


def test_a_link_in_the_place_of_a_private_file_is_not_followed(tmp_path: Path) -> None:
    path, target = tmp_path / "file", tmp_path / "target"
    path.symlink_to(target)
    write_private(str(path), b"secret")
    assert not path.is_symlink()
    assert not target.exists()
    (tmp_path / "lock").symlink_to(target)
    with pytest.raises(AgentError, match="cannot write"), locked(str(tmp_path / "lock")):
        pass
    assert not target.exists()


def test_what_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_private(str(path), b"old")
    modes = []

    def fail(descriptor: int) -> None:
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(AgentError, match="No space left"):
        write_private(str(path), b"new")
    assert modes == [0o600]
    assert read_private(str(path)) == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"secret")
    path.chmod(0o640)
    with pytest.raises(AgentError, match="chmod 600"):
        read_private(str(path))


def test_what_cannot_be_read_or_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="cannot read"):
        read_private(str(tmp_path / ("x" * 300)))
    (tmp_path / "file").write_text("")
    with pytest.raises(AgentError, match="cannot write"):
        write_private(str(tmp_path / "file" / "below"), b"")
    with pytest.raises(AgentError, match="cannot write"), locked(str(tmp_path / "file" / "lock")):
        pass


def test_a_file_system_without_locks_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(NotWritableError, match=r"cannot lock .*: No locks available"):
        with locked(str(tmp_path / "lock")):
            pass


def test_a_lock_that_another_one_keeps_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCK_WAIT_S", 0.05)
    path = str(tmp_path / "lock")
    with locked(path):
        with pytest.raises(NotWritableError, match=r"cannot lock .*: another process holds it for .*: end"):
            with locked(path):
                pass
    with locked(path):
        pass


COUNT = """
import sys
from pathlib import Path
from proxy.agent.local.files import locked

folder = Path(sys.argv[1])
for _ in range(50):
    with locked(str(folder / "lock")):
        counter = folder / "counter"
        counter.write_text(str(int(counter.read_text()) + 1))
"""


def test_a_lock_keeps_processes_apart(tmp_path: Path) -> None:
    (tmp_path / "counter").write_text("0")
    root = Path(__file__).parents[4]
    processes = [subprocess.Popen([sys.executable, "-c", COUNT, str(tmp_path)], cwd=root) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert (tmp_path / "counter").read_text() == "200"
