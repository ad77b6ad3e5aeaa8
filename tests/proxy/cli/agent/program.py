"""The installed hawse as a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.proxy.agent.conftest import Home

BIN = Path(sys.executable).parent


def run(home: Home, *arguments: str, stdin: str | None = None, **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [str(BIN / "hawse"), *arguments],
        env=home.environment | environment,
        input=stdin if stdin is not None else "",
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr
