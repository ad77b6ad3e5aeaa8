"""Restore of a backup into a data folder.

It works inside the data folder, so that the folder may be a mounted volume. It unpacks the archive beside the
present files and checks it as a whole: keys load, the pepper is complete, the database passes its check and
migrates. Only then it moves the present files aside and the new ones in.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sqlite3
import tarfile
import time
from contextlib import closing
from pathlib import Path

import attrs

from proxy.hub.admin.data.backup import ABOUT, FORMAT, MEMBER, BackupError, said
from proxy.hub.home.datadir import RESTORING, DataDir
from proxy.hub.home.files.folder_lock import FolderInUseError
from proxy.hub.home.files.private_files import DataDirError, is_there
from proxy.hub.home.hub_instances import HubInstances
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.store import Store
from proxy.process.untrusted_json import read_json

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


@attrs.frozen
class Restored:
    """The result of a restore."""

    created: str
    """When the backup was made, in UTC."""
    replaced: Path | None
    """The folder with the replaced files."""


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
        why = said(error).replace(f"{fresh}/", "its ")
        raise BackupError(f"cannot restore {archive} into {data_dir}: {why}") from error


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
        if member.name == ABOUT:
            created = _read_about(archive, content.read(64 * 1024))
        elif MEMBER.fullmatch(member.name):
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
    """Prove that a hub could start on it; raises DataDirError, StoreUnavailableError, BackupError.

    No grant in the backup can be used afterwards.
    """
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
        store.cancel_restored_requests()
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
