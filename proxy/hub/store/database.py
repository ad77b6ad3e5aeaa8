"""One hub's database: transactions, and the lookup of rows.

Synchronous, and for one caller at a time: `directory` runs it on a thread.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from typing import TYPE_CHECKING, Self

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from proxy.hub.store.engines.engine import Engine, Location, open_engine
from proxy.hub.store.engines.errors import ConflictError
from proxy.hub.store.engines.open_requests import RESTORED, ROLLED_BACK, cancel_open_requests
from proxy.hub.store.entities import AgentState
from proxy.hub.store.migrations import tables as t
from proxy.hub.store.names import not_found
from proxy.hub.store.versions.version import Version, begin_change, begin_history, read_is_kept, read_version

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql


class Database:
    """The database below a store. `clock` returns epoch seconds."""

    def __init__(
        self, location: Location, *, org: str, clock: Callable[[], float], shared: bool = False
    ) -> None:
        """Open the database, making or migrating it; raises StoreUnavailableError.

        `shared`: another process uses it. A file of SQLite is then not migrated.
        """
        self._org = org
        self._clock = clock
        self._engine: Engine = open_engine(location, shared=shared)

    def close(self) -> None:
        """Close the database."""
        self._engine.close()

    def copy_in_memory(self) -> Self:
        """Copy the database into memory; raises StoreUnavailableError if it cannot be read.

        Both share the caches of values derived from rows: compiled policies, and a snapshot's entities.
        """
        twin = copy(self)
        twin._engine = self._engine.copy_in_memory()  # noqa: SLF001 - of this very class
        return twin

    def reader(self) -> Self:
        """Return this database with a connection of its own, for another thread; nothing is changed by it."""
        twin = copy(self)
        twin._engine = self._engine.reader()  # noqa: SLF001 - of this very class
        return twin

    def version(self) -> Version:
        """Read the version of the directory, which every change replaces; raises StoreUnavailableError."""
        with self._read() as connection:
            return read_version(connection)

    def keeps(self, applied: Version) -> bool:
        """Whether the database still has what it had at this version; raises StoreUnavailableError."""
        with self._read() as connection:
            return read_is_kept(connection, applied)

    def accept_loss(self, applied: Version) -> None:
        """Accept that the database no longer has this version: a history begins above it.

        The database may have lost that a grant was used, so open requests for approval are cancelled.
        """
        with self._engine.write() as connection:
            begin_history(connection, applied.number)
            cancel_open_requests(connection, ROLLED_BACK)

    def cancel_restored_requests(self) -> None:
        """Cancel the open requests for approval of a backup, whose grants may have been used since."""
        with self._engine.write() as connection:
            cancel_open_requests(connection, RESTORED)

    def clock_error_s(self) -> float:
        """By how much this machine's clock is ahead of the database's; raises StoreUnavailableError."""
        return self._engine.clock_error_s()

    def _read(self) -> AbstractContextManager[sa.Connection]:
        """Open a transaction that only reads."""
        return self._engine.read()

    @contextmanager
    def _change(self) -> Iterator[sa.Connection]:
        """Open a transaction that changes rows of the snapshot, alone among all hubs."""
        with self._engine.write() as connection:
            begin_change(connection)
            yield connection

    def _note(self) -> AbstractContextManager[sa.Connection]:
        """Open a transaction that writes rows which no snapshot has, beside those of other hubs."""
        return self._engine.write()


def insert_into(connection: sa.Connection, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    """Return an INSERT that may have an ON CONFLICT clause."""
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table)
    # 27 modules and 2 MB, which a hub on SQLite need not load.
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table)


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


def among(column: sa.Column[str], ids: Collection[str] | None) -> sa.ColumnElement[bool]:
    """Return the condition that the column is one of these ids, or none with None."""
    return sa.true() if ids is None else column.in_(ids)


def find(connection: sa.Connection, table: sa.Table, kind: str, name: str) -> sa.Row[tuple[object, ...]]:
    """Return the row of that name; raises NotFoundError."""
    row = None
    # PostgreSQL takes no text with a zero byte, not even to compare it.
    if "\0" not in name:
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
