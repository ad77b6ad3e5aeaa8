"""The file that tells a supervisor which process is the hub: the number changes when the place does.

Written by whoever starts the hub it would name the new one as soon as that one starts, and would still do so
when it cannot take the place.
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
    """The file of the hub that has the place."""

    path: Path

    def check(self) -> None:
        """Raise FileError when this user cannot write it: later on it would be too late to give up."""
        folder = self.path.parent
        if self.path.is_dir():
            raise FileError(f"pid_file: {self.path} is a folder: name a file in it")
        if not folder.is_dir():
            raise FileError(f"pid_file: cannot write {self.path}: make the folder {folder}")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise FileError(f"pid_file: cannot write {self.path}: let this user write in {folder}")

    def write(self) -> None:
        """Name this process from now on; what cannot be written is logged, since the hub serves already."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            temporary.write_text(f"{os.getpid()}\n", encoding="ascii")
            # As a whole: a supervisor may read it at any time.
            temporary.replace(self.path)
        except OSError as error:
            _log.error("cannot write %s, which may name another process now: %s", self.path, error.strerror)

    def remove(self) -> None:
        """Name nobody any more."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("cannot remove %s: %s", self.path, error.strerror)
