"""The demo's folder: its own from the start to the end, and never one that holds anything else."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

from sandbox.demo.processes import DemoError

# By this file a folder is known as the demo's, and by the lock on it as in use.
MARK = "demo.lock"


@contextlib.contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Make the folder, or empty what an earlier demo left in it, and hold it inside the block.

    Raises DemoError when it is something else, or when another demo runs in it.
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
