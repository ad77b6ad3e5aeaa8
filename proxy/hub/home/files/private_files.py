"""The files of the data folder: only their owner has access to them, and their errors name the next step."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

# Keys, tokens and certificates have a few kilobytes; a hub writes no larger file.
FILE_BYTES_MAX = 1024 * 1024

_NO_LOCKS = "choose a data_dir on a file system that has locks and sockets"
# The next step for each system error on a file of the folder.
_NEXT_STEPS = {
    errno.ENOENT: "restore it from a backup",
    errno.ENOSPC: "free some of the disk",
    errno.EDQUOT: "free some of this user's quota",
    errno.EROFS: "mount it for writing, or choose another data_dir",
    errno.EACCES: "run this as the user that the data folder belongs to",
    errno.EISDIR: "move that folder away",
    errno.EEXIST: "it is no folder, so move it away",
    # From flock(2) and bind(2) on some network file systems.
    errno.ENOLCK: _NO_LOCKS,
    errno.ENOSYS: _NO_LOCKS,
    errno.EOPNOTSUPP: _NO_LOCKS,
}


class DataDirError(Exception):
    """The data folder cannot be used; the message names the file and the next step, never its contents."""


def check_private(path: Path) -> None:
    """Raise DataDirError when other users have access to the path."""
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise DataDirError(
            f"{path} belongs to another user (uid {status.st_uid}): run this as that user, "
            "or change the owner"
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        kind = "700" if path.is_dir() else "600"
        raise DataDirError(
            f"{path} is open to other users: run chmod {kind} {path}, and treat its secrets as disclosed"
        )


def read_private(file: Path) -> bytes:
    """Read a file that only its owner may read; raises DataDirError."""
    try:
        check_private(file)
        with file.open("rb") as opened:
            data = opened.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise DataDirError(f"cannot read {file}: {explained(error)}") from error
    if len(data) > FILE_BYTES_MAX:
        raise DataDirError(f"{file}: larger than {FILE_BYTES_MAX} bytes")
    return data


def write_private(file: Path, data: bytes, *, replace: bool = True) -> None:
    """Write a file atomically, readable by its owner alone from the first byte; raises DataDirError.

    A crash leaves the old file or the new one, never a part: half a pepper would be a lost pepper. Without
    `replace`, a file that another process has made meanwhile stays.
    """
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(data)
                opened.flush()
                os.fsync(opened.fileno())
            if replace:
                temporary.replace(file)
            else:
                with suppress(FileExistsError):
                    file.hardlink_to(temporary)
                temporary.unlink()
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise DataDirError(f"cannot write {file}: {explained(error)}") from error


def check_writable(path: Path, *, folder: bool = True) -> None:
    """Raise the OSError that writing to a folder or a file would raise."""
    number = 0
    if path.is_dir() is not folder:
        number = errno.ENOTDIR if folder else errno.EISDIR
    elif os.statvfs(path).f_flag & os.ST_RDONLY:
        number = errno.EROFS
    elif not os.access(path, os.R_OK | os.W_OK | (os.X_OK if folder else 0)):
        number = errno.EACCES
    if number:
        raise OSError(number, os.strerror(number), str(path))


def is_there(file: Path) -> bool:
    """Return whether a file exists; raises DataDirError when the check fails.

    From Python 3.14 on Path.exists returns False then, and the hub would replace a secret that exists.
    """
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise DataDirError(f"cannot read {file}: {explained(error)}") from error
    return True


def explained(error: OSError) -> str:
    """Return the system's message for an error on a file of the folder, with the next step if known."""
    step = _NEXT_STEPS.get(error.errno or 0)
    return f"{error.strerror}: {step}" if step else str(error.strerror)
