"""Folders of short-lived private files: bounded in number and age, and safe for parallel plugins.

Each file is replaced atomically. A reader takes a missing, cut or damaged file as a miss, so nothing here is
flushed to the disk: a flush takes as long as all else that the plugin writes.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from proxy.agent.local.errors import NotWritableError
from proxy.agent.local.files import write_private

# No token lives longer, so all in a file that is older has expired.
KEPT_S = 60
# In a minute. An agent with more questions asks the hub again: the plugin lists the folder at each answer.
FILES_MAX = 256
LOCK_SUFFIX = ".lock"


def store(folder: str, name: str, data: bytes) -> None:
    """Store a file, and remove the expired ones. Does nothing if the folder is not writable."""
    with suppress(NotWritableError):
        write_private(os.path.join(folder, name), data, durable=False)
        _evict(folder)


def _evict(folder: str) -> None:
    """Remove what has expired, and the oldest files above the bound. Locks stay: a process may hold them."""
    now_s = time.time()
    ages: list[tuple[float, str]] = []
    # Another plugin may remove the same files.
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.endswith(LOCK_SUFFIX) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):
                    # A clock set back makes files of the future.
                    ages.append((abs(now_s - entry.stat(follow_symlinks=False).st_mtime), entry.path))
    ages.sort()
    for place, (age_s, path) in enumerate(ages):
        if age_s > KEPT_S or place >= FILES_MAX:
            with suppress(OSError):
                os.unlink(path)
