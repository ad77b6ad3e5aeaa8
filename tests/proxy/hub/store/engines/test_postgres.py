from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.keys import SigningKey
from proxy.hub.store import migrations
from proxy.hub.store.engines import postgres as engine_module
from proxy.hub.store.engines.errors import InvalidError, NotFoundError, StoreUnavailableError
from proxy.hub.store.engines.postgres import clock_error_s
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.engines.postgres_upgrade import upgrade
from proxy.hub.store.engines.sqlite import SqliteEngine
from proxy.hub.store.migrations import HEAD
from proxy.hub.store.roles import Role
from proxy.hub.store.store import Store
from proxy.hub.store.versions.version import CHANNEL
from tests.fakes.databases import run
from tests.postgres import PostgresServer


def opened(address: PostgresAddress) -> Store:
    return Store(address, org="main", clock=lambda: 1000.0)


@pytest.fixture
def store(in_postgres: PostgresAddress) -> Iterator[Store]:
    with closing(opened(in_postgres)) as store:
        yield store


def fault_of(address: PostgresAddress) -> str:
    with pytest.raises(StoreUnavailableError) as caught:
        opened(address)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_server_that_is_not_there_is_told_with_the_next_step(tmp_path: Path) -> None:
    told = fault_of(PostgresAddress(f"postgresql://hawse@/hawse?host={tmp_path}"))
    assert told.startswith("cannot use the PostgreSQL database: connection is bad: ")
    assert told.endswith(": start the server, or correct database.url")
    told = fault_of(PostgresAddress("postgresql://hawse@127.0.0.1:1/hawse"))
    assert "Connection refused" in told
    told = fault_of(PostgresAddress("postgresql://hawse@127.0.0.1:1,127.0.0.2:1/hawse"))
    assert told.count("Connection refused") == 2
    assert "; host: '127.0.0.2', port: '1', hostaddr: '127.0.0.2': connection failed: " in told


def test_a_role_or_database_that_is_not_there(postgres: PostgresServer) -> None:
    for url in (postgres.url("none"), postgres.url(user="none")):
        told = fault_of(PostgresAddress(url))
        assert 'none" does not exist: correct database.url, or create what it names' in told


def test_the_password_comes_from_its_file_alone(
    postgres: PostgresServer, in_postgres: PostgresAddress, tmp_path: Path
) -> None:
    postgres.execute("create role careful login password 'right' in role by_password")
    postgres.execute("grant postgres to careful")
    url = in_postgres.url.replace("postgres@", "careful@")
    file = tmp_path / "password"
    try:
        file.write_text("wrong\n")
        told = fault_of(PostgresAddress(url, file))
        assert "password authentication failed for user" in told
        assert told.endswith("write the role's password into database.password_file, or into PGPASSFILE")
        assert "wrong" not in told
        assert fault_of(PostgresAddress(url)).endswith("or into PGPASSFILE")
        for content in (b"", b"\n", b"SECRET\nSECRET\n", b"SECRET\xff", b"SECRET" * 200):
            file.write_bytes(content)
            told = fault_of(PostgresAddress(url, file))
            assert told == f"database.password_file {file} does not hold a password in one line"
        file.unlink()
        assert "cannot be read: No such file" in fault_of(PostgresAddress(url, file))
        file.write_text("right\n")
        run(in_postgres, "grant usage on schema public to careful")
        run(in_postgres, "grant all on all tables in schema public to careful")
        with closing(opened(PostgresAddress(url, file))) as store:
            store.add_team("sre")
    finally:
        run(in_postgres, "drop owned by careful")
        postgres.execute("drop role careful")


@pytest.mark.parametrize(
    ("setting", "step"),
    [
        pytest.param("connection limit 0", "raise max_connections in the server, or the limit", id="limit"),
        pytest.param("nologin", "give the role LOGIN, and CONNECT on the database", id="no login"),
        pytest.param("set default_transaction_read_only = on", "name the server that takes", id="reads"),
    ],
)
def test_a_role_that_is_refused_a_connection_is_told_the_next_step(
    postgres: PostgresServer, in_postgres: PostgresAddress, setting: str, step: str
) -> None:
    postgres.execute("create role limited login")
    try:
        postgres.execute(f"alter role limited {setting}")
        told = fault_of(PostgresAddress(in_postgres.url.replace("postgres@", "limited@")))
        assert told.rpartition(": ")[2].startswith(step)
    finally:
        postgres.execute("drop role limited")


