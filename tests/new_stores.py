"""New stores on SQLite at a small part of their price, of which some 1,500 tests make one.

Alembic loads and runs each revision for each new file, 60 to 120 ms of CPU. The tests' stores get the same
statements from a file that Alembic has made, once a process. test_migrations.py has no part in it.

SQLAlchemy compiles each statement once for each engine, and a hub has one or two engines. Those of a
test process share what was compiled.
"""

from __future__ import annotations

import secrets
import sqlite3
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import sqlalchemy as sa

from proxy.hub.store import migrations
from proxy.hub.store.engines import sqlite
from proxy.hub.store.versions.version import NONCE_BYTES

Upgrade = Callable[..., None]
by_revisions: Upgrade = migrations._upgrade
engine_of_its_own: Callable[[sa.URL], sa.Engine] = sqlite._engine


def engine(url: sa.URL) -> sa.Engine:
    """Return an engine that shares its compiled statements, whose keys contain the dialect."""
    made, first = engine_of_its_own(url), _first_engine()
    made.dialect = made.pool._dialect = first.dialect
    made._compiled_cache = first._compiled_cache
    return made


@cache
def _first_engine() -> sa.Engine:
    made = engine_of_its_own(sa.URL.create("sqlite", database=":memory:"))
    # The first connection tells the dialect the version of SQLite.
    made.connect().close()
    made.dispose()
    return made


def upgrade(connection: sa.Connection, *, shared: bool) -> None:
    """Make the tables of an empty SQLite database; leave every other one to the revisions."""
    if shared or connection.dialect.name != "sqlite" or sa.inspect(connection).get_table_names():
        by_revisions(connection, shared=shared)
        return
    cursor = connection.connection.cursor()
    for statement in statements():
        cursor.execute(statement)
    cursor.close()
    # No two stores have one history.
    nonce = (secrets.token_hex(NONCE_BYTES),)
    connection.exec_driver_sql("UPDATE directory SET nonce = ?", nonce)
    connection.exec_driver_sql("UPDATE versions SET nonce = ?", nonce)


@cache
def statements() -> tuple[str, ...]:
    """The statements that make what the revisions make."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "new.db"
        engine = sa.create_engine(sa.URL.create("sqlite", database=str(file)))
        with engine.begin() as connection:
            by_revisions(connection, shared=False)
        engine.dispose()
        made = sqlite3.connect(file)
        try:
            return tuple(line for line in made.iterdump() if line not in ("BEGIN TRANSACTION;", "COMMIT;"))
        finally:
            made.close()
