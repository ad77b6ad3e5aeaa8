"""Backup and restore of what a hub cannot make again: store, signing keys, pepper, certificates, local token.

The archive is a plain tar of 0600 files. It holds every secret of the hub, so it is as precious as the data
folder itself. The audit trail is not in it: it is a record of its own with its own size and retention.

A restore works inside the data folder, so that the folder may be a mounted volume: the archive is unpacked
beside the present files and checked as a whole (keys load, pepper is whole, the database passes its own
check and migrates), and only then are the present files moved aside and the new ones moved in.
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
from importlib.metadata import version
from pathlib import Path

import attrs

from audit.sqlite import explained
from proxy.hub.home.datadir import RESTORING, DataDir
from proxy.hub.home.folder_lock import FolderInUseError
from proxy.hub.home.hub_instances import HubInstances
from proxy.hub.home.private_files import DataDirError, is_there, read_private
from proxy.hub.store.errors import StoreUnavailableError
from proxy.hub.store.store import Store
from proxy.process.untrusted_json import read_json

FORMAT = 1
_ABOUT = "hawse-backup.json"
# Exactly these; whatever else a tar can hold (links, devices, other paths) is not ours.
_MEMBER = re.compile(
    r"hub\.db|pepper|admin-token|keys/(active|succession|[A-Za-z0-9._-]+\.pem)|tls/[a-z]+\.(pem|key)"
)
MEMBERS_MAX = 200
# A million agents fit; what is larger was not written by `backup`.
MEMBER_BYTES_MAX = 4 * 1024**3
# What a restore puts there first and last.
_MOVED = {"hub.db": 0, "pepper": 2}
# What a restore leaves where it is.
_KEPT = re.compile(
    r"hub\.lock|hub\.sock|boots|reserve|lost\+found|(audit|seen)\.db(-wal|-shm)?|admin\.json|\.restore-.*"
    r"|\.before-restore-.*"
)
_SQLITE_TIMEOUT_S = 30.0
# Two are enough for a folder that rests, as one does for minutes.
READINGS_MAX = 10
# How the names begin of what is there while one or the other works.
_BACKUP = ".hawse-backup-"
_TEMPORARY = _BACKUP, RESTORING
# What is in the one of a backup.
_UNFINISHED = re.compile(r"archive|hub\.db(-journal|-wal|-shm)?")


class BackupError(Exception):
    """The archive cannot be written, or is not restored; the message says why and what to do."""


@attrs.frozen
class Restored:
    """What a restore did."""

    created: str
    """When the backup was made, in UTC."""
    replaced: Path | None
    """Where the files that it replaced now are."""


def backup(data_dir: Path, archive: Path) -> None:
    """Write the archive, also while the hub runs; raises BackupError.

    An existing file is never replaced: it may be the only good backup.
    """
    try:
        if not is_there(data_dir / "hub.db"):
            raise BackupError(
                f"{data_dir} is no hub's data folder: name it by --data-dir or HAWSE_HUB_DATA_DIR"
            )
        with _beside(archive) as folder:
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
            # link() and not rename(): it refuses a name that exists.
            os.link(unfinished, archive)
    except FileExistsError as error:
        raise BackupError(f"{archive} exists already: choose another name") from error
    except sqlite3.Error as error:
        store = data_dir / "hub.db"
        # That is only read: a disk that is full is the copy's.
        full = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
        why = f"{archive.absolute().parent if full else store}: {explained(store, error)}"
        raise BackupError(f"cannot back up {data_dir} to {archive}: {why}") from error
    except (OSError, DataDirError) as error:
        raise BackupError(f"cannot back up {data_dir} to {archive}: {_said(error)}") from error


@contextmanager
def _beside(archive: Path) -> Iterator[Path]:
    """A folder to work in, where the archive will be; what backups that were killed have left there goes.

    It holds every secret. A folder that is in use is locked before anything is in it.
    """
    parent = archive.absolute().parent
    for left in parent.glob(f"{_BACKUP}*"):
        # What is not ours, or is in use, stays.
        with suppress(OSError), _locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB):
            names = os.listdir(left)
            if names and all(map(_UNFINISHED.fullmatch, names)):
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_BACKUP, dir=parent) as folder, ExitStack() as stack:
        # Where there are no locks, nothing is taken for left behind either.
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

    What is wrong with the archive changes nothing, and on half of what is moved no hub starts. The hub must
    not run. With `overwrite` the files of a folder that is in use are moved aside first.
    """
    fresh = data_dir / f"{RESTORING}{secrets.token_hex(4)}"
    try:
        data = DataDir.open(data_dir)
        with data.locked():
            running = HubInstances(data.instances_dir).running()
            if running:
                raise BackupError(
                    f"a hub that was stopped or replaced still finishes what it has begun on {data_dir}: "
                    "wait for its end"
                )
            present = _present(data_dir)
            if present and not overwrite:
                raise BackupError(
                    f"{data_dir} holds a hub already ({', '.join(present[:3])}…): "
                    "restore into an empty folder, or say --overwrite, which moves these files aside"
                )
            try:
                about = _unpack(archive, fresh)
                _check(fresh)
                if not is_there(data.audit_file):
                    # The trail is no part of a backup. Where none is, the hub begins one.
                    _forget_trail(fresh)
                aside = _copied_aside(data_dir, present)
            except BaseException:
                shutil.rmtree(fresh, ignore_errors=True)
                raise
            _swap(data_dir, fresh, present, aside)
            # Those of earlier ones that were cut short, too.
            for left in data_dir.glob(f"{RESTORING}*"):
                shutil.rmtree(left, ignore_errors=True)
            return Restored(about, aside)
    except FolderInUseError as error:
        raise BackupError(
            f"cannot restore {archive} into {data_dir}: another process runs there: stop that hub first"
        ) from error
    except (OSError, DataDirError, StoreUnavailableError) as error:
        # What was unpacked is gone again.
        said = _said(error).replace(f"{fresh}/", "its ")
        raise BackupError(f"cannot restore {archive} into {data_dir}: {said}") from error