def test_a_role_without_rights_is_told_which_it_lacks_and_nothing_changes(
    postgres: PostgresServer, postgres_database: str, in_postgres: PostgresAddress
) -> None:
    postgres.execute("create role poor login")
    empty = PostgresAddress(postgres_database)
    poor = PostgresAddress(empty.url.replace("postgres@", "poor@"))
    try:
        told = fault_of(poor)
        assert told == (
            "the PostgreSQL role poor may not make or change the tables: "
            "run `hawse admin database upgrade --owner postgres`"
        )
        # A check finds what a start would.
        with pytest.raises(StoreUnavailableError) as caught, engine_module.look_at(poor):
            pass
        assert str(caught.value) == told
        run(empty, "revoke all on schema public from public")
        assert fault_of(poor) == told
        assert run(empty, "select count(*) from pg_tables where schemaname = 'public'") == [(0,)]
        run(empty, "grant usage, create on schema public to poor")
        opened(poor).close()
        of_another = PostgresAddress(in_postgres.url.replace("postgres@", "poor@"))
        told = fault_of(of_another)
        assert told.startswith("cannot use the PostgreSQL database: permission denied for table ")
        assert told.endswith("run `hawse admin database upgrade --owner OWNER` for the owner of its tables")
        run(in_postgres, "grant select on all tables in schema public to poor")
        assert fault_of(of_another).startswith("the PostgreSQL role poor may not INSERT in table ")
        # It may not migrate what is another's, though it may make tables.
        run(
            in_postgres,
            "grant create on schema public to poor",
            "update alembic_version set version_num = '0010'",
        )
        assert "may not make or change the tables: run `hawse" in fault_of(of_another)
        run(in_postgres, f"update alembic_version set version_num = '{HEAD}'")
        assert upgrade(in_postgres, "poor").before == HEAD
        opened(of_another).close()
        # A hub without a right on the trail would start, and then refuse all calls.
        lacking = ("INSERT", "trail_events"), ("UPDATE", "trail_epochs"), ("DELETE", "trail_open")
        for right, table in lacking:
            run(in_postgres, f"revoke {right} on {table} from poor")
            assert fault_of(of_another) == (
                f"the PostgreSQL role poor may not {right} in table {table}: "
                "run `hawse admin database upgrade --owner postgres`"
            )
            assert upgrade(in_postgres, "poor").before == HEAD
        opened(of_another).close()
    finally:
        for each in (in_postgres, empty):
            run(each, "drop owned by poor")
        postgres.execute("drop role poor")


@given(st.floats(0, 2e9), st.floats(-1e6, 1e6), st.floats(0, 60), st.floats(0, 60))
def test_a_clocks_error_is_no_more_than_what_is_certain(
    told: float, error_s: float, there_s: float, back_s: float
) -> None:
    asked, answered = told + error_s - there_s, told + error_s + back_s
    found = clock_error_s(asked, told, answered)
    assert abs(found) <= abs(error_s) + 1e-3
    assert abs(found - error_s) <= there_s + back_s + 1e-3
    assert found == 0 or abs(found) >= abs(error_s) - max(there_s, back_s) - 1e-3


