"""The two engines of a store: a file of SQLite, or a database of PostgreSQL."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeAlias

import sqlalchemy as sa

from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.engines.sqlite import SqliteEngine

Location: TypeAlias = Path | PostgresAddress
"""Where a store is: its SQLite file, or its database of PostgreSQL."""


class Engine(Protocol):
    """Connections to one database, for one caller at a time, on varying threads.

    All methods raise StoreUnavailableError, as do the blocks.
    """

    def read(self) -> AbstractContextManager[sa.Connection]:
        """Open a transaction that sees one state and writes nothing."""
        ...

    def write(self) -> AbstractContextManager[sa.Connection]:
        """Open a transaction that is committed at the end of the block, or undone when that raises."""
        ...

    def reader(self) -> Engine:
        """Return an engine with a connection of its own, which is opened when it is used."""
        ...

    def copy_in_memory(self) -> SqliteEngine:
        """Copy the database into memory."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


def open_engine(location: Location, *, shared: bool) -> Engine:
    """Open a database, making or migrating its tables; raises StoreUnavailableError.

    `shared`: another process uses it. A file is then not migrated.
    """
    if isinstance(location, Path):
        return SqliteEngine.open(location, shared=shared)
    # Its driver is an extra, which a hub on SQLite need not have.
    from proxy.hub.store.engines.postgres import PostgresEngine

    return PostgresEngine.open(location)
