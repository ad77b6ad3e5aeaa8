"""Private files: readable by their owner alone from the first byte, and replaced as a whole."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from proxy.agent.errors import AgentError, NotWritableError

# Logins, tokens and kubeconfigs have some kilobytes.
FILE_BYTES_MAX = 4 * 1024 * 1024
# Whoever has a lock asks the hub meanwhile, for ten seconds at most. One that was stopped (Ctrl-Z) has it for
# as long as it likes.
LOCK_WAIT_S = 15.0
LOCK_LOOK_S = 0.01


def config_folder(environment: Mapping[str, str]) -> str:
    """Where the agent's logins are: `hawse` under the XDG configuration home."""
    return _folder(environment, "XDG_CONFIG_HOME", ".config")


def cache_folder(environment: Mapping[str, str]) -> str:
    """Where tokens are kept for as long as they live: `hawse` under the XDG cache home."""
    return _folder(environment, "XDG_CACHE_HOME", ".cache")


def _folder(environment: Mapping[str, str], variable: str, fallback: str) -> str:
    base = environment.get(variable, "")
    # The XDG specification: "All paths set in these environment variables must be absolute", else ignored.
    if not base.startswith("/"):
        base = os.path.join(environment.get("HOME") or os.path.expanduser("~"), fallback)
    return os.path.join(base, "hawse")


def read_private(path: str) -> bytes | None:
    """Read a file that holds a secret; None when there is none. Raises AgentError when others can read it."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.geteuid():
                raise AgentError(
                    f"{path} belongs to another user (uid {status.st_uid}): remove it and log in again"
                )
            if stat.S_IMODE(status.st_mode) & 0o077:
                raise AgentError(
                    f"{path} is open to other users: run chmod 600 {path}, and consider its keys known"
                )
            return file.read(FILE_BYTES_MAX)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AgentError(f"cannot read {path}: {error.strerror}") from error


def write_private(path: str, data: bytes) -> None:
    """Replace the file; a crash leaves the old one or the new one. Raises NotWritableError.

    A link in its place is replaced, and never followed. What is written first has a name that nobody else can
    have taken: a kubeconfig may be wanted in a folder where others may write, and who has made the file is
    who can read it.
    """
    temporary = f"{path}.{os.urandom(8).hex()}.new"
    try:
        make_private_folder(os.path.dirname(path))
        # O_EXCL follows no link either.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                # Or a crash soon after the rename leaves an empty file.
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise NotWritableError(f"cannot write {path}: {error.strerror}") from error


def make_private_folder(path: str) -> None:
    """Make a folder, and those above it, for the owner alone; one that stands already stays as it is."""
    if path and not os.path.isdir(path):
        make_private_folder(os.path.dirname(path))
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the lock file for the block, waiting for whoever has it; the kernel frees a dead process's.

    Raises NotWritableError, also when another process has it for LOCK_WAIT_S.
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
            # Some file systems of a network know no locks.
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
                    f"cannot lock {path}: another process has it for {LOCK_WAIT_S:.0f} s: end or resume that"
                ) from None
            time.sleep(LOCK_LOOK_S)
        else:
            return
