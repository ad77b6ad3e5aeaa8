"""One hub's database: how it is opened, what one transaction is, and how a row is found or refused.

Synchronous, and for one caller at a time: `directory` runs it on a thread. A transaction is opened by BEGIN
IMMEDIATE, so that what it checked still holds when it writes.
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
from proxy.hub.store import tables as t
from proxy.hub.store.entities import AgentState
from proxy.hub.store.errors import ConflictError, StoreUnavailableError
from proxy.hub.store.migrations import MigrationError, MigrationNeededError, migrate
from proxy.hub.store.names import not_found

BUSY_TIMEOUT_MS = 5000


class Database:
    """What a store stands on. `clock` gives epoch seconds."""

    def __init__(self, path: Path, *, org: str, clock: Callable[[], float], shared: bool = False) -> None:
        """Open the database, making or migrating it; raises StoreUnavailableError.

        `shared` with another process that runs on it, it is not migrated.
        """
        self._org = org
        self._clock = clock
        # Made here, so that it is its owner's alone from the first byte; SQLite gives its -wal and -shm
        # files the same mode.
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
        """Close the database; the WAL is folded in."""
        self._engine.dispose()

    def copy_in_memory(self) -> Self:
        """Copy the database into memory; raises StoreUnavailableError if it cannot be read.

        Both share what is derived from rows: compiled policies, and what a snapshot caches.
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
        """A number that is another one after each change by another process; raises StoreUnavailableError."""
        try:
            with self._engine.connect() as connection:
                # Of the driver itself: a transaction would take the lock that writers wait for.
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
            # The driver's words, without the statement and its parameters, which may hold hashes.
            raise StoreUnavailableError(f"the store failed: {error.orig}") from error


def unusable(
    path: Path, error: MigrationNeededError | MigrationError | sa.exc.DBAPIError
) -> StoreUnavailableError:
    """Say why a database cannot be opened, and the next step."""
    match error:
        case MigrationNeededError():
            return StoreUnavailableError(
                f"this version would change the form of {path}, which the hub that runs still uses: "
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
        # One caller at a time, but not always on the same thread.
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
        # An agent that was locked must be locked after a power cut too.
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
    """All of a table, a column of JSON as the text that stands there: a damaged one costs its own row alone.

    Decoded by SQLAlchemy it would end the reading of all of them. By a cast, since what looks like a number
    is stored as one.
    """
    columns = (sa.cast(c, sa.Text).label(c.name) if c.name == column else c for c in table.c)
    return sa.select(*columns)


def find(connection: sa.Connection, table: sa.Table, kind: str, name: str) -> sa.Row[tuple[object, ...]]:
    """The row of that name; raises NotFoundError."""
    row = connection.execute(sa.select(table).where(table.c.name == name)).first()
    if row is None:
        raise not_found(kind, name, connection.scalars(sa.select(table.c.name)))
    return row


def find_agent(connection: sa.Connection, name: str) -> sa.Row[tuple[object, ...]]:
    """The row of an agent that is not retired; raises NotFoundError, ConflictError."""
    row = find(connection, t.agents, "agent", name)
    if row.state == AgentState.RETIRED:
        raise ConflictError(f"agent {name} is retired: add a new agent under another name")
    return row


def refuse_taken(
    connection: sa.Connection, table: sa.Table, kind: str, name: str, *, next_step: str = ""
) -> None:
    """Raise ConflictError when there is a row of that name."""
    if connection.execute(sa.select(table.c.id).where(table.c.name == name)).first() is not None:
        raise ConflictError(f"{kind} {name} exists already{next_step}")
