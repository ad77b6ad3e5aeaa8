"""Our modules by their names, and scripts that import them in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("hawse", "tunnel", "auth", "audit", "proxy", "sandbox")


def modules() -> list[str]:
    """Every module of ours by its dotted name."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            # A migration is loaded by Alembic from its file, within a context of its own.
            if "migrations" not in parts:
                found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def run(script: str, *args: str) -> None:
    """Run a script in a fresh interpreter, which must succeed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
