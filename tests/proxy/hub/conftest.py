"""The hub's database on both engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.hub.store.engines.engine import Location
from proxy.hub.store.engines.postgres_address import PostgresAddress
from tests.fakes.databases import StoreInPostgres
from tests.postgres import PostgresServer


@pytest.fixture(scope="session")
def tables_in_postgres(postgres: PostgresServer) -> Iterator[StoreInPostgres]:
    """The tables of a store, in a database of this test process."""
    with postgres.new_database() as name:
        tables = StoreInPostgres(PostgresAddress(postgres.url(name)))
        yield tables
        tables.close()


@pytest.fixture
def in_postgres(tables_in_postgres: StoreInPostgres) -> PostgresAddress:
    """An empty store in PostgreSQL."""
    tables_in_postgres.empty()
    return tables_in_postgres.address


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """Where a store is, on each engine in turn; it is new, or empty."""
    if request.param == "sqlite":
        return tmp_path / "hub.db"
    address: PostgresAddress = request.getfixturevalue("in_postgres")
    return address
