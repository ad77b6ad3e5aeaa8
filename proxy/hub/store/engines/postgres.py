"""A store in a database of PostgreSQL, through psycopg.

Transactions that write are READ COMMITTED: a change has locked the directory's row before it reads anything,
so it sees what all earlier ones have committed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import attrs
import psycopg
import sqlalchemy as sa

from audit.postgres.bounded import BoundedConnection
from audit.postgres.link import one_line
from audit.postgres.rights import missing_right
from proxy.hub.store.engines.errors import LACKS_ROW, InvalidError, StoreUnavailableError
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.engines.sqlite import SqliteEngine
from proxy.hub.store.migrations import MigrationError, OlderHubError, is_older, load_if_older, migrate
from proxy.hub.store.migrations import postgres_tables as p
from proxy.hub.store.migrations import tables as t

CONNECT_TIMEOUT_S = 2
# How long a change waits for that of another hub, as in SQLite.
LOCK_TIMEOUT_MS = 5000
# A hub that is stopped (SIGSTOP, a frozen machine) amid a transaction keeps its locks no longer than this.
# Below LOCK_TIMEOUT_MS, so that another hub gets them in time.
IDLE_TIMEOUT_MS = 4000
# How long an answer may take. Longer than LOCK_TIMEOUT_MS, so that the server reports a lock itself.
ANSWER_TIMEOUT_S = 6.0
# The same for the poll and its readings, which wait for no lock. With another connection attempt it still is
# well below database.stale_s.
READING_TIMEOUT_S = 2.0
# Only another migration and transactions of milliseconds lock the tables of a migration.
MIGRATION_LOCK_TIMEOUT_MS = 2000
# The key of the advisory lock that two migrations contend for: "hawse" in ASCII.
MIGRATION_LOCK = 0x6861777365
PASSWORD_BYTES_MAX = 1024
# NTP keeps clocks within milliseconds. A token lasts 60 s, and its times are this machine's.
CLOCK_ERROR_MAX_S = 30.0
wall_clock = time.time
RIGHTS = "SELECT", "INSERT", "UPDATE", "DELETE"
# How the server refuses a connection above a limit: of the server, a role or a database.
_TOO_MANY = "too many clients", "too many connections", "remaining connection slots"


class StoreConnection(BoundedConnection):
    """A connection of the store.

    The thread that waits is the only one that makes changes, and the hub cannot end before it does.
    """

    answer_s = ANSWER_TIMEOUT_S


class ReadingConnection(BoundedConnection):
    """A connection of the poll."""

    answer_s = READING_TIMEOUT_S


@attrs.frozen
class PostgresEngine:
    """At most one connection to a database, which is opened again after it was lost."""

    _address: PostgresAddress
    _engine: sa.Engine
    _reads: sa.Engine

    @classmethod
    def open(cls, address: PostgresAddress) -> Self:
        """Connect, and make or migrate the tables; raises StoreUnavailableError."""
        engine = new_engine(address)
        reads = _reads_of(engine)
        try:
            with unusable():
                load_if_older(reads)
                with reads.begin() as connection:
                    older = look(connection)
                if older:
                    with engine.begin() as connection:
                        migrate_alone(connection)
                with reads.begin() as connection:
                    _refuse_without_rights(connection)
        except StoreUnavailableError:
            engine.dispose()
            raise
        return cls(address, engine, reads)

    def reader(self) -> Self:
        """Return an engine with a connection of its own, for the poll."""
        engine = new_engine(self._address, ReadingConnection)
        return type(self)(self._address, engine, _reads_of(engine))

    def close(self) -> None:
        """Close the connection."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Open a transaction that sees one state and locks nothing."""
        with _translated(), self._reads.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Open a transaction that writes."""
        with _translated(), self._engine.begin() as connection:
            yield connection

    def clock_error_s(self) -> float:
        """Return by how much this machine's clock is ahead of the server's, as far as that is certain."""
        with self.read() as connection:
            return read_clock_error_s(connection)

    def copy_in_memory(self) -> SqliteEngine:
        """Copy the database into one of SQLite in memory.

        Raises StoreUnavailableError when the database is away: the copy is for a database that cannot be
        written, since its disk is full.
        """
        copy = SqliteEngine.in_memory()
        try:
            with self.read() as source, copy.write() as target:
                t.metadata.create_all(target)
                # It has no triggers. Without the latest versions, each reading of it is a full one.
                for table in t.metadata.sorted_tables:
                    # No revocation of the directory needs requests, which may hold 256 KiB each.
                    if table in (t.versions, t.touched, t.requests, t.outbox):
                        continue
                    rows = [dict(row) for row in source.execute(sa.select(table)).mappings()]
                    if rows:
                        target.execute(sa.insert(table), rows)
        except StoreUnavailableError:
            copy.close()
            raise
        return copy


@contextmanager
def look_at(address: PostgresAddress) -> Iterator[sa.Connection | None]:
    """Connect for a check that changes nothing; yields None where tables have to be made or migrated.

    Raises StoreUnavailableError.
    """
    engine = new_engine(address)
    try:
        with unusable():
            load_if_older(engine)
            with engine.begin() as connection:
                connection.execute(sa.text("SET TRANSACTION READ ONLY"))
                if look(connection):
                    yield None
                else:
                    _refuse_without_rights(connection)
                    yield connection
    finally:
        engine.dispose()


def _reads_of(engine: sa.Engine) -> sa.Engine:
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def new_engine(address: PostgresAddress, kind: type[BoundedConnection] = StoreConnection) -> sa.Engine:
    """Return an engine that connects when it is used, with connections of a kind."""
    engine = sa.create_engine(
        "postgresql+psycopg://",
        pool_size=1,
        max_overflow=0,
        # A round trip more. Without it, the first transaction after a restart of the server would fail.
        pool_pre_ping=True,
        # Statements may hold hashes.
        hide_parameters=True,
        use_native_hstore=False,
    )

    def connect(_: object, __: object, ___: object, options: dict[str, Any]) -> BoundedConnection:
        # Prepared statements do not pass every pooler, and a hub changes little.
        options.update(client_encoding="utf8", prepare_threshold=None)
        return kind.connect(conninfo_of(address), **options)

    sa.event.listen(engine, "do_connect", connect)
    sa.event.listen(engine, "connect", _configure)
    return engine


def conninfo_of(address: PostgresAddress) -> str:
    """Return libpq's connection string, with the password of this moment. Raises StoreUnavailableError."""
    stated = psycopg.conninfo.conninfo_to_dict(address.url)
    options: dict[str, str | int] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "application_name": "hawse-hub",
        "target_session_attrs": "read-write",
        # A connection that only listens notices within a minute that its server is gone.
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        # libpq would prefer GSSAPI's encryption to TLS, and `sslmode` does not apply to it.
        "gssencmode": "disable",
    }
    added = {name: value for name, value in options.items() if name not in stated}
    if address.role is not None:
        added["user"] = address.role
    if address.password_file is not None:
        added["password"] = _password(address)
    return psycopg.conninfo.make_conninfo(address.url, **added)


