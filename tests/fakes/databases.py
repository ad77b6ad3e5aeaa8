"""Databases for the tests of the store: a file of SQLite, or a database of a real PostgreSQL."""

from __future__ import annotations

import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import attrs
import sqlalchemy as sa

from proxy.hub.store.engines.engine import Location
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.migrations import postgres_tables as p
from proxy.hub.store.migrations import tables as t
from proxy.hub.store.store import Store
from proxy.hub.store.versions.version import Version


def run(location: Location, *statements: str) -> list[tuple[object, ...]]:
    """Change a database behind the store's back, and return the rows of the last statement."""
    rows: list[tuple[object, ...]] = []
    if isinstance(location, Path):
        with closing(sqlite3.connect(location)) as raw, raw:
            for statement in statements:
                rows = raw.execute(statement).fetchall()
        return rows
    import psycopg

    with psycopg.connect(location.url) as connection:
        for statement in statements:
            cursor = connection.execute(statement)
            rows = cursor.fetchall() if cursor.description else []
    return rows


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow, so that SQLite meets what it does on a full disk; reads go on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def lose(location: Location, *, back_to: Version) -> None:
    """Bring a directory back to an earlier version, as a failover to a standby that was behind does."""
    run(
        location,
        f"delete from versions where version > {back_to.number}",
        f"update directory set version = {back_to.number}, nonce = '{back_to.nonce}'",
    )


@attrs.define(eq=False)
class StoreInPostgres:
    """The tables of a store in one database, which are emptied for each test.

    That takes 4 ms; a database of its own for each test takes 130.
    """

    address: PostgresAddress
    _first: dict[sa.Table, list[dict[str, object]]] = attrs.Factory(dict)
    _engine: sa.Engine = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        Store(self.address, org="main", clock=float).close()
        url = sa.make_url(self.address.url).set(drivername="postgresql+psycopg")
        self._engine = sa.create_engine(url, use_native_hstore=False)
        with self._engine.begin() as connection:
            for table in (t.directory, t.versions, t.policy_bundles):
                rows = connection.execute(sa.select(table)).mappings()
                self._first[table] = [dict(row) for row in rows]

    def empty(self) -> None:
        """Bring all tables to the state of a new database."""
        with self._engine.begin() as connection:
            # Without triggers, which would write rows.
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
            for table in (*p.only_in_postgres.sorted_tables, *reversed(t.metadata.sorted_tables)):
                connection.execute(sa.delete(table))
            for table, rows in self._first.items():
                connection.execute(sa.insert(table), rows)

    def close(self) -> None:
        self._engine.dispose()
