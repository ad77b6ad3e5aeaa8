"""The databases of a data folder: where they are, and whether a start would replace one by an empty one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from proxy.hub.home.datadir import RESTORING, DataDir
from proxy.hub.home.files.private_files import DataDirError, is_there, read_private, write_private
from proxy.hub.store.engines.postgres_address import PostgresAddress, fault_of_driver
from proxy.hub.store.versions.version import Version
from proxy.process.untrusted_json import read_json

# SQLite's smallest page. A database has at least one page.
DATABASE_BYTES_MIN = 512
_MISSING = "missing"


@attrs.frozen
class Move:
    """When the databases of a folder were copied into PostgreSQL, and where to."""

    day: str
    address: PostgresAddress


def move_file(data: DataDir) -> Path:
    """Return the file that says that the folder was moved."""
    return data.path / "moved"


def note_address(data: DataDir, address: PostgresAddress) -> None:
    """Write where the directory is, for the commands that work on this folder."""
    write_private(data.address_file, json.dumps(_noted(address)).encode() + b"\n")


def note_move(data: DataDir, move: Move) -> None:
    """Write that the folder's own databases are no longer in use."""
    write_private(move_file(data), json.dumps({"day": move.day, **_noted(move.address)}).encode() + b"\n")


def _noted(address: PostgresAddress) -> dict[str, str | None]:
    file = address.password_file
    return {"url": address.url, "password_file": None if file is None else str(file.absolute())}


def noted_address(data: DataDir) -> PostgresAddress | None:
    """Return where the directory is in PostgreSQL; None where it is in SQLite. Raises DataDirError."""
    if not is_there(data.address_file):
        return None
    try:
        address = _address_in(read_json(read_private(data.address_file)))
    except (ValueError, KeyError, TypeError) as error:
        raise DataDirError(f"{data.address_file}: damaged; start the hub again") from error
    fault = fault_of_driver()
    if fault is not None:
        raise DataDirError(f"the database of PostgreSQL in {data.address_file} {fault}")
    return address


def noted_move(data: DataDir) -> Move | None:
    """Return when and where to the folder was moved; None if its own databases are in use.

    Raises DataDirError.
    """
    file = move_file(data)
    if not is_there(file):
        return None
    try:
        noted = read_json(read_private(file))
        return Move(str(noted["day"]), _address_in(noted))
    except (ValueError, KeyError, TypeError) as error:
        raise DataDirError(
            f"{file}: damaged; remove it to start on {data.store_file}, as it was before the move"
        ) from error


def _address_in(noted: Any) -> PostgresAddress:
    file = noted["password_file"]
    return PostgresAddress(str(noted["url"]), None if file is None else Path(file))


def note_applied(data: DataDir, version: Version) -> None:
    """Write the version of the directory that this hub has applied; raises DataDirError."""
    write_private(data.applied_file, json.dumps(attrs.asdict(version)).encode() + b"\n")


def noted_applied(data: DataDir) -> Version | None:
    """Return the version that a hub has applied, None before one has; raises DataDirError."""
    if not is_there(data.applied_file):
        return None
    try:
        noted = read_json(read_private(data.applied_file))
        return Version(int(noted["number"]), str(noted["nonce"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataDirError(
            f"{data.applied_file}: damaged, so changes that the database has lost would not be noticed; "
            "remove it if the database was neither restored nor failed over"
        ) from error


def check_directory(data: DataDir, *, new: bool) -> None:
    """Raise DataDirError if the directory in PostgreSQL is `new`, and this folder's hub has run on another.

    A directory of another hub does not open with this one's sealing key (proxy/hub/home/sealed_secrets.py).
    """
    if new and is_there(data.address_file) and is_there(data.admin.endpoint_file):
        # The hub has its secrets before it writes that file.
        raise DataDirError(
            "no hub has run on the database of database.url, though this one has run before: correct "
            "database.url, restore a backup of the database, "
            f"or remove {data.admin.endpoint_file} to begin with no team, agent or cluster"
        )


def check_databases(data: DataDir, *, in_postgres: bool = False) -> None:
    """Raise DataDirError for the first fault of the databases."""
    for fault in faults_of_databases(data, in_postgres=in_postgres):
        raise DataDirError(fault)


def faults_of_databases(data: DataDir, *, in_postgres: bool = False) -> Iterator[str]:
    """Yield a message for each missing or damaged database. A start would replace it by an empty one.

    `in_postgres`: the configuration names a database of PostgreSQL. A missing trail is not reported here:
    only the store knows whether one must exist.
    """
    moved = noted_move(data)
    if in_postgres and moved is None and is_there(data.store_file):
        yield (
            f"{data.store_file} has this hub's teams, agents and clusters, but database.url names another "
            "database: leave that out, and move them by `hawse admin migrate`, or move the file away to "
            "begin with none of them"
        )
    elif not in_postgres and moved is not None:
        yield (
            f"this hub was moved to PostgreSQL on {moved.day}: set database.url to "
            f"{json.dumps(moved.address.url)}; to go back to {data.store_file}, without what has changed "
            f"since, remove {move_file(data)} and {data.address_file}"
        )
    elif not in_postgres and is_there(data.address_file):
        yield (
            f"this hub's teams, agents and clusters are in PostgreSQL, as {data.address_file} says: set "
            "database.url, or remove that file and "
            f"{data.admin.endpoint_file} to begin with no team, agent or cluster"
        )
    elif not in_postgres:
        yield from _faults_of_store(data)
    fault = _fault_of_database(data.audit_file)
    if is_there(data.admin.endpoint_file) and fault not in {"", _MISSING}:
        yield (
            f"{data.audit_file} is {fault}, though this hub has run before: put a copy in its place, "
            "or remove it and begin a new trail by `hawse admin audit accept`"
        )


def _faults_of_store(data: DataDir) -> Iterator[str]:
    if not is_there(data.admin.endpoint_file):
        cut = next(data.path.glob(f"{RESTORING}*"), None)
        if cut is not None and not is_there(data.store_file):
            yield (
                f"a restore into {data.path} was cut short: restore a backup, "
                f"or remove {cut} to begin with no team, agent or cluster"
            )
        return
    fault = _fault_of_database(data.store_file)
    if fault:
        also = "" if fault == _MISSING else f"{data.store_file} and "
        yield (
            f"{data.store_file} is {fault}, though this hub has run before: restore a backup, "
            f"or remove {also}{data.admin.endpoint_file} to begin with no team, agent or cluster"
        )


def _fault_of_database(file: Path) -> str:
    """Return what is wrong with a file that is too small for a database; empty when it may be one.

    SQLite would treat some of these files as a new database.
    """
    if not is_there(file):
        return _MISSING
    size = file.stat().st_size
    if size >= DATABASE_BYTES_MIN:
        return ""
    return f"damaged ({size} bytes are no database)" if size else "empty"
