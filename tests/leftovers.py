"""Removes the temporary files of test runs that were killed.

pytest keeps such a folder for three days. In memory it would take the room of the next runs.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path


def remove_leftovers(temporary: Path) -> None:
    """Remove each of this user's folders whose lock names a process that has ended."""
    for lock in temporary.glob("pytest-of-*/pytest-*/.lock"):
        # Another run may remove it, too. The lock of a run that has just begun is empty.
        with suppress(OSError, ValueError):
            if lock.lstat().st_uid == os.getuid() and not _runs(int(lock.read_text())):
                shutil.rmtree(lock.parent)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
