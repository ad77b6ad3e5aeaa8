"""The made-up hub of tests.console.dev ends cleanly."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sandbox.demo.processes import Daemons, free_port

pytestmark = pytest.mark.timeout(60)


def test_sigterm_leaves_no_folder_behind(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    argv = [sys.executable, "-m", "tests.console.dev", f"--port={free_port()}", "--events=1"]
    with Daemons(tmp_path) as daemons:
        served = daemons.start("dev", argv, {"TMPDIR": str(temporary)}, cwd=Path(__file__).parents[2])
        served.wait_for("http://")
        assert list(temporary.iterdir())
    assert served.process.returncode == 0, served.last_words()
    assert list(temporary.iterdir()) == []
