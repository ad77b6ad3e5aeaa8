"""The hub's database on both engines."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.hub.store.engines.engine import Location
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.store import Store
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


@pytest.fixture(scope="session")
def empty_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store in a file. To make its tables takes 50 to 100 ms of CPU, to open a copy takes 2."""
    file = tmp_path_factory.mktemp("empty") / "hub.db"
    Store(file, org="main", clock=float).close()
    return file


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """Where an empty store is, on each engine in turn."""
    if request.param == "sqlite":
        return Path(shutil.copy(request.getfixturevalue("empty_file"), tmp_path / "hub.db"))
    address: PostgresAddress = request.getfixturevalue("in_postgres")
    return address
