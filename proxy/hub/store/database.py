"""One hub's database: opening, transactions, and the lookup of rows.

Synchronous, and for one caller at a time: `directory` runs it on a thread. A transaction begins with BEGIN
IMMEDIATE, so its checks still hold when it writes.
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Self

import sqlalchemy as sa

from audit.sqlite import explained, is_damaged
from proxy.hub.store.entities import AgentState
from proxy.hub.store.errors import ConflictError, StoreUnavailableError
from proxy.hub.store.migrations import MigrationError, MigrationNeededError, migrate
from proxy.hub.store.migrations import tables as t
from proxy.hub.store.names import not_found

BUSY_TIMEOUT_MS = 5000


class Database:
    """The database below a store. `clock` returns epoch seconds."""

    def __init__(self, path: Path, *, org: str, clock: Callable[[], float], shared: bool = False) -> None:
        """Open the database, making or migrating it; raises StoreUnavailableError.

        `shared`: another process uses it, so it is not migrated.
        """
        self._org = org
        self._clock = clock
        # Made here with mode 0600 from the first byte. SQLite gives its -wal and -shm files the same mode.
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise StoreUnavailableError(f"cannot open {path}: {explained(path, error)}") from error
        self._engine = _engine(sa.URL.create("sqlite", database=str(path)))
        try:
            with self._engine.begin() as connection:
                migrate(connection, shared=shared)
        except (MigrationNeededError, MigrationError, sa.exc.DBAPIError) as error:
            self.close()
            raise unusable(path, error) from error

    def close(self) -> None:
        """Close the database; SQLite then merges the WAL."""
        self._engine.dispose()

    def copy_in_memory(self) -> Self:
        """Copy the database into memory; raises StoreUnavailableError if it cannot be read.

        Both share the caches of values derived from rows: compiled policies, and a snapshot's entities.
        """
        engine = _engine(sa.URL.create("sqlite", database=":memory:"))
        try:
            with self._engine.connect() as here, engine.connect() as there:
                source, target = here.connection.driver_connection, there.connection.driver_connection
                assert isinstance(source, sqlite3.Connection)
                assert isinstance(target, sqlite3.Connection)
                source.backup(target)
        except (sa.exc.DBAPIError, sqlite3.Error) as error:
            engine.dispose()
            raise StoreUnavailableError(f"the store failed: {error}") from error
        twin = copy(self)
        twin._engine = engine  # noqa: SLF001 - of this very class
        return twin

    def data_version(self) -> int:
        """Return a number that differs after a change by another process; raises StoreUnavailableError."""
        try:
            with self._engine.connect() as connection:
                # Directly from the driver: a transaction would take the writers' lock.
                driver = connection.connection.driver_connection
                assert driver is not None
                return int(driver.execute("PRAGMA data_version").fetchone()[0])
        except (sa.exc.DBAPIError, sqlite3.Error) as error:
            raise StoreUnavailableError(f"the store failed: {error}") from error

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except (sa.exc.OperationalError, sa.exc.DatabaseError) as error:
            # Only the driver's message: the statement's parameters may contain hashes.
            raise StoreUnavailableError(f"the store failed: {error.orig}") from error


def unusable(
    path: Path, error: MigrationNeededError | MigrationError | sa.exc.DBAPIError
) -> StoreUnavailableError:
    """Return the error for a database that cannot be opened, with the next step."""
    match error:
        case MigrationNeededError():
            return StoreUnavailableError(
                f"this version would migrate {path}, which the running hub still uses: "
                "stop that hub, then start this one"
            )
        case MigrationError():
            return StoreUnavailableError(
                f"cannot use {path}: {error}; run the version that wrote it, or restore a backup"
            )
        case _ if is_damaged(error.orig):
            return StoreUnavailableError(f"{path} is damaged: {error.orig}; restore a backup")
    return StoreUnavailableError(f"cannot use {path}: {explained(path, error.orig)}")


def _engine(url: sa.URL) -> sa.Engine:
    engine = sa.create_engine(
        url,
        poolclass=sa.StaticPool,
        # One caller at a time, on varying threads.
        connect_args={"check_same_thread": False, "isolation_level": None},
    )
    sa.event.listen(engine, "connect", _configure)
    sa.event.listen(engine, "begin", _begin_immediate)
    return engine


def _configure(driver_connection: object, _: object) -> None:
    assert hasattr(driver_connection, "cursor")
    cursor = driver_connection.cursor()
    for pragma in (
        f"busy_timeout = {BUSY_TIMEOUT_MS}",
        "journal_mode = WAL",
        # A locked agent must still be locked after a power failure.
        "synchronous = FULL",
        "foreign_keys = ON",
        "trusted_schema = OFF",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def new_id() -> str:
    """Make the id of a new row."""
    return str(uuid.uuid4())


def select_as_text(table: sa.Table, column: str) -> sa.Select[tuple[object, ...]]:
    """Select a table, with a JSON column as its raw text, so that invalid JSON affects only its own row.

    If SQLAlchemy decoded the column, one invalid row would fail the whole query. The cast is needed because
    SQLite stores text that looks like a number as a number.
    """
    columns = (sa.cast(c, sa.Text).label(c.name) if c.name == column else c for c in table.c)
    return sa.select(*columns)


def find(connection: sa.Connection, table: sa.Table, kind: str, name: str) -> sa.Row[tuple[object, ...]]:
    """Return the row of that name; raises NotFoundError."""
    row = connection.execute(sa.select(table).where(table.c.name == name)).first()
    if row is None:
        raise not_found(kind, name, connection.scalars(sa.select(table.c.name)))
    return row


def find_agent(connection: sa.Connection, name: str) -> sa.Row[tuple[object, ...]]:
    """Return the row of an agent that is not retired; raises NotFoundError, ConflictError."""
    row = find(connection, t.agents, "agent", name)
    if row.state == AgentState.RETIRED:
        raise ConflictError(f"agent {name} is retired: add a new agent under another name")
    return row


def refuse_taken(
    connection: sa.Connection, table: sa.Table, kind: str, name: str, *, next_step: str = ""
) -> None:
    """Raise ConflictError when a row of that name exists."""
    if connection.execute(sa.select(table.c.id).where(table.c.name == name)).first() is not None:
        raise ConflictError(f"{kind} {name} exists already{next_step}")
