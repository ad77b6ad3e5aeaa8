from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import attrs
import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from proxy.hub.store import migrations
from proxy.hub.store.engines import postgres as postgres_engine
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.migrations.postgres_tables import only_in_postgres
from proxy.hub.store.migrations.tables import metadata
from proxy.hub.store.roles import Role
from proxy.hub.store.store import Store
from tests.fakes.databases import run
from tests.postgres import PostgresServer
from tests.proxy.hub.approvals.requests.bench import NEW_REQUEST
from tests.proxy.hub.approvals.requests.bench import opened as opened_requests

pytestmark = pytest.mark.alembic


@pytest.fixture(params=["sqlite", "postgres"])
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """A database without a table."""
    if request.param == "sqlite":
        return tmp_path / "hub.db"
    return PostgresAddress(request.getfixturevalue("postgres_database"))


def opened(location: Location) -> Store:
    return Store(location, org="main", clock=lambda: 1000.0)


@contextmanager
def connected(location: Location) -> Iterator[sa.Connection]:
    url = sa.make_url(
        f"sqlite:///{location}"
        if isinstance(location, Path)
        else location.url.replace("postgresql:", "postgresql+psycopg:")
    )
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def checks(connection: sa.Connection) -> set[tuple[str, str]]:
    """The CHECK constraints, which Alembic does not compare."""
    if connection.dialect.name == "sqlite":
        rows = connection.execute(sa.text("select name, sql from sqlite_master where sql is not null"))
        return {(row.name, str(row.sql.count("CHECK"))) for row in rows if row.name in metadata.tables}
    query = (
        "select conrelid::regclass::text, pg_get_constraintdef(oid) from pg_constraint where contype = 'c'"
    )
    return {(table, definition) for table, definition in connection.execute(sa.text(query))}


def test_migrations_make_exactly_the_tables_that_the_code_knows(new_database: Location) -> None:
    opened(new_database).close()
    known = [metadata] if isinstance(new_database, Path) else [metadata, only_in_postgres]
    with connected(new_database) as connection:
        assert compare_metadata(MigrationContext.configure(connection), known) == []
        made = checks(connection)
        for tables in reversed(known):
            tables.drop_all(connection)
        for tables in known:
            tables.create_all(connection)
        assert checks(connection) == made


def test_the_newest_revision_is_known_by_name() -> None:
    folder = Path(migrations.__file__).parent
    assert ScriptDirectory(str(folder)).get_current_head() == migrations.HEAD


def test_a_database_that_is_up_to_date_is_opened_without_alembic(database: Location) -> None:
    store = opened(database)
    store.add_team("sre")
    store.close()
    script = (
        "import sys; from pathlib import Path; sys.modules['alembic'] = None\n"
        "from proxy.hub.store.engines.postgres_address import PostgresAddress\n"
        "from proxy.hub.store.store import Store\n"
        f"print(*Store({database!r}, org='main', clock=float).snapshot().teams_by_name)"
    ).replace("PosixPath", "Path")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("sre\n", "")


def test_a_database_of_a_newer_version_is_used_if_that_allows_it(new_database: Location) -> None:
    store = opened(new_database)
    store.add_team("sre")
    store.close()
    run(new_database, "update alembic_version set version_num = '9999'")
    store = opened(new_database)
    assert list(store.snapshot().teams_by_name) == ["sre"]
    store.close()
    run(new_database, "update directory set oldest = '9998'")
    told = rf"revision 9999, .* not know \(it needs 9998, and this version has {migrations.HEAD}\); run the"
    with pytest.raises(StoreUnavailableError, match=told):
        opened(new_database)
    run(new_database, "drop table directory")
    with pytest.raises(StoreUnavailableError, match=r"9999, .* not know; run the version that wrote it"):
        opened(new_database)


def test_tables_that_a_running_hub_cannot_use_are_not_made(postgres_database: str) -> None:
    address = PostgresAddress(postgres_database)
    opened(address).close()
    # An earlier hub closes the calls of each one that it does not know.
    assert run(address, "select oldest from directory") == [("0015",)]
    run(
        address,
        "insert into hubs values ('boot', '0000000a', 1, '', '', 'hawse/0.1.0', '0015', 1, '', 10, 60, "
        "'serving', 1, 0, 0, '', 0, 0)",
    )
    with connected(address) as connection:
        migrations.refuse_older_hubs(connection)
    run(address, "update directory set oldest = '0017'")
    told = r"hub 0000000a \(hawse/0\.1\.0\) runs on it and knows revision 0015, but from now on 0017 is"
    with connected(address) as connection, pytest.raises(migrations.OlderHubError, match=told):
        migrations.refuse_older_hubs(connection)
    run(address, "update hubs set state = 'gone'")
    with connected(address) as connection:
        migrations.refuse_older_hubs(connection)


