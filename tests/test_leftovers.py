from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.leftovers import remove_leftovers


def test_the_files_of_killed_runs_are_removed_and_no_others(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    folder = tmp_path / "pytest-of-somebody"
    locks = {"killed": str(ended.pid), "running": str(os.getpid()), "starting": "", "failed": None}
    for name, lock in locks.items():
        made = folder / f"pytest-{name}"
        (made / "test_0").mkdir(parents=True)
        if lock is not None:
            (made / ".lock").write_text(lock)
    (folder / "pytest-current").symlink_to(folder / "pytest-running")
    remove_leftovers(tmp_path)
    kept = {path.name for path in folder.iterdir()}
    assert kept == {"pytest-running", "pytest-starting", "pytest-failed", "pytest-current"}
