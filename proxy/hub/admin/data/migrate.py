"""Moves a stopped hub from SQLite into PostgreSQL: directory, secrets, used tokens and the audit trail.

One transaction copies everything, reads both sides and compares them. So the database has nothing of a
migration that was cut, or all of it. Until the commit, the data folder is as it was. Then it gets the file
`moved`, with which no hub starts on its SQLite files. A migration that was cut in between is completed by the
next one, which finds the copy and compares it again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeAlias

import attrs
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from audit.errors import AuditUnavailable
from audit.file import NeedsRecovery, translated, untouched, url
from audit.look import check_trail
from audit.postgres.moving import CopiedTrail, MovableTrail, TrailSum, count_events, is_movable
from audit.sqlite import explained
from audit.store import TrailMark
from proxy.hub.admin.data.migrate_rows import (
    DirectorySum,
    copy_rows,
    copy_used_tokens,
    is_empty,
    sum_rows,
    write_mark,
)
from proxy.hub.home.databases import (
    Move,
    move_file,
    note_address,
    note_applied,
    note_move,
    noted_address,
    noted_move,
)
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.files.folder_lock import FolderInUseError
from proxy.hub.home.files.private_files import DataDirError, is_there
from proxy.hub.home.files.seal_file import SealFile
from proxy.hub.home.hub_instances import HubInstances
from proxy.hub.home.sealed_secrets import check_secrets
from proxy.hub.store.engines.errors import StoreError, StoreUnavailableError
from proxy.hub.store.engines.postgres import look_at
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.engines.postgres_bulk import open_bulk
from proxy.hub.store.engines.sqlite import unusable
from proxy.hub.store.migrations import HEAD, MigrationError, read_revision
from proxy.hub.store.sealed import HubSecrets, read_secrets, write_secrets
from proxy.hub.store.secrets.sealing import SealError
from proxy.hub.store.snapshot import read_trail
from proxy.hub.store.versions.version import read_version

# Called with the step, the events that it has done, and the events in all.
Progress: TypeAlias = Callable[[str, int, int], None]

# Of the rows, of the trail, and of the signing keys and the pepper.
_Sums: TypeAlias = tuple[DirectorySum, TrailSum, str]

# How long to wait for a command that writes to a file.
BUSY_TIMEOUT_S = 5.0
_START_ONCE = "start a hub of this version on it once, and stop that"


class MigrateError(Exception):
    """The hub cannot be moved; the message names the next step."""


@attrs.frozen
class Contents:
    """What a migration copies."""

    rows: Mapping[str, int]
    """The rows of each table."""
    events: int
    sha256: str = ""
    """Of the events in the format of `hawse audit list --json`, one per line; empty before they are read."""


@attrs.frozen
class Target:
    """Where a hub is moved to."""

    address: PostgresAddress
    seal_file: SealFile
    """The keys that seal the hub's secrets there."""


def look(data: DataDir, to: Target) -> Contents:
    """Check what can be checked without a change; returns what would be copied. Raises MigrateError.

    A hub may run meanwhile.
    """
    with _translated():
        _check_folder(data, to.address)
        to.seal_file.check()
        rows, trail = _look_at_store(data.store_file)
        events = _look_at_trail(data.audit_file, trail)
        with look_at(to.address) as target:
            if target is not None and not _is_empty(target):
                secrets = read_secrets(target)
                if secrets.missing or sum_rows(target) != rows:
                    raise _not_empty(data)
                # Before a missing file is made: another key would not open this copy.
                check_secrets(secrets, trail, to.seal_file)
        return _contents(rows, events)


def migrate(data: DataDir, to: Target, progress: Progress) -> Contents:
    """Move a hub that is stopped; returns what was copied. Raises MigrateError: then it is not moved."""
    with _translated(), _alone(data):
        total = look(data, to).events
        # Before the rows that it opens.
        secrets, seal = _secrets_of(data), to.seal_file.load_or_make()

        def step(name: str) -> Callable[[int], None]:
            return lambda done: progress(name, done, total)

        with (
            closing(MovableTrail(data.audit_file)) as trail,
            _held(data.store_file) as store,
            _held(data.audit_file),
        ):
            here = sum_rows(store), trail.sum_up(step("events read")), _digest(secrets)
            with open_bulk(to.address) as target:
                copy = CopiedTrail(target)
                copied_before = not _is_empty(target)
                if not copied_before:
                    copy_rows(store, target)
                    write_secrets(target, secrets, seal)
                    trail.copy_to(target, int(time.time() * 1_000_000), step("events copied"))
                    write_mark(target, copy.mark())
                copy_used_tokens(data.seen_file, target, time.time())
                there = (
                    sum_rows(target),
                    copy.sum_up(step("events compared")),
                    _digest(read_secrets(target).open(seal)),
                )
                if here != there:
                    raise _not_empty(data) if copied_before else _different(here, there)
                version = read_version(target)
        # In place of those of an earlier move. The last file keeps hubs from starting on SQLite.
        note_applied(data, version)
        note_address(data, to.address)
        note_move(data, Move(time.strftime("%Y-%m-%d", time.gmtime()), to.address))
    rows, events, _ = here
    return _contents(rows, events.events, events.sha256)