def test_a_database_at_several_revisions_is_left_alone(new_database: Location) -> None:
    opened(new_database).close()
    run(new_database, "insert into alembic_version values ('0003')")
    with pytest.raises(
        StoreUnavailableError, match=rf"several revisions: 0003, {migrations.HEAD}; run the version"
    ):
        opened(new_database)


def upgrade(connection: sa.Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["connection"] = connection
    if connection.dialect.name == "postgresql":
        command.stamp(config, migrations.BEFORE_POSTGRESQL)
    command.upgrade(config, revision)


def test_a_directory_of_before_requests_has_all_its_rows_and_no_request(new_database: Location) -> None:
    with connected(new_database) as connection:
        upgrade(connection, "0017")
    agent, cluster = "5c1e8b5c-0000-4000-8000-000000000001", "5c1e8b5c-0000-4000-8000-000000000002"
    run(
        new_database,
        "insert into teams (id, name, created_at) values ('t', 'sre', 1.0)",
        "insert into agents (id, name, owner, state, created_at, state_changed_at) "
        f"values ('{agent}', 'robot', 'ann@example.com', 'active', 1.0, 1.0)",
        f"insert into agent_teams (agent_id, team_id) values ('{agent}', 't')",
        "insert into clusters (id, name, labels, mode, relay_address_private, created_at) "
        f"values ('{cluster}', 'prod', '{{}}', 'tunnel', false, 1.0)",
        "insert into admin_tokens (id, name, hash, created_at, role, role_chosen) "
        "values ('a', 'ops', 'h', 1.0, 'admin', true)",
    )
    before = run(new_database, "select version, nonce, oldest from directory")
    with closing(opened(new_database)) as store:
        snapshot = store.snapshot()
    assert run(new_database, "select version_num from alembic_version") == [(migrations.HEAD,)]
    # A hub of the revision before goes on beside this one.
    assert run(new_database, "select version, nonce, oldest from directory") == before
    assert (list(snapshot.agents_by_name), list(snapshot.clusters_by_name)) == (["robot"], ["prod"])
    assert [token.name for token in snapshot.admin_tokens_by_hash.values()] == ["ops"]
    with opened_requests(new_database) as table:
        assert table.every_open() == []
        new = attrs.evolve(NEW_REQUEST, agent_id=agent, cluster_id=cluster)
        assert table.open(new, serves="").new == new


def test_tokens_of_before_roles_are_admins_by_no_choice(tmp_path: Path) -> None:
    file = tmp_path / "hub.db"
    with connected(file) as connection:
        upgrade(connection, "0007")
        for name in ("local", "prometheus"):
            connection.execute(
                sa.text("INSERT INTO admin_tokens VALUES (:name, :name, :name, 1.0, 2.0)"), {"name": name}
            )
    store = opened(file)
    store.add_admin_token("ops", "ops", role=Role.ADMIN)
    found, used = store.snapshot().admin_tokens_by_hash, store.last_used()
    store.close()
    assert {name: (token.role, token.role_chosen) for name, token in found.items()} == {
        "local": (Role.ADMIN, True),
        "prometheus": (Role.ADMIN, False),
        "ops": (Role.ADMIN, True),
    }
    assert (found["prometheus"].created_at, used["prometheus"]) == (1.0, 2.0)


def test_two_hubs_that_start_on_an_empty_database_make_its_tables_once(
    postgres: PostgresServer, postgres_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_engine, "MIGRATION_LOCK_TIMEOUT_MS", 60_000)
    address = PostgresAddress(postgres_database)
    waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
    with psycopg.connect(postgres_database) as holder, ThreadPoolExecutor() as threads:
        holder.execute(f"select pg_advisory_xact_lock({postgres_engine.MIGRATION_LOCK})")
        both = [threads.submit(opened, address) for _ in range(2)]
        while postgres.execute(waiting) != [(2,)]:
            assert not any(each.done() for each in both)
        # Both have seen an empty database.
        holder.rollback()
        for each in both:
            each.result().close()
    assert run(address, "select count(*) from directory") == [(1,)]


def test_a_migration_that_fails_leaves_nothing_behind(postgres_database: str) -> None:
    # As where something else has a table of the same name: the last of several revisions fails.
    address = PostgresAddress(postgres_database)
    run(address, "create table directory (x int)")
    with pytest.raises(StoreUnavailableError, match='relation "directory" already exists'):
        opened(address)
    tables = run(address, "select tablename from pg_tables where schemaname = 'public'")
    assert tables == [("directory",)]
