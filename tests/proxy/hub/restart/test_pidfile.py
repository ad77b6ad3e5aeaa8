from __future__ import annotations

import os
from pathlib import Path

import pytest

from proxy.hub.restart.pidfile import PidFile
from proxy.process.files import FileError


@pytest.mark.parametrize(
    ("name", "told"), [(".", "is a folder: name a file in it"), ("run/hub.pid", "make the folder {}/run")]
)
def test_what_can_be_no_pid_file_is_told_before_a_hub_serves(tmp_path: Path, name: str, told: str) -> None:
    with pytest.raises(FileError, match=f"^pid_file: .*{told.format(tmp_path)}$"):
        PidFile(tmp_path / name).check()
    file = PidFile(tmp_path / "hub.pid")
    file.check()
    file.write()
    assert file.path.read_text() == f"{os.getpid()}\n"
