from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from audit.postgres.store import PostgresStore
from audit.store import AuditStore
from tests.audit.trails import FileTrail, PostgresTrail, Trail
from tests.postgres import PostgresServer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.db"


@pytest.fixture
def store(path: Path) -> Iterator[AuditStore]:
    store = AuditStore(path)
    yield store
    store.close()


@pytest.fixture(scope="session")
def trail_in_postgres(postgres: PostgresServer) -> Iterator[PostgresTrail]:
    """A database with an empty trail, for all tests of this process: a new one for each takes 60 ms."""
    with postgres.new_database() as name:
        url = postgres.url(name)
        PostgresStore(lambda: url).close()
        with psycopg.connect(url, autocommit=True) as connection:
            yield PostgresTrail(url, connection)


@pytest.fixture
def postgres_trail(trail_in_postgres: PostgresTrail) -> PostgresTrail:
    """An empty trail in PostgreSQL."""
    trail_in_postgres.clear()
    return trail_in_postgres


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def trail(request: pytest.FixtureRequest, path: Path) -> Trail:
    """An empty trail in each of the engines."""
    if request.param == "SQLite":
        return FileTrail(path)
    found: PostgresTrail = request.getfixturevalue("postgres_trail")
    return found
