"""Private files: readable only by their owner from the first byte, and replaced atomically."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from proxy.agent.local.errors import AgentError, NotWritableError

# Logins, tokens and kubeconfigs have a few kilobytes.
FILE_BYTES_MAX = 4 * 1024 * 1024
# The lock's holder asks the hub meanwhile, for ten seconds at most. A stopped holder (Ctrl-Z) keeps the lock
# without limit.
LOCK_WAIT_S = 15.0
LOCK_LOOK_S = 0.01


def config_folder(environment: Mapping[str, str]) -> str:
    """Return the folder of the logins: `hawse` under the XDG configuration home."""
    return _folder(environment, "XDG_CONFIG_HOME", ".config")


def cache_folder(environment: Mapping[str, str]) -> str:
    """Return the folder of cached tokens: `hawse` under the XDG cache home."""
    return _folder(environment, "XDG_CACHE_HOME", ".cache")


def _folder(environment: Mapping[str, str], variable: str, fallback: str) -> str:
    base = environment.get(variable, "")
    # The XDG specification: "All paths set in these environment variables must be absolute", or be ignored.
    if not base.startswith("/"):
        base = os.path.join(environment.get("HOME") or os.path.expanduser("~"), fallback)
    return os.path.join(base, "hawse")


def read_private(path: str) -> bytes | None:
    """Read a file with a secret; None if it is missing. Raises AgentError if other users can read it."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.geteuid():
                raise AgentError(
                    f"{path} belongs to another user (uid {status.st_uid}): remove it, then log in again"
                )
            if stat.S_IMODE(status.st_mode) & 0o077:
                raise AgentError(
                    f"other users can access {path}: run `chmod 600 {path}`, and treat its keys as leaked"
                )
            return file.read(FILE_BYTES_MAX)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AgentError(f"cannot read {path}: {error.strerror}") from error


def write_private(path: str, data: bytes, *, durable: bool = True, mode: int = 0o600) -> None:
    """Replace the file; a crash leaves the old one or the new one. Raises NotWritableError.

    If the file is not `durable`, a crash of the machine may leave an empty or cut one as well.

    The file has its `mode` from the moment it is at the path; until then it is its owner's alone.

    A symbolic link at the path is replaced, not followed. The temporary file has an unguessable name: the
    folder may be writable by others, and the creator of a file can read it.
    """
    temporary = f"{path}.{os.urandom(8).hex()}.new"
    try:
        make_private_folder(os.path.dirname(path))
        # O_EXCL does not follow links either.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                if mode != 0o600:
                    os.fchmod(file.fileno(), mode)
                # Without it, a crash soon after the rename can leave an empty file.
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise NotWritableError(f"cannot write {path}: {error.strerror}") from error


def make_private_folder(path: str) -> None:
    """Create a folder and its parents, accessible only to the owner. Existing folders are not changed."""
    if path and not os.path.isdir(path):
        make_private_folder(os.path.dirname(path))
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the lock file during the block, waiting for its holder. The kernel frees a dead process's lock.

    Raises NotWritableError, also if another process keeps the lock for LOCK_WAIT_S.
    """
    try:
        make_private_folder(os.path.dirname(path))
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise NotWritableError(f"cannot write {path}: {error.strerror}") from error
    try:
        try:
            _lock(descriptor, path)
        except OSError as error:
            # Some network file systems have no locks.
            raise NotWritableError(f"cannot lock {path}: {error.strerror}") from error
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: str) -> None:
    give_up_at = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= give_up_at:
                raise NotWritableError(
                    f"cannot lock {path}: another process holds it for {LOCK_WAIT_S:.0f} s: end or resume it"
                ) from None
            time.sleep(LOCK_LOOK_S)
        else:
            return