def _configure(connection: psycopg.Connection[object], _: object) -> None:
    connection.execute(f"SET lock_timeout = {LOCK_TIMEOUT_MS:d}")
    connection.execute(f"SET idle_in_transaction_session_timeout = {IDLE_TIMEOUT_MS:d}")
    # A locked agent must still be locked after a power failure.
    connection.execute(
        "SELECT set_config('synchronous_commit', 'on', false) "
        "WHERE current_setting('synchronous_commit') = 'off'"
    )
    connection.commit()


def migrate_alone(connection: sa.Connection) -> None:
    """Migrate in the connection's transaction, while no other process does; raises MigrationError."""
    connection.execute(sa.text(f"SET LOCAL lock_timeout = {MIGRATION_LOCK_TIMEOUT_MS:d}"))
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
    migrate(connection)


def _password(address: PostgresAddress) -> str:
    """Read the password at each connection, so that it can be changed in the file."""
    file = address.password_file
    assert file is not None
    try:
        with file.open("rb") as opened:
            found = opened.read(PASSWORD_BYTES_MAX + 1).decode().strip("\r\n")
    except OSError as error:
        raise StoreUnavailableError(
            f"database.password_file {file} cannot be read: {error.strerror}"
        ) from error
    except UnicodeDecodeError:
        found = ""  # not chained: the cause would quote the secret
    if not found or not found.isprintable() or len(found) > PASSWORD_BYTES_MAX:
        raise StoreUnavailableError(f"database.password_file {file} does not hold a password in one line")
    return found


def look(connection: sa.Connection) -> bool:
    """Return whether tables have to be made or migrated; raises StoreUnavailableError for an unusable one."""
    _refuse_encoding(connection)
    _refuse_clock(connection)
    older = is_older(connection)
    if older:
        _refuse_without_ownership(connection)
    return older


def _refuse_encoding(connection: sa.Connection) -> None:
    encoding = connection.scalar(sa.text("SHOW server_encoding"))
    if encoding != "UTF8":
        raise StoreUnavailableError(
            f"the PostgreSQL database has the encoding {encoding}: "
            "create one with ENCODING 'UTF8' TEMPLATE template0, and name it in database.url"
        )


def _refuse_clock(connection: sa.Connection) -> None:
    error_s = read_clock_error_s(connection)
    if abs(error_s) > CLOCK_ERROR_MAX_S:
        raise StoreUnavailableError(f"{clock_warning(error_s)}: set the wrong one by NTP")


def clock_warning(error_s: float) -> str:
    """Word by how much this machine's clock is ahead of the database's."""
    where = "ahead of" if error_s > 0 else "behind"
    return f"the clock of this machine is {abs(error_s):.0f} s {where} that of the PostgreSQL database"


def read_clock_error_s(connection: sa.Connection) -> float:
    """Return by how much this machine's clock is ahead of the server's."""
    sent_s = wall_clock()
    server_s = connection.scalar(sa.text("SELECT extract(epoch FROM clock_timestamp())"))
    return clock_error_s(sent_s, float(server_s), wall_clock())