def test_a_clock_that_is_more_than_half_a_minute_off_is_refused(
    store: Store, in_postgres: PostgresAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert abs(store.clock_error_s()) < 1
    there = time.time
    for offset_s, told in ((31.0, "31 s ahead of"), (-31.0, "31 s behind"), (29.0, None), (-29.0, None)):
        monkeypatch.setattr(engine_module, "wall_clock", lambda offset_s=offset_s: there() + offset_s)
        if told is None:
            opened(in_postgres).close()
        else:
            of = "that of the PostgreSQL database: set the wrong one by NTP"
            assert fault_of(in_postgres) == f"the clock of this machine is {told} {of}"
            with pytest.raises(StoreUnavailableError, match=told), engine_module.look_at(in_postgres):
                pass


def test_a_database_of_another_encoding_is_refused(postgres: PostgresServer) -> None:
    postgres.execute("create database ascii encoding 'SQL_ASCII' template template0")
    try:
        told = fault_of(PostgresAddress(postgres.url("ascii")))
        assert "has the encoding SQL_ASCII: create one with ENCODING 'UTF8'" in told
    finally:
        postgres.execute("drop database ascii")


def test_a_check_reads_and_makes_no_table(postgres_database: str, in_postgres: PostgresAddress) -> None:
    empty = PostgresAddress(postgres_database)
    with engine_module.look_at(empty) as connection:
        assert connection is None
    assert run(empty, "select count(*) from pg_tables where schemaname = 'public'") == [(0,)]
    with engine_module.look_at(in_postgres) as connection:
        assert connection is not None
        with pytest.raises(StoreUnavailableError, match="read-only transaction"), engine_module.unusable():
            connection.exec_driver_sql("delete from teams")


def test_alembic_is_loaded_outside_of_transactions_and_only_where_it_is_needed(
    postgres: PostgresServer, postgres_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = PostgresAddress(postgres_database)
    states: list[object] = []

    def load() -> None:
        query = "select state from pg_stat_activity where application_name = 'hawse-hub'"
        states.append(postgres.execute(query))

    monkeypatch.setattr(migrations, "load", load)
    with engine_module.look_at(empty):
        pass
    opened(empty).close()
    assert states == [[("idle",)], [("idle",)]]
    with engine_module.look_at(empty):
        pass
    opened(empty).close()
    assert states == [[("idle",)], [("idle",)]]


def test_a_change_is_announced_when_it_is_committed_and_a_refused_one_is_not(
    store: Store, in_postgres: PostgresAddress
) -> None:
    with psycopg.connect(in_postgres.url, autocommit=True) as listener:
        listener.execute(f"listen {CHANNEL}")
        with pytest.raises(NotFoundError):
            store.lock_agent("none")
        store.note_use(agents={"a": 1.0}, credentials={}, admin_tokens={}, relays={})
        store.add_team("sre")
        [told] = listener.notifies(timeout=5, stop_after=1)
        assert (told.channel, int(told.payload)) == (CHANNEL, store.version().number)


def test_text_that_postgresql_cannot_hold_is_refused_and_the_store_goes_on(store: Store) -> None:
    store.add_team("sre")
    store.add_agent("sre-1", owner="ada", teams=["sre"])
    with pytest.raises(InvalidError, match="the store cannot hold this"):
        store.revoke_key("sre-1", "a\0b")
    with pytest.raises(InvalidError, match="the store cannot hold this: value too long"):
        store.add_code("sre-1", "h" * 65)
    store.lock_agent("sre-1")


def test_a_connection_that_was_ended_is_made_again(store: Store, postgres: PostgresServer) -> None:
    store.add_team("sre")
    ended = postgres.execute(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = 'hawse-hub'"
    )
    assert ended == [(True,)]
    store.add_team("web")
    assert set(store.snapshot().teams_by_name) == {"sre", "web"}


@pytest.mark.parametrize(("stated", "used"), [("off", "on"), ("remote_apply", "remote_apply")])
def test_a_change_that_returned_is_on_the_disk(in_postgres: PostgresAddress, stated: str, used: str) -> None:
    address = PostgresAddress(f"{in_postgres.url}&options=-csynchronous_commit%3D{stated}")
    with closing(opened(address)) as store, store._change() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == used


def test_a_server_that_does_not_answer_is_given_up_and_asked_again(
    store: Store, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module.StoreConnection, "answer_s", 0.05)
    store.add_team("sre")
    [[pid]] = postgres.execute("select pid from pg_stat_activity where application_name = 'hawse-hub'")
    assert isinstance(pid, int)

    def stop_and_ask() -> None:
        # Within a transaction: before one, the connection is tried, and replaced.
        with store._note() as connection:
            os.kill(pid, signal.SIGSTOP)
            connection.exec_driver_sql("select 1")

    try:
        with pytest.raises(StoreUnavailableError, match="the database does not answer"):
            stop_and_ask()
        assert set(store.snapshot().teams_by_name) == {"sre"}
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_change_that_waits_too_long_for_another_one_is_refused(
    store: Store, in_postgres: PostgresAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "LOCK_TIMEOUT_MS", 50)
    with closing(opened(in_postgres)) as other, store._change():
        with pytest.raises(StoreUnavailableError, match="canceling statement due to lock timeout"):
            other.add_team("sre")
        # What is no change goes on.
        other.note_use(agents={"a": 1.0}, credentials={}, admin_tokens={}, relays={})
        assert other.snapshot().teams_by_name == {}


def test_a_copy_in_memory_says_the_same(store: Store) -> None:
    store.add_team("sre")
    key = SigningKey.generate().public
    store.add_agent("sre-1", owner="ada", teams=["sre"], key_hash="h1", key_hint="x")
    store.add_cluster("prod", relay_key=key, teams=["sre"], labels={"env": "prod"})
    store.add_admin_token("ops", "h", role=Role.VIEWER)
    before = store.snapshot()
    copy = store.copy_in_memory()
    assert isinstance(copy._engine, SqliteEngine)
    assert copy.snapshot() == before
    copy.lock_agent("sre-1")
    assert copy.version() != store.version()
    assert store.snapshot().agents_by_name["sre-1"].active
    copy.close()
