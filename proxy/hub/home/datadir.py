"""The hub's data folder: signing keys, pepper, certificates, the first admin token and both databases.

The folder is 0700 and each file 0600, made so from its first byte. Losing the signing keys or the pepper
loses every agent and relay; `hawse admin backup` copies all of it. A hub on PostgreSQL has the directory, the
trail, the used tokens, the signing keys and the pepper there, and `seal.key` in the folder.

    hub.lock            held by the hub that listens; another hub starts only by replacing it
    hub.sock            the restart socket, for the handover to a replacing hub
    boots/              a locked file for each running hub, draining ones included
    hub.db              teams, agents, clusters, keys            audit.db   the audit trail
    database            with PostgreSQL: where that is
    moved               hub.db and audit.db were copied into PostgreSQL, and are no longer in use
    applied             the version of the directory in PostgreSQL that the hub has applied
    seal.key            with PostgreSQL: the keys that open its secrets (proxy/hub/home/files/seal_file.py)
    hub-id              with PostgreSQL: the name of this folder's hub among others
    reserve             space for revocations while the disk is full (proxy/hub/home/files/reserve.py)
    seen.db             the one-time tokens that were used (proxy/hub/identity/replay_sqlite.py)
    keys/<kid>.pem      signing keys                             keys/active   the kid that signs
    keys/succession     the rotation statements, oldest first (auth/key_rotation.py)
    pepper              32 bytes that key the stored hashes
    admin-token         the token that `hawse admin` on this machine uses
    admin.json          where the admin API listens, and its certificate
    tls/                the development CA and its certificate, unless a certificate is configured
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from auth.apikey import PEPPER_BYTES
from proxy.hub.home.files.folder_lock import FolderLock, take_lock
from proxy.hub.home.files.key_folder import KeyFolder
from proxy.hub.home.files.local_admin import LocalAdmin
from proxy.hub.home.files.private_files import (
    DataDirError,
    check_private,
    check_writable,
    explained,
    is_there,
    read_private,
    write_private,
)

# Prefix of the folder in which a restore unpacks. An interrupted restore leaves it behind.
RESTORING = ".restore-"


@attrs.frozen
class DataDir:
    """Paths and contents of the folder; `open` creates and checks it."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> DataDir:
        """Make the folder if it is missing, and check that only its owner has access; raises DataDirError."""
        try:
            _make_folder(path)
            # Other users may already have read an open folder, so report it instead of changing its mode.
            check_private(path)
            for name in ("keys", "tls"):
                (path / name).mkdir(mode=0o700, exist_ok=True)
        except FileExistsError as error:
            raise DataDirError(_no_folder(error.filename)) from error
        except OSError as error:
            raise DataDirError(f"cannot use the data folder {path}: {explained(error)}") from error
        return cls(path)

    def check_folder(self) -> bool:
        """Return whether the folder exists; raises DataDirError where `open` would fail.

        Changes nothing.
        """
        try:
            if not os.path.lexists(self.path):
                _check_parent(self.path)
                return False
            if not self.path.is_dir():
                raise DataDirError(_no_folder(self.path))
            check_private(self.path)
            for folder in (self.path, self.keys_dir, self.tls_dir, self.instances_dir):
                if is_there(folder):
                    check_writable(folder)
        except OSError as error:
            raise DataDirError(f"cannot use the data folder {self.path}: {explained(error)}") from error
        return True

    @property
    def store_file(self) -> Path:
        return self.path / "hub.db"

    @property
    def address_file(self) -> Path:
        return self.path / "database"

    @property
    def applied_file(self) -> Path:
        return self.path / "applied"

    @property
    def audit_file(self) -> Path:
        return self.path / "audit.db"

    @property
    def seen_file(self) -> Path:
        return self.path / "seen.db"

    @property
    def reserve_file(self) -> Path:
        return self.path / "reserve"

    @property
    def keys_dir(self) -> Path:
        return self.path / "keys"

    @property
    def keys(self) -> KeyFolder:
        """The signing keys."""
        return KeyFolder(self.keys_dir, lambda: is_there(self.store_file))

    @property
    def admin(self) -> LocalAdmin:
        """The files for `hawse admin` on this machine."""
        return LocalAdmin(self.path)

    @property
    def tls_dir(self) -> Path:
        return self.path / "tls"

    @property
    def _pepper_file(self) -> Path:
        return self.path / "pepper"

    @property
    def lock_file(self) -> Path:
        return self.path / "hub.lock"

    @property
    def restart_socket_file(self) -> Path:
        return self.path / "hub.sock"

    @property
    def instances_dir(self) -> Path:
        return self.path / "boots"

    def lock(self) -> FolderLock:
        """Take the folder's lock; raises FolderInUseError, DataDirError."""
        return take_lock(self.lock_file)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for the block; raises FolderInUseError."""
        lock = self.lock()
        try:
            yield
        finally:
            lock.release()

    def pepper(self) -> bytes:
        """Load the pepper, making it at the first start; raises DataDirError."""
        found = self.existing_pepper()
        if found is not None:
            return found
        pepper = secrets.token_bytes(PEPPER_BYTES)
        write_private(self._pepper_file, pepper.hex().encode("ascii") + b"\n")
        return pepper

    def existing_pepper(self) -> bytes | None:
        """Load the pepper; None before the first start has made it. Raises DataDirError."""
        file = self._pepper_file
        if not is_there(file):
            if not is_there(self.store_file):
                return None
            raise DataDirError(
                f"{file} is missing, though this hub has run before: restore a backup, "
                "since without it no API key is recognised"
            )
        try:
            pepper = bytes.fromhex(read_private(file).decode("ascii"))
        except ValueError:
            pepper = b""  # not chained: the cause would quote the secret
        if len(pepper) != PEPPER_BYTES:
            raise DataDirError(f"{file}: not {PEPPER_BYTES} bytes in hexadecimal; restore it from a backup")
        return pepper


def _make_folder(path: Path) -> None:
    """Make the folder if it is missing; raises FileExistsError for a file, else DataDirError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise
    except OSError as error:
        if os.path.lexists(path):
            raise
        raise DataDirError(fault_of_missing_folder(path, error)) from error


def _no_folder(path: str | Path) -> str:
    return f"{path} is no folder: move it away, or choose another data_dir"


def _check_parent(path: Path) -> None:
    """Raise DataDirError when the folder, which is missing, cannot be made."""
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    try:
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        check_writable(above)
    except OSError as error:
        raise DataDirError(fault_of_missing_folder(path, error)) from error


def fault_of_missing_folder(path: Path, error: OSError) -> str:
    """Return the message for a missing data folder, and why the hub cannot make it."""
    # Not Path.is_dir, which raises below a folder without access.
    above = next(folder for folder in path.absolute().parents if os.path.isdir(folder))
    return (
        f"the data folder {path} does not exist, and cannot be made in {above}: {error.strerror}: "
        "create it for the user that runs the hub (mode 700), or set data_dir"
    )
