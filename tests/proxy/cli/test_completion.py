"""Completion of `hawse` in a real bash, as the docs set it up."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = 'eval "$(_HAWSE_COMPLETE=bash_source hawse)"'
# What bash does on a press of the Tab key, without the terminal's part.
PRESSED = '_hawse_completion hawse; printf "%s\\n" "${COMPREPLY[@]}"'
# Each takes longer to import than a completion may take.
HEAVY = ("trio", "sqlalchemy", "cryptography")
IMPORTED = f"""
import atexit, sys
atexit.register(lambda: print(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr))
from proxy.cli.main import main
main()
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["ad"], ["admin"]),
        (["kubeconfig", "--user"], ["--user-per-cluster"]),
        (["admin", "cluster", "che"], ["check"]),
        (["admin", "cluster", "add", "prod", "--mode", ""], ["tunnel", "direct"]),
        (["audit", "list", "--fo"], ["--follow"]),
        (["admin", "agent", "key", ""], ["add", "list", "revoke"]),
    ],
)
def test_bash_offers_commands_and_options_of_every_depth(typed: list[str], offered: list[str]) -> None:
    words = f"COMP_WORDS=(hawse {shlex.join(typed)}); COMP_CWORD={len(typed)}"
    done = subprocess.run(
        ["bash", "--norc", "-c", f"{SETUP}; {words}; {PRESSED}"],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout.split(), done.stderr) == (offered, "")


@pytest.mark.parametrize("line", ["hawse ", "hawse admin agent ", "hawse audit list --"])
def test_no_completion_imports_what_takes_long(line: str) -> None:
    asked = {
        "_HAWSE_COMPLETE": "zsh_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED],
        env=environment() | asked,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout
    assert done.stderr.split() == []
