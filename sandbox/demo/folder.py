"""The demo's folder: it belongs to one demo at a time, and never contains other files."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

from sandbox.demo.processes import DemoError

# This file marks a folder as the demo's, and a lock on it as in use.
MARK = "demo.lock"


@contextlib.contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Create the folder, or empty it of an earlier demo's files, and hold its lock inside the block.

    Raises DemoError if it contains other files, or if another demo runs in it.
    """
    mark = folder / MARK
    if folder.exists() and not mark.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DemoError(f"{folder} is not a demo's folder: name one that is empty or new")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with mark.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f"another demo runs in {folder}: end it first, or use --dir") from None
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry != mark:
                entry.unlink()
        yield
