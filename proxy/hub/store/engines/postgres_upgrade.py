"""Brings a database of PostgreSQL to this version's tables, and gives a hub's role its rights on them.

One transaction, which the owner of the tables runs: all of it or nothing.
"""

from __future__ import annotations

import attrs
import sqlalchemy as sa
from psycopg import conninfo

from audit.postgres import schema
from audit.postgres.rights import grants_to, why_deletable
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.engines.postgres import RIGHTS, look, migrate_alone, new_engine, unusable
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.migrations import load, read_revision
from proxy.hub.store.migrations import postgres_tables as p
from proxy.hub.store.migrations import tables as t


@attrs.frozen
class Upgrade:
    """The revisions before and after; None before there were tables."""

    before: str | None
    after: str | None


def upgrade(address: PostgresAddress, grant_to: str | None) -> Upgrade:
    """Make or migrate all tables; raises StoreUnavailableError, and then nothing has changed.

    `grant_to`: the role of a hub, which gets the rights that it needs. It must not be able to delete events.
    """
    load()
    engine = new_engine(address)
    try:
        with unusable(), engine.begin() as connection:
            if grant_to is not None and _owner_of_tables(connection) == grant_to:
                # Before the owner's rights are checked, which may lack all on these tables.
                raise _could_delete(connection, grant_to, "owns the tables")
            look(connection)
            before = read_revision(connection)
            migrate_alone(connection)
            schema.create(connection)
            if grant_to is not None:
                _grant(connection, grant_to)
            return Upgrade(before, read_revision(connection))
    finally:
        engine.dispose()


def role_of(address: PostgresAddress) -> str:
    """Return the role by which an address logs in."""
    return address.role or str(conninfo.conninfo_to_dict(address.url)["user"])


def _owner_of_tables(connection: sa.Connection) -> str | None:
    """Return the role that has made the tables; None before there are any."""
    query = "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = to_regclass('alembic_version')"
    owner: str | None = connection.scalar(sa.text(query))
    return owner


def _grant(connection: sa.Connection, role: str) -> None:
    quote = connection.dialect.identifier_preparer.quote_identifier
    hub = quote(role)
    current = quote(str(connection.scalar(sa.text("SELECT current_schema()"))))
    statements = [f"GRANT USAGE ON SCHEMA {current} TO {hub}", f"GRANT SELECT ON alembic_version TO {hub}"]
    for table in (*t.metadata.sorted_tables, *p.only_in_postgres.sorted_tables):
        name = quote(table.name)
        statements += [f"REVOKE ALL ON {name} FROM {hub}", f"GRANT {', '.join(RIGHTS)} ON {name} TO {hub}"]
    for statement in (*statements, *grants_to(hub)):
        connection.execute(sa.text(statement))
    why = why_deletable(connection, role)
    if why is not None:
        raise _could_delete(connection, role, why)


def _could_delete(connection: sa.Connection, role: str, why: str) -> StoreUnavailableError:
    quote = connection.dialect.identifier_preparer.quote_identifier
    owner = str(connection.scalar(sa.text("SELECT current_user")))
    return StoreUnavailableError(
        f"the PostgreSQL role {role} could delete events, since it {why}: as a superuser in this database, "
        f"run REASSIGN OWNED BY {quote(role)} TO {quote(owner)}, or name another role in database.url"
    )
