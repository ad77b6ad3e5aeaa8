"""The lock of the data folder, which one hub at a time holds."""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack
from pathlib import Path

import attrs

from proxy.hub.home.files.private_files import DataDirError, explained


class FolderInUseError(DataDirError):
    """Another process holds the folder's lock."""

    def __init__(self, path: Path, pid: str) -> None:
        super().__init__(
            f"another process{f' ({pid})' if pid else ''} runs on {path}: stop that hub first, "
            "take its place by --replace, or give this one another data_dir"
        )
        self.path = path
        self.pid = pid


@attrs.define(eq=False)
class FolderLock:
    """The folder's lock. Its holder may listen for the hub's clients, and replace the folder's files.

    The lock belongs to the open file and not to the process, so a handover can pass it on: a process that
    receives the descriptor holds the same lock, and the lock is free when both have closed it.
    """

    descriptor: int

    def sign(self) -> None:
        """Write this process's id into the file, for the error message of FolderInUseError."""
        os.pwrite(self.descriptor, f"{os.getpid():<19}\n".encode("ascii"), 0)

    def signature(self) -> str:
        """Return the process id that `sign` has written."""
        return os.pread(self.descriptor, 20, 0).decode("ascii", "replace").strip()

    def release(self) -> None:
        """Close this process's descriptor of the lock; a second call does nothing."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            # Not by LOCK_UN, which would also release it for the process that it was passed to.
            os.close(descriptor)


def take_lock(file: Path) -> FolderLock:
    """Lock the folder of this file until the lock is released or the process ends, for any reason.

    Raises FolderInUseError when another process holds it, and DataDirError when its file cannot be used.
    """
    try:
        lock = FolderLock(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        with ExitStack() as undo:
            undo.callback(lock.release)
            try:
                fcntl.flock(lock.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise FolderInUseError(file.parent, lock.signature()) from error
            lock.sign()
            undo.pop_all()
    except OSError as error:
        raise DataDirError(f"cannot write {file}: {explained(error)}") from error
    return lock
