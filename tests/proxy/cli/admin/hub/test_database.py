"""`hawse admin database` against a real PostgreSQL, with the roles that the manual describes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from proxy.cli.admin import admin
from proxy.hub.home.databases import note_address, note_applied, noted_applied
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.trails import open_trail
from proxy.hub.store.engines import postgres as engine_module
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.migrations import HEAD
from proxy.hub.store.store import Store
from tests.fakes.databases import lose, run
from tests.postgres import PostgresServer

# Of the server, on which test modules of one process may follow one another.
OWNER, HUB = "cli_owner", "cli-hub"


@pytest.fixture(scope="module")
def roles(postgres: PostgresServer) -> Iterator[None]:
    for role in (OWNER, HUB):
        postgres.execute(f'CREATE ROLE "{role}" LOGIN')
    yield
    for role in (OWNER, HUB):
        postgres.execute(f'DROP ROLE "{role}"')


@pytest.fixture
def owned(roles: None, postgres: PostgresServer) -> Iterator[str]:
    """The URL of an empty database for the hub's role, which owns nothing."""
    with postgres.new_database() as name:
        postgres.execute(f"ALTER DATABASE {name} OWNER TO {OWNER}")
        with psycopg.connect(postgres.url(name), autocommit=True) as connection:
            # As in PostgreSQL 15 and later.
            connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
            connection.execute("ALTER SCHEMA public OWNER TO pg_database_owner")
        yield postgres.url(name, user=HUB)


def invoke(folder: Path, url: str | None, *command: str) -> Result:
    """Run `hawse admin database` on the hub's machine."""
    env: dict[str, str | None] = dict.fromkeys(("HAWSE_ADMIN_URL", "HAWSE_HUB_CONFIG"))
    env |= {
        "HAWSE_HUB_DATA_DIR": str(folder),
        "HAWSE_HUB_PUBLIC_URL": "https://hub.example",
        "HAWSE_HUB_DATABASE_URL": url,
    }
    return CliRunner().invoke(admin, ["database", *command], env=env)


def ok(folder: Path, url: str | None, *command: str) -> Result:
    done = invoke(folder, url, *command)
    assert done.exit_code == 0, done.output
    return done


def refused(folder: Path, url: str | None, *command: str) -> str:
    """Return the one line of a command that fails."""
    done = invoke(folder, url, *command)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.output
    return done.stderr


def status(folder: Path, url: str | None) -> Any:
    return json.loads(ok(folder, url, "status", "--json").stdout)


