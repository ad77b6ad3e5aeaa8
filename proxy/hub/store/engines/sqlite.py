"""A store in a file of SQLite, or in memory. A transaction that writes begins with BEGIN IMMEDIATE."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import attrs
import sqlalchemy as sa

from audit.sqlite import explained, is_damaged
from proxy.hub.store.engines.errors import LACKS_ROW, StoreUnavailableError
from proxy.hub.store.migrations import MigrationError, MigrationNeededError, migrate

BUSY_TIMEOUT_MS = 5000
# The execution option of a transaction that only reads.
_READS = "hawse-reads"


@attrs.frozen
class SqliteEngine:
    """One connection to a database of SQLite."""

    _engine: sa.Engine

    @classmethod
    def open(cls, path: Path, *, shared: bool) -> Self:
        """Open a file, making or migrating it; raises StoreUnavailableError.

        `shared`: another process uses it, so it is not migrated.
        """
        # Made here with mode 0600 from the first byte. SQLite gives its -wal and -shm files the same mode. An
        # existing file is not even opened: closing it would release the locks that another engine of this
        # process has on it, and the next process that leaves the database would delete its -wal.
        try:
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise StoreUnavailableError(f"cannot open {path}: {explained(path, error)}") from error
        engine = _engine(sa.URL.create("sqlite", database=str(path)))
        try:
            with engine.begin() as connection:
                migrate(connection, shared=shared)
        except (MigrationNeededError, MigrationError, sa.exc.DBAPIError) as error:
            engine.dispose()
            raise unusable(path, error) from error
        return cls(engine)

    @classmethod
    def in_memory(cls) -> Self:
        """Make an empty database without tables."""
        return cls(_engine(sa.URL.create("sqlite", database=":memory:")))

    def reader(self) -> Self:
        """Return an engine with a connection of its own to the same file."""
        return type(self)(_engine(self._engine.url))

    def close(self) -> None:
        """Close the database; SQLite then merges the WAL."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Open a transaction that sees one state, and waits for no writer."""
        with _translated(), self._engine.connect() as connection:
            connection.execution_options(**{_READS: True})
            with connection.begin():
                yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Open a transaction that holds the writers' lock from its first moment."""
        with _translated(), self._engine.begin() as connection:
            yield connection

    def clock_error_s(self) -> float:
        """Return 0: a file has no clock of its own."""
        return 0.0

    def copy_in_memory(self) -> Self:
        """Copy the database into memory; raises StoreUnavailableError if it cannot be read."""
        copy = self.in_memory()
        try:
            with (
                _translated(),
                self._engine.connect() as here,
                copy._engine.connect() as there,  # noqa: SLF001 - of this very class
            ):
                source, target = here.connection.driver_connection, there.connection.driver_connection
                assert isinstance(source, sqlite3.Connection)
                assert isinstance(target, sqlite3.Connection)
                source.backup(target)
        except StoreUnavailableError:
            copy.close()
            raise
        return copy


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


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sa.exc.NoResultFound as error:
        raise StoreUnavailableError(LACKS_ROW) from error
    except sa.exc.DBAPIError as error:
        # Only the driver's message: the statement's parameters may contain hashes.
        raise StoreUnavailableError(f"the store failed: {error.orig}") from error
    except sqlite3.Error as error:
        raise StoreUnavailableError(f"the store failed: {error}") from error


def _engine(url: sa.URL) -> sa.Engine:
    engine = sa.create_engine(
        url,
        poolclass=sa.StaticPool,
        # One caller at a time, on varying threads.
        connect_args={"check_same_thread": False, "isolation_level": None},
    )
    sa.event.listen(engine, "connect", _configure)
    sa.event.listen(engine, "begin", _begin)
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


def _begin(connection: sa.Connection) -> None:
    reads = connection.get_execution_options().get(_READS, False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
