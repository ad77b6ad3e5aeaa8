"""The PID file, from which a supervisor reads which process is the hub. A handover changes the number.

The hub writes it itself, once it holds the instance lock. A supervisor that wrote it at the start would name
the new process too early, and wrongly when the handover fails.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import attrs

from proxy.process.files import FileError

_log = logging.getLogger("hawse.hub")


@attrs.frozen
class PidFile:
    """The PID file of the hub that holds the instance lock."""

    path: Path

    def check(self) -> None:
        """Raise FileError when this user cannot write it: once the hub serves, it is too late to refuse."""
        folder = self.path.parent
        if self.path.is_dir():
            raise FileError(f"pid_file: {self.path} is a folder: name a file in it")
        if not folder.is_dir():
            raise FileError(f"pid_file: cannot write {self.path}: make the folder {folder}")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise FileError(f"pid_file: cannot write {self.path}: let this user write in {folder}")

    def write(self) -> None:
        """Write this process's id. An error is only logged, since the hub serves already."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            temporary.write_text(f"{os.getpid()}\n", encoding="ascii")
            # Replaced atomically: a supervisor may read it at any time.
            temporary.replace(self.path)
        except OSError as error:
            _log.error("cannot write %s, which may name another process now: %s", self.path, error.strerror)

    def remove(self) -> None:
        """Delete the file; an error is logged."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("cannot remove %s: %s", self.path, error.strerror)