def _said(error: Exception) -> str:
    """What went wrong, and where that is to be mended."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    if error.filename is None:
        return error.strerror
    path = Path(os.fsdecode(error.filename))
    # The names of our own temporary files tell nobody anything, but their folder does.
    ours = next((each for each in (path, *path.parents) if each.name.startswith(_TEMPORARY)), None)
    return f"{path if ours is None else ours.parent}: {error.strerror}"


def _members(data_dir: Path) -> list[str]:
    """What is to be backed up beside the store; a folder that cannot be looked into raises OSError.

    (Path.rglob would take it for an empty one, and its files would be missing in the archive.)
    """
    folders = [data_dir, data_dir / "keys"]
    if is_there(data_dir / "tls"):
        # It is empty where the hub has a certificate of its operator, and a copy may lack what is empty.
        folders.append(data_dir / "tls")
    names = (str(path.relative_to(data_dir)) for folder in folders for path in folder.iterdir())
    return sorted(name for name in names if _MEMBER.fullmatch(name) and name != "hub.db")


def _read_members(data_dir: Path) -> dict[str, bytes]:
    """Read what is to be backed up beside the store, as it was at one moment.

    A hub that rotates its keys meanwhile changes several of the files, which fit together only then. What has
    been read twice alike was all there when the second reading began.
    """
    before: dict[str, bytes] | None = None
    for _ in range(READINGS_MAX):
        try:
            found = {name: read_private(data_dir / name) for name in _members(data_dir)}
        except DataDirError as error:
            # A key whose time is over goes, and so may a file that is being replaced.
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            continue
        if found == before:
            return found
        before = found
    raise BackupError(f"cannot back up {data_dir}, which changes again and again: try later")


def _copy_database(source: Path, copy: Path) -> None:
    """SQLite's own online copy: consistent while a hub writes, with what still stands in its WAL."""
    os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with closing(sqlite3.connect(source, timeout=_SQLITE_TIMEOUT_S)) as live:
        with closing(sqlite3.connect(copy)) as target:
            live.backup(target)
            # One file, whatever the journal mode that came along.
            target.execute("PRAGMA journal_mode = DELETE")


def _about() -> bytes:
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return json.dumps({"format": FORMAT, "created": created, "version": version("hawse")}).encode("ascii")


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
    """Unpack into a new folder, nothing but plain files of the names we write; return when it was made."""
    fresh.mkdir(mode=0o700)
    for folder in ("keys", "tls"):
        (fresh / folder).mkdir(mode=0o700)
    try:
        with tarfile.open(archive, mode="r:") as tar:
            created = _extract(archive, tar, fresh)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        # The numbers in a sparse member's header tarfile takes as they stand.
        raise BackupError(f"{archive} is not a backup of a hub: {error}") from error
    if not created:
        raise BackupError(f"{archive} is not a backup of a hub: it does not say so")
    # Hubs of before the first rotation of keys had none.
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
        raise BackupError(f"the backup's store holds what must not be used: {faults[0]}")


def _forget_trail(fresh: Path) -> None:
    store = Store(DataDir(fresh).store_file, org="main", clock=time.time)
    try:
        store.accept_trail(None)
    finally:
        store.close()


def _present(data_dir: Path) -> list[str]:
    """What a restore would replace; the empty folders of a first look do not count."""
    return sorted(
        path.name
        for path in data_dir.iterdir()
        if not _KEPT.fullmatch(path.name) and not _is_empty_folder(path)
    )


def _is_empty_folder(path: Path) -> bool:
    """A link to one is none: it cannot be removed as a folder is."""
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _copied_aside(data_dir: Path, present: list[str]) -> Path | None:
    """Where the present files are to go, with a copy of the store, which stays until another is there."""
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
    # A store without its pepper keeps a hub from starting, should this be cut short in between.
    if aside is not None:
        for name in sorted({*present} - {"hub.db"}, key=lambda name: name != "pepper"):
            (data_dir / name).rename(aside / name)
    for path in sorted(fresh.iterdir(), key=lambda path: (_MOVED.get(path.name, 1), path.name)):
        target = data_dir / path.name
        if target.is_dir():
            target.rmdir()  # one of the empty ones
        path.rename(target)
