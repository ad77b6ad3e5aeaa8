"""Checkouts made for a test."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from deploy.checkout import ROOT

# A file of the user's or the machine's would change what git does.
_VARIABLES = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
_AUTHOR = ["-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
# The tests may run as another user than the one who cloned.
_ANY_OWNER = ["-c", "safe.directory=*"]


def git(root: Path, *args: str) -> str:
    variables = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    argv = ["git", "-C", str(root), *_AUTHOR, *_ANY_OWNER, *args]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, env={**variables, **_VARIABLES})
    return done.stdout


def commit_all(root: Path) -> Path:
    """Make the files of a folder a checkout of one commit."""
    git(root, "init", "--quiet")
    git(root, "add", "--all", "--force")
    git(root, "commit", "--quiet", "--message", "Add all", "--no-verify")
    return root


def copy_of_this(folder: Path) -> Path:
    """The tracked files as they are now, committed or not, as a checkout of one commit; without the tests."""
    for name in git(ROOT, "ls-files", "-z").split("\0"):
        if name and not name.startswith(("tests/", "benchmarks/")) and (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return commit_all(folder)
