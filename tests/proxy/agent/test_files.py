from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.agent.errors import AgentError
from proxy.agent.files import cache_folder, config_folder, locked, read_private, write_private


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


COUNT = """
import sys
from pathlib import Path
from proxy.agent.files import locked

folder = Path(sys.argv[1])
for _ in range(50):
    with locked(str(folder / "lock")):
        counter = folder / "counter"
        counter.write_text(str(int(counter.read_text()) + 1))
"""


def test_a_lock_keeps_processes_apart(tmp_path: Path) -> None:
    (tmp_path / "counter").write_text("0")
    root = Path(__file__).parents[3]
    processes = [subprocess.Popen([sys.executable, "-c", COUNT, str(tmp_path)], cwd=root) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert (tmp_path / "counter").read_text() == "200"