def _contents(rows: DirectorySum, events: int, sha256: str = "") -> Contents:
    return Contents({name: found.rows for name, found in rows.items()}, events, sha256)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (DataDirError, StoreError, AuditUnavailable, SealError) as error:
        raise MigrateError(str(error)) from error


@contextmanager
def _alone(data: DataDir) -> Iterator[None]:
    """Hold the folder's lock for the block; raises MigrateError while a hub runs."""
    if not data.check_folder():
        raise _no_hub(data)
    try:
        with data.locked():
            if HubInstances(data.instances_dir).running():
                raise MigrateError(
                    f"a hub that was stopped or replaced still finishes its open calls on {data.path}: "
                    "wait for its end"
                )
            yield
    except FolderInUseError as error:
        which = f" ({error.pid})" if error.pid else ""
        raise MigrateError(f"a hub{which} runs on {data.path}: stop it first") from error


def _no_hub(data: DataDir) -> MigrateError:
    return MigrateError(f"{data.path} is no hub's data folder: name it by --data-dir or HAWSE_HUB_DATA_DIR")


def _check_folder(data: DataDir, address: PostgresAddress) -> None:
    if not data.check_folder():
        raise _no_hub(data)
    move, noted = noted_move(data), noted_address(data)
    if move is not None:
        raise MigrateError(
            f"{data.path} was moved to PostgreSQL on {move.day}: {move_file(data)} names the database"
        )
    if noted is not None and noted != address:
        raise MigrateError(
            f"the teams, agents and clusters of {data.path} are in PostgreSQL, as {data.address_file} says"
        )
    if not is_there(data.store_file):
        raise _no_hub(data)
    _secrets_of(data)


def _secrets_of(data: DataDir) -> HubSecrets:
    pepper, keys = data.existing_pepper(), data.keys.load()
    assert pepper is not None, "a hub has run here"
    assert keys is not None, "a hub has run here"
    return HubSecrets(pepper, keys)


def _digest(secrets: HubSecrets) -> str:
    """Sum up secrets for a comparison."""
    keys = secrets.keys
    pems = sorted(key.to_pem() for key in keys.all)
    statements = "\n".join([keys.active.kid, *keys.succession])
    return hashlib.sha256(b"\n".join([secrets.pepper, *pems, statements.encode()])).hexdigest()


def _look_at_store(file: Path) -> tuple[DirectorySum, TrailMark | None]:
    """Read the rows, and which trail the hub writes."""
    try:
        with untouched(file) as connection:
            if read_revision(connection) != HEAD:
                raise MigrateError(f"{file} is of another version: {_START_ONCE}")
            return sum_rows(connection), read_trail(connection)
    except NeedsRecovery as error:
        raise MigrateError(f"{file}: {error}: {_START_ONCE}") from error
    except (MigrationError, sa.exc.DBAPIError) as error:
        raise unusable(file, error) from error
    except (ValueError, TypeError) as error:
        raise MigrateError(f"{file} holds a row that cannot be read: {error}") from error


def _look_at_trail(file: Path, expected: TrailMark | None) -> int:
    """Return the number of events."""
    if not is_there(file):
        raise MigrateError(f"{file} is missing: put it back, or {_START_ONCE}")
    try:
        check_trail(file, expected)
        with translated(file), untouched(file) as connection:
            if not is_movable(connection, file):
                raise MigrateError(f"{file} is of an earlier version: {_START_ONCE}")
            return count_events(connection)
    except NeedsRecovery as error:
        raise MigrateError(f"{file}: {error}: {_START_ONCE}") from error


@contextmanager
def _held(file: Path) -> Iterator[sa.Connection]:
    """Keep others from writing to a file of SQLite, such as `hawse audit`, which records its reads."""
    options = {"isolation_level": None, "timeout": BUSY_TIMEOUT_S}
    engine = sa.create_engine(url(file, "rw"), poolclass=NullPool, connect_args=options)
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection
            connection.exec_driver_sql("ROLLBACK")
    except sa.exc.DBAPIError as error:
        raise StoreUnavailableError(f"cannot read {file}: {explained(file, error.orig)}") from error


def _is_empty(target: sa.Connection) -> bool:
    return is_empty(target) and CopiedTrail(target).is_empty()


def _not_empty(data: DataDir) -> MigrateError:
    return MigrateError(f"the database is not empty, and holds no copy of {data.path}: name an empty one")


def _different(here: _Sums, there: _Sums) -> MigrateError:
    sums = [{**rows, **attrs.asdict(events), "secrets": digest} for rows, events, digest in (here, there)]
    names = [name for name in sums[0] if sums[0][name] != sums[1][name]]
    return MigrateError(
        f"the copy in PostgreSQL differs from the data folder in {', '.join(names)}, so nothing was changed: "
        "report this as a bug"
    )
