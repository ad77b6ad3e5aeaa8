"""New stores on SQLite without Alembic: what the revisions make of an empty file is made once a process.

Alembic loads and runs each revision for each new file, 60 to 120 ms of CPU, and some 1,500 tests make one.
Their stores get the same statements from a file that Alembic has made. test_migrations.py has no part in it.
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
from proxy.hub.store.versions.version import NONCE_BYTES

Upgrade = Callable[..., None]
by_revisions: Upgrade = migrations._upgrade


def upgrade(connection: sa.Connection, *, shared: bool) -> None:
    """Make the tables of an empty SQLite database; leave every other one to the revisions."""
    if shared or connection.dialect.name != "sqlite" or sa.inspect(connection).get_table_names():
        by_revisions(connection, shared=shared)
        return
    for statement in statements():
        connection.exec_driver_sql(statement)
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
