"""Folders of short-lived private files: bounded in number and age, and safe for parallel plugins.

Each file is replaced atomically. A reader takes a missing, cut or damaged file as a miss, so nothing here is
flushed to the disk: a flush takes as long as all else that the plugin writes.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress

from proxy.agent.local.errors import NotWritableError
from proxy.agent.local.files import write_private

# No token lives longer, so an older file holds only expired ones.
KEPT_S = 60
# The plugin lists the folder at each answer, which takes time for each file. An agent that has more questions
# in a minute asks the hub again.
FILES_MAX = 256
LOCK_SUFFIX = ".lock"
# The names of tokens and answers, and of both while they are written.
_OURS = re.compile(r".+(?:\.json|_[0-9]+)(?:\.[0-9a-f]{16}\.new)?")


def store(folder: str, name: str, data: bytes) -> None:
    """Store a file, and remove the expired ones. Does nothing if the folder is not writable."""
    with suppress(NotWritableError):
        write_private(os.path.join(folder, name), data, durable=False)
        _evict(folder)


def _evict(folder: str) -> None:
    """Remove what has expired, and the oldest files above the bound. Locks stay: a process may hold them.

    The folder must be this user's, and no link: the owner of a shared cache, or of the home that `sudo -E`
    keeps, could lead it to other files of this user. Files with other names stay for the same reason.
    """
    # Another plugin may remove the same files.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_uid == os.geteuid():
                _evict_in(descriptor)
        finally:
            os.close(descriptor)


def _evict_in(descriptor: int) -> None:
    now_s = time.time()
    ages: list[tuple[float, str]] = []
    with os.scandir(descriptor) as entries:
        for entry in entries:
            if _OURS.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):
                    # A clock set back makes files of the future.
                    ages.append((abs(now_s - entry.stat(follow_symlinks=False).st_mtime), entry.name))
    ages.sort()
    for place, (age_s, name) in enumerate(ages):
        if age_s > KEPT_S or place >= FILES_MAX:
            with suppress(OSError):
                os.unlink(name, dir_fd=descriptor)
