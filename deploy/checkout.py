"""The commit that is built: its time, whether the files differ from it, and its files."""

from __future__ import annotations

import io
import os
import re
import subprocess
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


class CheckoutError(Exception):
    """The checkout cannot be built from; the message says why, and what to do next."""


def source_epoch(root: Path = ROOT) -> int:
    """SOURCE_DATE_EPOCH, or the time of the commit, in seconds: two builds of one commit are equal.

    Raises CheckoutError for a time that is no number; without it, where there is no git checkout.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        try:
            return int(git(root, "log", "-1", "--format=%ct"))
        except CheckoutError as error:
            advice = "or set SOURCE_DATE_EPOCH to the time of the release, in seconds"
            raise CheckoutError(f"{error}, {advice}") from error
    if not re.fullmatch("[0-9]{1,10}", text):
        raise CheckoutError(f"SOURCE_DATE_EPOCH is '{text}': expected seconds since 1970")
    return int(text)


def commit(root: Path) -> str:
    """The hash of the commit whose files are here. Raises CheckoutError if a tracked file differs from it."""
    if changed := git(root, "status", "--porcelain", "--untracked-files=no").splitlines():
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        files = f"{changed[0][2:].strip()}{more}"
        raise CheckoutError(f"{files} differs from the commit: commit it, or put it aside by `git stash`")
    return git(root, "rev-parse", "HEAD").strip()


def export(root: Path, folder: Path) -> None:
    """Write the commit's files into a folder: those that git does not track are no part of a release."""
    archive = _run(root, "archive", "--format=tar", "HEAD")
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        opened.extractall(folder, filter="data")


def git(root: Path, *args: str) -> str:
    """What git prints. Raises CheckoutError with its reason."""
    return _run(root, *args).decode()


def _run(root: Path, *args: str) -> bytes:
    try:
        done = subprocess.run(["git", "-C", root, *args], capture_output=True)
    except FileNotFoundError as error:
        raise CheckoutError("git is not installed: install it (apt-get install git)") from error
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        reason = lines[0].removeprefix("fatal: ")
        if reason.startswith("not a git repository"):
            reason = f"{root} is no git checkout: clone the repository"
        elif "dubious ownership" in reason:
            reason += f": run `git config --global --add safe.directory {root}`"
        raise CheckoutError(reason)
    return done.stdout
