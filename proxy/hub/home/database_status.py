"""Reads the status of a database of either engine, for `hawse admin database status`. Changes nothing."""

from __future__ import annotations

from pathlib import Path

import attrs
import sqlalchemy as sa

from audit.file import NeedsRecovery, untouched
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.engines.sqlite import unusable
from proxy.hub.store.migrations import HEAD, MigrationError, is_older, read_revision
from proxy.hub.store.migrations import tables as t
from proxy.hub.store.versions.version import Version, read_is_kept, read_version


@attrs.frozen
class Status:
    """The status of a database. None: a file of SQLite, or older tables, do not have the value."""

    engine: str
    tables: str
    """`current`, `older`, `newer` (this version can use them), `too new`, or `missing`."""
    revision: str | None
    wanted: str
    """The revision that this version makes."""
    size_bytes: int
    """With the trail, where that is in the same database."""
    oldest: str | None = None
    """The oldest revision whose software may use the tables."""
    version: int | None = None
    """The version of the directory."""
    applied: int | None = None
    """The last version that this hub has applied, except those after a loss."""
    lost: bool | None = None
    """Whether the directory no longer has that version."""
    agents: int | None = None
    clusters: int | None = None
    server: str | None = None
    role: str | None = None
    owner: str | None = None
    """The owner of the tables."""
    deletes_events: str | None = None
    """Why the role can delete events, as a predicate; None if it can't."""
    synchronous_commit: str | None = None
    synchronous_standby_names: str | None = None
    clock_error_s: float | None = None
    """By how much this machine's clock is ahead of the server's."""
    events: int | None = None
    """Estimated by the server."""
    trail_bytes: int | None = None
    open_epochs: int | None = None
    """Hub processes that run, or have ended since the last start of a hub, which closes their epochs."""


def read_sqlite_status(file: Path) -> Status:
    """Read the status of a file, which a hub may have open; raises StoreUnavailableError."""
    try:
        size = file.stat().st_size
        with untouched(file) as connection:
            return _directory_status(connection, Status("SQLite", "missing", None, HEAD, size), None)
    except NeedsRecovery as error:
        raise StoreUnavailableError(f"cannot read {file}: {error}") from error
    except OSError as error:
        raise StoreUnavailableError(f"cannot read {file}: {error.strerror}: start the hub") from error
    except sa.exc.DBAPIError as error:
        raise unusable(file, error) from error


def read_postgres_status(address: PostgresAddress, applied: Version | None) -> Status:
    """Read the status of a database of PostgreSQL; raises StoreUnavailableError."""
    # Its driver is an extra.
    from audit.postgres.rights import why_deletable
    from proxy.hub.store.engines.postgres import new_engine, read_clock_error_s
    from proxy.hub.store.engines.postgres import unusable as unusable_in_postgres

    engine = new_engine(address)
    try:
        with unusable_in_postgres(), engine.begin() as connection:
            connection.execute(sa.text("SET TRANSACTION READ ONLY"))
            status = Status(
                "PostgreSQL", "missing", None, HEAD, clock_error_s=read_clock_error_s(connection),
                **connection.execute(sa.text(_SERVER)).mappings().one(),
            )  # fmt: skip
            if connection.scalar(sa.text("SELECT to_regclass('trail_epochs') IS NOT NULL")):
                role = str(status.role)
                status = attrs.evolve(
                    status,
                    deletes_events=why_deletable(connection, role),
                    **connection.execute(sa.text(_TRAIL)).mappings().one(),
                )
            return _directory_status(connection, status, applied)
    finally:
        engine.dispose()


_SERVER = """
SELECT current_setting('server_version') AS server, current_user::text AS role,
    pg_database_size(current_database()) AS size_bytes,
    current_setting('synchronous_commit') AS synchronous_commit,
    current_setting('synchronous_standby_names') AS synchronous_standby_names,
    (SELECT pg_get_userbyid(relowner)::text FROM pg_class WHERE oid = to_regclass('alembic_version')) AS owner
"""
_TRAIL = """
SELECT (SELECT count(*) FROM trail_epochs WHERE NOT closed AND epoch > 0) AS open_epochs,
    (SELECT nullif(reltuples, -1)::bigint FROM pg_class WHERE oid = to_regclass('trail_events')) AS events,
    (SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class
        WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' AND relname LIKE 'trail%')
        AS trail_bytes
"""


def _directory_status(connection: sa.Connection, status: Status, applied: Version | None) -> Status:
    """Add the status of the directory's tables; raises StoreUnavailableError."""
    revision = read_revision(connection)
    if revision is None:
        return status
    try:
        older = is_older(connection)
    except MigrationError:
        return attrs.evolve(status, tables="too new", revision=revision)
    if older:
        return attrs.evolve(status, tables="older", revision=revision)
    version = read_version(connection).number
    return attrs.evolve(
        status,
        tables="current" if revision == HEAD else "newer",
        revision=revision,
        oldest=connection.scalar(sa.select(t.directory.c.oldest)),
        version=version,
        applied=None if applied is None else applied.number,
        lost=None if applied is None else not read_is_kept(connection, applied),
        agents=connection.scalar(sa.select(sa.func.count()).select_from(t.agents)),
        clusters=connection.scalar(sa.select(sa.func.count()).select_from(t.clusters)),
    )