def test_one_command_of_the_owner_makes_the_tables_for_a_role_that_cannot_delete_events(
    owned: str, tmp_path: Path
) -> None:
    assert refused(tmp_path, owned, "upgrade") == (
        f"hawse: the PostgreSQL role {HUB} may not make or change the tables: "
        f"run `hawse admin database upgrade --owner {OWNER}`\n"
    )
    assert status(tmp_path, owned)["tables"] == "missing"
    done = ok(tmp_path, owned, "upgrade", "--owner", OWNER)
    assert done.stderr == (
        f"made the tables, at revision {HEAD}\n"
        f"the role {HUB} has the rights of a hub, and cannot delete events\n"
    )
    address = PostgresAddress(owned)
    with closing(Store(address, org="main", clock=lambda: 1000.0)) as store:
        store.add_team("sre")
        store.accept_loss(store.version())
    open_trail(address).close()
    for statement in ("delete from trail_events", "truncate trail_events", "drop table trail_events"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            run(address, statement)
    found = status(tmp_path, owned)
    assert (found["tables"], found["revision"], found["role"], found["owner"]) == (
        "current",
        HEAD,
        HUB,
        OWNER,
    )
    assert (found["deletes_events"], found["version"], found["open_epochs"]) == (None, 3, 0)
    assert (
        f"role       {HUB} (the tables are {OWNER}'s), which cannot delete events\n"
        in ok(tmp_path, owned, "status").stdout
    )
    assert f"are at revision {HEAD} already" in ok(tmp_path, owned, "upgrade", "--owner", OWNER).stderr
    # As after statements by hand.
    owner = PostgresAddress(owned.replace(HUB, OWNER))
    run(owner, f'GRANT ALL ON ALL TABLES IN SCHEMA public TO "{HUB}"')
    assert status(tmp_path, owned)["deletes_events"] == "has more rights on them than it needs"
    ok(tmp_path, owned, "upgrade", "--owner", OWNER)
    assert status(tmp_path, owned)["deletes_events"] is None
    run(owner, f'REVOKE INSERT ON agents FROM "{HUB}"')
    with pytest.raises(
        StoreUnavailableError, match=rf"{HUB} may not INSERT in table agents: run `.* {OWNER}`"
    ):
        Store(address, org="main", clock=lambda: 1000.0)


def test_a_role_that_owns_the_tables_is_not_said_to_be_harmless(
    owned: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    name = owned.partition("@/")[2].partition("?")[0]
    postgres.execute(f'ALTER DATABASE {name} OWNER TO "{HUB}"')
    assert ok(tmp_path, owned, "upgrade").stderr == f"made the tables, at revision {HEAD}\n"
    assert status(tmp_path, owned)["deletes_events"] == "owns the tables"
    # A role without any right on these tables gets the same next step.
    told = refused(tmp_path, owned, "upgrade", "--owner", OWNER)
    assert f'run REASSIGN OWNED BY "{HUB}" TO "{OWNER}", or name another role in database.url' in told
    told = refused(tmp_path, owned, "upgrade", "--owner", "postgres")
    assert (
        f"{HUB} could delete events, since it owns the tables: as a superuser in this database, run REASSIGN"
        in told
    )
    statement = told.partition("run ")[2].partition(", or")[0]
    assert statement == f'REASSIGN OWNED BY "{HUB}" TO "postgres"'
    run(PostgresAddress(postgres.url(name)), statement)
    ok(tmp_path, owned, "upgrade", "--owner", "postgres")
    assert status(tmp_path, owned)["deletes_events"] is None


def test_what_cannot_be_upgraded_is_one_line_and_changes_nothing(
    owned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tables() -> list[tuple[object, ...]]:
        return run(
            PostgresAddress(owned.replace(HUB, OWNER)),
            "select count(*) from pg_tables where schemaname = 'public'",
        )

    assert "--owner names the role of database.url" in refused(tmp_path, owned, "upgrade", "--owner", HUB)
    absent = owned.replace(HUB, "absent")
    assert refused(tmp_path, absent, "upgrade", "--owner", OWNER) == (
        'hawse: cannot use the PostgreSQL database: role "absent" does not exist: '
        "correct database.url, or create what it names\n"
    )
    assert tables() == [(0,)]
    with psycopg.connect(owned.replace(HUB, OWNER)) as other:
        other.execute(f"select pg_advisory_xact_lock({engine_module.MIGRATION_LOCK})")
        monkeypatch.setattr(engine_module, "MIGRATION_LOCK_TIMEOUT_MS", 20)
        assert "another hub holds its tables: try again" in refused(
            tmp_path, owned, "upgrade", "--owner", OWNER
        )
    assert tables() == [(0,)]
    assert invoke(tmp_path, owned, "upgrade", "--owner-password-file", "x").exit_code == 2
    assert "a hub's start migrates a file" in refused(tmp_path, None, "upgrade")


def test_the_password_of_the_owner_is_in_a_file(owned: str, postgres: PostgresServer, tmp_path: Path) -> None:
    postgres.execute(f"ALTER ROLE {OWNER} PASSWORD 'right'")
    postgres.execute(f"GRANT by_password TO {OWNER}")
    file = tmp_path / "password"
    try:
        for content, told in (
            ("wrong\n", "password authentication failed"),
            ("", "does not hold a password"),
        ):
            file.write_text(content)
            said = refused(tmp_path, owned, "upgrade", "--owner", OWNER, "--owner-password-file", str(file))
            assert told in said
            assert "--owner-password-file" in said
            assert "database.password_file" not in said
            assert "wrong" not in said
        file.write_text("right\n")
        ok(tmp_path, owned, "upgrade", "--owner", OWNER, "--owner-password-file", str(file))
    finally:
        postgres.execute(f"REVOKE by_password FROM {OWNER}")


def test_a_loss_is_shown_and_accepted_once(postgres_database: str, tmp_path: Path) -> None:
    data = DataDir.open(tmp_path / "hub")
    address = PostgresAddress(postgres_database)
    with closing(Store(address, org="main", clock=lambda: 1000.0)) as store:
        before = store.version()
        store.add_team("lost")
        applied = store.version()
    assert "no hub has applied a version" in refused(data.path, postgres_database, "accept")
    note_address(data, address)
    note_applied(data, applied)
    assert noted_applied(data) == applied
    assert (
        "has all that this hub has applied (version 2): nothing to accept"
        in ok(data.path, None, "accept").stderr
    )
    lose(address, back_to=before)
    found = status(data.path, None)
    assert (found["version"], found["applied"], found["lost"]) == (1, 2, True)
    assert "version 1, without version 2 that this hub has applied" in ok(data.path, None, "status").stdout
    assert ok(data.path, postgres_database, "accept").stderr.startswith("accepted: the hub goes on")
    assert status(data.path, None)["version"] == 3
    assert "nothing to accept" in ok(data.path, None, "accept").stderr
    [(body,)] = run(
        address, "select convert_from(body, 'UTF8') from trail_events where kind = 'admin.action'"
    )
    event = json.loads(str(body))
    assert (event["req"]["verb"], event["req"]["resource"]) == ("accept", "database")
    assert event["note"].startswith("accepted: the database has lost changes: this hub has applied version 2")


def test_a_version_that_cannot_be_read_is_not_forgotten(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path / "hub")
    data.applied_file.touch(0o600)
    url = "postgresql://hawse@127.0.0.1:1/hawse"
    for content in ("", "{}", "[]", '{"number": "x", "nonce": "y"}'):
        data.applied_file.write_text(content)
        assert f"{data.applied_file}: damaged, so" in refused(data.path, url, "accept")


def test_a_newer_database_is_shown_with_what_can_use_it(postgres_database: str, tmp_path: Path) -> None:
    address = PostgresAddress(postgres_database)
    Store(address, org="main", clock=lambda: 1000.0).close()
    run(address, "update alembic_version set version_num = '9999'")
    assert "which can use it" in ok(tmp_path, postgres_database, "status").stdout
    run(address, "update directory set oldest = '9998'")
    assert status(tmp_path, postgres_database)["tables"] == "too new"
    assert "run the version that wrote it" in refused(tmp_path, postgres_database, "upgrade")


def test_a_database_in_the_middle_of_a_restore_is_named_in_one_line(
    postgres_database: str, tmp_path: Path
) -> None:
    address = PostgresAddress(postgres_database)
    Store(address, org="main", clock=lambda: 1000.0).close()
    run(address, "delete from directory")
    assert "finish the restore of its backup" in refused(tmp_path, postgres_database, "status")


def test_the_status_of_a_file(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path / "hub")
    assert "No such file" in refused(data.path, None, "status")
    with closing(Store(data.store_file, org="main", clock=lambda: 1000.0)) as store:
        store.add_team("sre")
        found = status(data.path, None)
        store.add_agent("robot", owner="ada", teams=["sre"])
    assert (found["engine"], found["tables"], found["version"], found["server"]) == (
        "SQLite",
        "current",
        2,
        None,
    )
    shown = ok(data.path, None, "status").stdout
    assert f"tables     revision {HEAD} (usable from" in shown
    assert "size       1 agent, 0 clusters, " in shown
    assert "loses no changes" in refused(data.path, None, "accept")
