"""Backup and restore of the files that a hub can't make again: store, keys, pepper, certificates, token.

The archive is a plain tar of 0600 files. It holds every secret of the hub, so protect it like the data
folder. It does not include the audit trail, which has its own size and retention.

A restore works inside the data folder, so that the folder may be a mounted volume. It unpacks the archive
beside the present files and checks it as a whole: keys load, the pepper is complete, the database passes its
check and migrates. Only then it moves the present files aside and the new ones in.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import secrets
import shutil
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import attrs

from audit.sqlite import explained
from proxy.hub.home.datadir import RESTORING, DataDir
from proxy.hub.home.files.folder_lock import FolderInUseError
from proxy.hub.home.files.private_files import DataDirError, is_there, read_private
from proxy.hub.home.hub_instances import HubInstances
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.store import Store
from proxy.process.untrusted_json import read_json
from proxy.process.version import VERSION

FORMAT = 1
_ABOUT = "hawse-backup.json"
# Exactly these names; other tar members (links, devices, other paths) are refused.
_MEMBER = re.compile(
    r"hub\.db|pepper|admin-token|keys/(active|succession|[A-Za-z0-9._-]+\.pem)|tls/[a-z]+\.(pem|key)"
)
MEMBERS_MAX = 200
# A store of a million agents fits.
MEMBER_BYTES_MAX = 4 * 1024**3
# The order in which a restore moves files in: the store first, the pepper last.
_MOVED = {"hub.db": 0, "pepper": 2}
# Files that a restore does not replace.
_KEPT = re.compile(
    r"hub\.lock|hub\.sock|boots|reserve|lost\+found|(audit|seen)\.db(-wal|-shm)?|admin\.json|\.restore-.*"
    r"|\.before-restore-.*"
)
_SQLITE_TIMEOUT_S = 30.0
# Two readings suffice unless the folder changes, which happens at intervals of minutes.
READINGS_MAX = 10
# Prefixes of the temporary folders of a backup and a restore.
_BACKUP = ".hawse-backup-"
_TEMPORARY = _BACKUP, RESTORING
# The files in a backup's temporary folder.
_UNFINISHED = re.compile(r"archive|hub\.db(-journal|-wal|-shm)?")


class BackupError(Exception):
    """The archive cannot be written or restored; the message names the cause and the next step."""


@attrs.frozen
class Restored:
    """The result of a restore."""

    created: str
    """When the backup was made, in UTC."""
    replaced: Path | None
    """The folder with the replaced files."""


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
            _add(tar, _ABOUT, _about())
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
        raise BackupError(f"{what}: {_said(error)}") from error


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


def restore(data_dir: Path, archive: Path, *, overwrite: bool) -> Restored:
    """Put an archive in place of a data folder's files; raises BackupError.

    A bad archive changes nothing. After an interrupted move no hub starts on the folder. The hub must not
    run. With `overwrite` the present files of a used folder are moved aside first.
    """
    fresh = data_dir / f"{RESTORING}{secrets.token_hex(4)}"
    try:
        data = DataDir.open(data_dir)
        with data.locked():
            running = HubInstances(data.instances_dir).running()
            if running:
                raise BackupError(
                    f"a hub that was stopped or replaced still finishes its open calls on {data_dir}: "
                    "wait for its end"
                )
            present = _present(data_dir)
            if present and not overwrite:
                raise BackupError(
                    f"{data_dir} holds a hub already ({', '.join(present[:3])}…): "
                    "restore into an empty folder, or use --overwrite, which moves these files aside"
                )
            try:
                about = _unpack(archive, fresh)
                _check(fresh)
                if not is_there(data.audit_file):
                    # A backup has no trail. Without one in the folder, the hub must begin a new one.
                    _forget_trail(fresh)
                aside = _copied_aside(data_dir, present)
            except BaseException:
                shutil.rmtree(fresh, ignore_errors=True)
                raise
            _swap(data_dir, fresh, present, aside)
            # Also the folders of earlier, interrupted restores.
            for left in data_dir.glob(f"{RESTORING}*"):
                shutil.rmtree(left, ignore_errors=True)
            return Restored(about, aside)
    except FolderInUseError as error:
        raise BackupError(
            f"cannot restore {archive} into {data_dir}: another process runs there: stop that hub first"
        ) from error
    except (OSError, DataDirError, StoreUnavailableError) as error:
        # The unpacked folder is removed already, so its path would mislead.
        said = _said(error).replace(f"{fresh}/", "its ")
        raise BackupError(f"cannot restore {archive} into {data_dir}: {said}") from error


def _said(error: Exception) -> str:
    """Return the error's message, with the path that the operator must correct."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    if error.filename is None:
        return error.strerror
    path = Path(os.fsdecode(error.filename))
    # The name of a temporary file does not help an operator, but its folder does.
    ours = next((each for each in (path, *path.parents) if each.name.startswith(_TEMPORARY)), None)
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
    return sorted(name for name in names if _MEMBER.fullmatch(name) and name != "hub.db")


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