def clock_error_s(sent_s: float, server_s: float, received_s: float) -> float:
    """Return the least error of the clock by which a query for the server's time was sent and answered."""
    return max(sent_s - server_s, 0.0) + min(received_s - server_s, 0.0)


def _refuse_without_ownership(connection: sa.Connection) -> None:
    """Raise StoreUnavailableError if the role may not make the tables, or does not own older ones."""
    query = (
        "SELECT coalesce(pg_has_role(relowner, 'USAGE'), has_schema_privilege(current_schema(), 'CREATE')) "
        "FROM (VALUES (to_regclass('alembic_version'))) AS made (oid) LEFT JOIN pg_class USING (oid)"
    )
    if not connection.scalar(sa.text(query)):
        raise _role_may_not(connection, "make or change the tables")


def _refuse_without_rights(connection: sa.Connection) -> None:
    known = [*t.metadata.sorted_tables, *p.only_in_postgres.sorted_tables]
    tables = [table.name for table in known]
    for right in RIGHTS:
        name = sa.column("name", sa.Text)
        listed = sa.func.unnest(sa.cast(tables, sa.ARRAY(sa.Text))).table_valued(name)
        may_not = sa.select(listed.c.name).where(~sa.func.has_table_privilege(listed.c.name, right))
        refused = connection.scalars(may_not).first()
        if refused is not None:
            raise _role_may_not(connection, f"{right} in table {refused}")
    # Without one of these, a hub would start and then refuse all calls.
    missing = missing_right(connection)
    if missing is not None:
        raise _role_may_not(connection, missing)


def _role_may_not(connection: sa.Connection, what: str) -> StoreUnavailableError:
    query = (
        "SELECT current_user, pg_get_userbyid(coalesce(relowner, datdba)) FROM pg_database "
        "LEFT JOIN pg_class ON pg_class.oid = to_regclass('alembic_version') "
        "WHERE datname = current_database()"
    )
    role, owner = connection.execute(sa.text(query)).one()
    return StoreUnavailableError(
        f"the PostgreSQL role {role} may not {what}: run `hawse admin database upgrade --owner {owner}`"
    )


@contextmanager
def unusable() -> Iterator[None]:
    """Translate the errors of a database that cannot be opened, with the next step."""
    try:
        yield
    except MigrationError as error:
        raise StoreUnavailableError(
            f"cannot use the PostgreSQL database: {error}; run the version that wrote it, or restore a backup"
        ) from error
    except OlderHubError as error:
        raise StoreUnavailableError(f"cannot migrate the PostgreSQL database: {error}") from error
    except sa.exc.NoResultFound as error:
        raise StoreUnavailableError(LACKS_ROW) from error
    except sa.exc.DBAPIError as error:
        raise StoreUnavailableError(
            f"cannot use the PostgreSQL database: {said(error.orig)}: {_next_step(error.orig)}"
        ) from error


def _next_step(error: BaseException | None) -> str:
    # psycopg gives no SQLSTATE for a refused login, so the text decides. Other languages get the last advice.
    text = str(error)
    if "password authentication failed" in text or "no password supplied" in text:
        return "write the role's password into database.password_file, or into PGPASSFILE"
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return "run `hawse admin database upgrade --owner OWNER` for the owner of its tables"
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return "another hub holds its tables: try again"
    if "server does not support SSL" in text:
        return "turn on TLS in the server (ssl = on), or correct database.url"
    if "does not match host name" in text:
        return "name the host in database.url as its certificate does"
    if "root certificate" in text or "certificate verify failed" in text:
        return "name the file of its CA by sslrootcert in database.url (sslrootcert=system: the system's CAs)"
    if "no pg_hba.conf entry" in text:
        return "allow this role in the server's pg_hba.conf, or correct database.url"
    if "read-only" in text or "hot standby" in text:
        return "name the server that takes writes in database.url, and let the role write"
    if "permission denied for database" in text or "not permitted to log in" in text:
        return "give the role LOGIN, and CONNECT on the database, or correct database.url"
    if any(each in text for each in _TOO_MANY):
        return "raise max_connections in the server, or the limit of the role or database"
    if "FATAL" in text or isinstance(error, psycopg.errors.UndefinedObject):
        return "correct database.url, or create what it names"
    return "start the server, or correct database.url"


def said(error: BaseException | None) -> str:
    """Return the server's or libpq's message in one line, without its details, which may quote values."""
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        return error.diag.message_primary
    return one_line(error)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sa.exc.DataError as error:
        # A zero byte, or a text that is too long: SQLite would store it.
        raise InvalidError(f"the store cannot hold this: {said(error.orig)}") from error
    except sa.exc.NoResultFound as error:
        raise StoreUnavailableError(LACKS_ROW) from error
    except sa.exc.DBAPIError as error:
        raise StoreUnavailableError(f"the store failed: {said(error.orig)}") from error
