"""Backup of the files that a hub can't make again: store, keys, pepper, certificates, token.

The archive is a plain tar of 0600 files. It holds every secret of the hub, so protect it like the data
folder. It does not include the audit trail, which has its own size and retention.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from audit.sqlite import explained
from proxy.hub.home.datadir import RESTORING, DataDir
from proxy.hub.home.files.private_files import DataDirError, is_there, read_private
from proxy.process.version import VERSION

FORMAT = 1
ABOUT = "hawse-backup.json"
# Exactly these names; other tar members (links, devices, other paths) are refused.
MEMBER = re.compile(
    r"hub\.db|pepper|admin-token|keys/(active|succession|[A-Za-z0-9._-]+\.pem)|tls/[a-z]+\.(pem|key)"
)
_SQLITE_TIMEOUT_S = 30.0
# Two readings suffice unless the folder changes, which happens at intervals of minutes.
READINGS_MAX = 10
# Prefixes of the temporary folders of a backup and a restore.
_BACKUP = ".hawse-backup-"
TEMPORARY = _BACKUP, RESTORING
# The files in a backup's temporary folder.
_UNFINISHED = re.compile(r"archive|hub\.db(-journal|-wal|-shm)?")


class BackupError(Exception):
    """The archive cannot be written or restored; the message names the cause and the next step."""


def backup(data_dir: Path, archive: Path) -> None:
    """Write the archive; the hub may run meanwhile. Raises BackupError.

    An existing file is never replaced: it may be the only good backup.
    """
    with _explained(data_dir, archive.absolute().parent, f"to {archive}"):
        try:
            with _beside(archive) as folder:
                # link() and not rename(): it refuses a name that exists.
                os.link(_pack(data_dir, folder), archive)
        except FileExistsError as error:
            raise BackupError(f"{archive} exists already: choose another name") from error


def pack(data_dir: Path) -> BinaryIO:
    """Return the archive as an open file without a name; the hub may run meanwhile. Raises BackupError.

    It is in the data folder, which is as private as the archive must be.
    """
    with _explained(data_dir, data_dir, ""), _beside(data_dir / "archive") as folder:
        return _pack(data_dir, folder).open("rb")


def _pack(data_dir: Path, folder: Path) -> Path:
    """Write the archive into a folder; raises BackupError, OSError, DataDirError and sqlite3.Error."""
    if is_there(DataDir(data_dir).address_file):
        raise BackupError(
            f"the teams, agents and clusters of {data_dir} are in PostgreSQL: back that up with pg_dump, "
            "and copy the sealing key (seal.key in the folder, or database.seal_file) and tls/"
        )
    if not is_there(data_dir / "hub.db"):
        raise BackupError(f"{data_dir} is no hub's data folder: name it by --data-dir or HAWSE_HUB_DATA_DIR")
    unfinished = folder / "archive"
    copy = folder / "hub.db"
    _copy_database(data_dir / "hub.db", copy)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            _add(tar, ABOUT, _about())
            for name, data in _read_members(data_dir).items():
                _add(tar, name, data)
            _add_file(tar, "hub.db", copy)
        file.flush()
        os.fsync(file.fileno())
    return unfinished


@contextmanager
def _explained(data_dir: Path, target: Path, where: str) -> Iterator[None]:
    """Translate the errors of a backup; `target` is the folder with the copy."""
    what = f"cannot back up {data_dir} {where}".rstrip()
    try:
        yield
    except sqlite3.Error as error:
        store = data_dir / "hub.db"
        # The store is only read, so a full disk is the one of the copy.
        full = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
        why = f"{target if full else store}: {explained(store, error)}"
        raise BackupError(f"{what}: {why}") from error
    except (OSError, DataDirError) as error:
        raise BackupError(f"{what}: {said(error)}") from error


@contextmanager
def _beside(archive: Path) -> Iterator[Path]:
    """Make a temporary folder beside the archive, and remove those that killed backups have left.

    The folder holds every secret. It is locked before any file is in it.
    """
    parent = archive.absolute().parent
    for left in parent.glob(f"{_BACKUP}*"):
        # Other folders, and locked ones, stay.
        with suppress(OSError), _locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB):
            names = os.listdir(left)
            if names and all(map(_UNFINISHED.fullmatch, names)):
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_BACKUP, dir=parent) as folder, ExitStack() as stack:
        # On a file system without locks, no leftover is removed either.
        with suppress(OSError):
            stack.enter_context(_locked(Path(folder), fcntl.LOCK_EX))
        yield Path(folder)


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def said(error: Exception) -> str:
    """Return the error's message, with the path that the operator must correct."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    if error.filename is None:
        return error.strerror
    path = Path(os.fsdecode(error.filename))
    # The name of a temporary file does not help an operator, but its folder does.
    ours = next((each for each in (path, *path.parents) if each.name.startswith(TEMPORARY)), None)
    return f"{path if ours is None else ours.parent}: {error.strerror}"


def _members(data_dir: Path) -> list[str]:
    """Return the names of the files to back up besides the store; an unreadable folder raises OSError.

    (Path.rglob would treat it as empty, and its files would be missing in the archive.)
    """
    folders = [data_dir, data_dir / "keys"]
    if is_there(data_dir / "tls"):
        # Empty when the operator has set a certificate, and a copy of the folder may lack empty folders.
        folders.append(data_dir / "tls")
    names = (str(path.relative_to(data_dir)) for folder in folders for path in folder.iterdir())
    return sorted(name for name in names if MEMBER.fullmatch(name) and name != "hub.db")


def _read_members(data_dir: Path) -> dict[str, bytes]:
    """Read the files to back up besides the store, in one consistent state.

    A key rotation changes several files that belong together. Two equal readings show that all these contents
    existed together when the second reading began.
    """
    before: dict[str, bytes] | None = None
    for _ in range(READINGS_MAX):
        try:
            found = {name: read_private(data_dir / name) for name in _members(data_dir)}
        except DataDirError as error:
            # An expired key was removed, or a file was being replaced.
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            continue
        if found == before:
            return found
        before = found
    raise BackupError(f"cannot back up {data_dir}, which keeps changing: try later")


def _copy_database(source: Path, copy: Path) -> None:
    """Copy with SQLite's online backup: consistent while a hub writes, and including the WAL."""
    os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with closing(sqlite3.connect(source, timeout=_SQLITE_TIMEOUT_S)) as live:
        with closing(sqlite3.connect(copy)) as target:
            live.backup(target)
            # A single file, whatever journal mode was copied.
            target.execute("PRAGMA journal_mode = DELETE")


def _about() -> bytes:
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return json.dumps({"format": FORMAT, "created": created, "version": VERSION}).encode("ascii")


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = _member(name, len(data))
    tar.addfile(member, io.BytesIO(data))


def _add_file(tar: tarfile.TarFile, name: str, path: Path) -> None:
    with path.open("rb") as file:
        tar.addfile(_member(name, path.stat().st_size), file)


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    member.mode = 0o600
    member.mtime = int(time.time())
    return member