def _unpack(archive: Path, fresh: Path) -> str:
    """Unpack into a new folder, only plain files with the expected names; return the time of the backup."""
    fresh.mkdir(mode=0o700)
    for folder in ("keys", "tls"):
        (fresh / folder).mkdir(mode=0o700)
    try:
        with tarfile.open(archive, mode="r:") as tar:
            created = _extract(archive, tar, fresh)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        # tarfile does not check the numbers in a sparse member's header.
        raise BackupError(f"{archive} is not a backup of a hub: {error}") from error
    if not created:
        raise BackupError(f"{archive} is not a backup of a hub: it does not say so")
    # Older hubs had no such file before the first key rotation.
    (fresh / "keys" / "succession").touch(0o600)
    return created


def _extract(archive: Path, tar: tarfile.TarFile, fresh: Path) -> str:
    created = ""
    for number, member in enumerate(tar):
        if number >= MEMBERS_MAX or not member.isreg() or member.size > MEMBER_BYTES_MAX:
            raise BackupError(
                f"{archive} is not a backup of a hub: {ascii(member.name)[:80]} has no place in it"
            )
        content = tar.extractfile(member)
        assert content is not None  # it is a regular file
        if member.name == _ABOUT:
            created = _read_about(archive, content.read(64 * 1024))
        elif _MEMBER.fullmatch(member.name):
            descriptor = os.open(fresh / member.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                shutil.copyfileobj(content, file)
                file.flush()
                os.fsync(file.fileno())
        else:
            raise BackupError(
                f"{archive} is not a backup of a hub: {ascii(member.name)[:80]} has no place in it"
            )
    return created


def _read_about(archive: Path, text: bytes) -> str:
    try:
        about = read_json(text)
        found, created = about["format"], str(about["created"])
    except (ValueError, KeyError, TypeError) as error:
        raise BackupError(f"{archive} is not a backup of a hub: its description is damaged") from error
    if found != FORMAT:
        raise BackupError(
            f"{archive} has format {found!a}, this version reads {FORMAT}: use the version that wrote it"
        )
    return created


def _check(fresh: Path) -> None:
    """Prove that a hub could start on it; raises DataDirError, StoreUnavailableError, BackupError."""
    unpacked = DataDir(fresh)
    if not unpacked.store_file.is_file():
        raise BackupError("the backup holds no store")
    unpacked.keys.load_or_make()
    unpacked.pepper()
    unpacked.admin.token()
    try:
        with closing(sqlite3.connect(unpacked.store_file)) as connection:
            (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            broken = connection.execute("PRAGMA foreign_key_check").fetchone()
    except sqlite3.Error as error:
        raise BackupError(f"the backup's store is damaged: {error}") from error
    if verdict != "ok" or broken is not None:
        raise BackupError(
            f"the backup's store is damaged: {verdict if verdict != 'ok' else 'dangling references'}"
        )
    store = Store(unpacked.store_file, org="main", clock=time.time)
    try:
        faults = store.snapshot().faults
    finally:
        store.close()
    if faults:
        raise BackupError(f"the backup's store holds an invalid row: {faults[0]}")


def _forget_trail(fresh: Path) -> None:
    store = Store(DataDir(fresh).store_file, org="main", clock=time.time)
    try:
        store.accept_trail(None)
    finally:
        store.close()


def _present(data_dir: Path) -> list[str]:
    """Return the files that a restore would replace, without the empty folders that DataDir.open makes."""
    return sorted(
        path.name
        for path in data_dir.iterdir()
        if not _KEPT.fullmatch(path.name) and not _is_empty_folder(path)
    )


def _is_empty_folder(path: Path) -> bool:
    """Return whether this is an empty folder. A link to one is not: rmdir can't remove it."""
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _copied_aside(data_dir: Path, present: list[str]) -> Path | None:
    """Make the folder for the present files, and copy the store there; the store itself stays in place."""
    if not present:
        return None
    when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = data_dir / f".before-restore-{when}-{secrets.token_hex(2)}"
    aside.mkdir(mode=0o700)
    if "hub.db" in present:
        try:
            shutil.copy2(data_dir / "hub.db", aside)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    return aside


def _swap(data_dir: Path, fresh: Path, present: list[str], aside: Path | None) -> None:
    # If this is interrupted, a store without its pepper keeps a hub from starting.
    if aside is not None:
        for name in sorted({*present} - {"hub.db"}, key=lambda name: name != "pepper"):
            (data_dir / name).rename(aside / name)
    for path in sorted(fresh.iterdir(), key=lambda path: (_MOVED.get(path.name, 1), path.name)):
        target = data_dir / path.name
        if target.is_dir():
            target.rmdir()  # one of the empty ones
        path.rename(target)
