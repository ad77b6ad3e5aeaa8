"""What only used tokens in PostgreSQL do: hubs that meet, lost answers, and a database that is away."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
import trio
import trio.testing

from proxy.hub.identity import replay_postgres
from proxy.hub.identity.replay_postgres import (
    CLOCKS_S,
    INSERT,
    PRUNE_EVERY_S,
    PRUNED_ROWS_MAX,
    WAIT_S,
    PostgresUses,
    insert,
)
from proxy.hub.identity.replay_store import (
    ReplayStoreUnavailableError,
    UnwrittenError,
    Use,
    open_replay_store,
)
from proxy.hub.store.engines.postgres_address import PostgresAddress
from tests.fakes.databases import run
from tests.fakes.lost_answers import lost_answers
from tests.fakes.replays import unreachable
from tests.postgres import PostgresServer

# Beyond the clocks of all databases, so that no row expires.
NOW = 4_000_000_000.0
UNTIL = NOW + 70.0
WAITING = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = '{}'"


@pytest.fixture
def table(in_postgres: PostgresAddress) -> Iterator[PostgresUses]:
    with closing(PostgresUses(lambda: in_postgres.url)) as table:
        yield table


@pytest.fixture
def other(in_postgres: PostgresAddress) -> Iterator[PostgresUses]:
    """The table at another hub."""
    with closing(PostgresUses(lambda: in_postgres.url)) as table:
        yield table


def use(number: int = 0, *, until: float = UNTIL) -> Use:
    return Use(number.to_bytes(32, "big"), until, NOW)


def is_fresh(table: PostgresUses, number: int = 0) -> bool | None:
    entered = use(number)
    table.write([entered])
    return entered.fresh


@contextmanager
def holder(address: PostgresAddress) -> Iterator[psycopg.RawCursor[tuple[object, ...]]]:
    """A transaction of another process, which is rolled back at the end."""
    with psycopg.connect(address.url, cursor_factory=psycopg.RawCursor) as connection:
        yield connection.cursor()
        connection.rollback()


def wait_until_blocked(
    postgres: PostgresServer, address: PostgresAddress, count: int, *begun: Future[bool | None]
) -> None:
    while postgres.execute(WAITING.format(sa.make_url(address.url).database)) != [(count,)]:
        assert not any(each.done() for each in begun), "a write did not wait"


# -- two hubs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("commits", [True, False])
def test_a_use_waits_for_the_same_one_at_another_hub(
    table: PostgresUses, in_postgres: PostgresAddress, postgres: PostgresServer, commits: bool
) -> None:
    first = use()
    with holder(in_postgres) as hub, ThreadPoolExecutor(1) as threads:
        hub.execute(INSERT.sql, ([first.token], [first.attempt], [int(UNTIL)]))
        second = threads.submit(is_fresh, table)
        wait_until_blocked(postgres, in_postgres, 1, second)
        if commits:
            hub.connection.commit()
        else:
            hub.connection.rollback()
        assert second.result() is not commits


def test_of_two_uses_at_the_same_moment_one_passes(
    table: PostgresUses, other: PostgresUses, in_postgres: PostgresAddress, postgres: PostgresServer
) -> None:
    assert is_fresh(table, 1)
    assert is_fresh(other, 2)
    with holder(in_postgres) as hub, ThreadPoolExecutor(2) as threads:
        hub.execute("LOCK TABLE seen IN SHARE MODE")
        both = [threads.submit(is_fresh, each) for each in (table, other)]
        wait_until_blocked(postgres, in_postgres, 2, *both)
        hub.connection.rollback()
        assert {each.result() for each in both} == {True, False}


def test_hubs_insert_the_same_tokens_in_the_same_order() -> None:
    uses = [use(number) for number in range(3)]
    assert insert(uses) == insert(uses[::-1])


def test_a_row_is_kept_until_clocks_that_are_behind_refuse_its_token(
    table: PostgresUses, in_postgres: PostgresAddress
) -> None:
    table.write([use(until=UNTIL + 0.5)])
    assert run(in_postgres, "SELECT kept_until FROM seen") == [(math.ceil(UNTIL + 0.5) + CLOCKS_S,)]


# -- answers that are lost -----------------------------------------------------------------------------------


@pytest.mark.parametrize("arrives", [True, False])
async def test_a_use_whose_answer_was_lost_is_sent_again_and_is_no_replay(
    table: PostgresUses, other: PostgresUses, monkeypatch: pytest.MonkeyPatch, arrives: bool
) -> None:
    monkeypatch.setattr("proxy.hub.identity.replay_store.RETRY_S", 0.0)
    async with open_replay_store(table) as store, open_replay_store(other) as elsewhere:
        with lost_answers(monkeypatch, arrives=arrives, set_up=False) as sent:
            assert await store.enter("assertion", "a", "j", UNTIL, NOW)
        # The second commit has a transaction id, so that it waits for a standby too.
        assert sent == [[b"insert", b"find", b"prune"], [b"real", b"insert", b"find", b"prune"]]
        assert store.unwritten == 0
        assert not await elsewhere.enter("assertion", "a", "j", UNTIL, NOW)


async def test_a_replay_whose_answer_was_lost_is_still_one(
    table: PostgresUses, other: PostgresUses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.hub.identity.replay_store.RETRY_S", 0.0)
    async with open_replay_store(table) as store, open_replay_store(other) as elsewhere:
        assert await elsewhere.enter("assertion", "a", "j", UNTIL, NOW)
        with lost_answers(monkeypatch, arrives=True, set_up=False):
            assert not await store.enter("assertion", "a", "j", UNTIL, NOW)


def test_a_connection_that_was_ended_is_made_again(
    table: PostgresUses, in_postgres: PostgresAddress, postgres: PostgresServer
) -> None:
    assert is_fresh(table, 1)
    database = sa.make_url(in_postgres.url).database
    postgres.execute(
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity "
        f"where datname = '{database}' and query ~ 'INTO seen|FROM seen'"
    )
    with pytest.raises(UnwrittenError, match=r"terminating connection|closed"):
        is_fresh(table, 2)
    assert is_fresh(table, 3)
    assert is_fresh(table, 2)


# -- a database that is away ---------------------------------------------------------------------------------


async def test_a_use_waits_for_a_database_that_comes_back(
    in_postgres: PostgresAddress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.hub.identity.replay_store.RETRY_S", 0.0)
    attempts = 0

    def conninfo() -> str:
        nonlocal attempts
        attempts += 1
        return in_postgres.url if attempts > 3 else unreachable(tmp_path).url

    async with open_replay_store(PostgresUses(conninfo)) as store:
        assert await store.enter("assertion", "a", "j", UNTIL, NOW)
        assert store.unwritten == 0


async def test_a_use_that_is_not_written_in_time_is_refused_and_the_next_one_tries_again(
    in_postgres: PostgresAddress,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    mock_clock: trio.testing.MockClock,
) -> None:
    monkeypatch.setattr("proxy.hub.identity.replay_store.RETRY_S", 0.0)
    away, token, attempts = unreachable(tmp_path).url, trio.lowlevel.current_trio_token(), 0
    failed_before, failed = trio.Event(), trio.Event()

    def conninfo() -> str:
        nonlocal attempts
        attempts += 1
        if attempts == 2:
            token.run_sync_soon(failed_before.set)
        return away or in_postgres.url

    async with open_replay_store(PostgresUses(conninfo)) as store, trio.open_nursery() as nursery:

        async def refused() -> None:
            with pytest.raises(ReplayStoreUnavailableError, match=r"in 5 s .* assertion is used: try"):
                await store.enter("assertion", "a", "j", UNTIL, NOW)
            failed.set()

        nursery.start_soon(refused)
        await failed_before.wait()
        mock_clock.jump(WAIT_S - 1)
        await trio.testing.wait_all_tasks_blocked()
        assert not failed.is_set()
        mock_clock.jump(1)
        await failed.wait()
        assert store.unwritten == 1
        away = ""
        assert await store.enter("assertion", "a", "k", UNTIL, NOW)
        record = caplog.records[0]
        assert record.levelno == logging.WARNING
        assert "so logins and relays are refused after 5 s: connection" in record.message
        assert len(record.message.splitlines()) == 1


async def test_each_use_waits_for_its_own_time_for_a_database_that_hangs(
    table: PostgresUses,
    in_postgres: PostgresAddress,
    postgres: PostgresServer,
    mock_clock: trio.testing.MockClock,
) -> None:
    ended: list[str] = []
    async with open_replay_store(table) as store:
        assert await store.enter("assertion", "a", "before", UNTIL, NOW)

        async def refused(jti: str) -> None:
            with pytest.raises(ReplayStoreUnavailableError):
                await store.enter("assertion", "a", jti, UNTIL, NOW)
            ended.append(jti)

        with holder(in_postgres) as hub:
            hub.execute("LOCK TABLE seen")
            async with trio.open_nursery() as nursery:
                for after_s, jti in ((0.0, "first"), (3.0, "second")):
                    mock_clock.jump(after_s)
                    nursery.start_soon(refused, jti)
                    await trio.testing.wait_all_tasks_blocked()
                for after_s, count in ((1.0, 0), (1.0, 1), (2.0, 1), (1.0, 2)):
                    mock_clock.jump(after_s)
                    await trio.testing.wait_all_tasks_blocked()
                    assert ended == ["first", "second"][:count]
            assert store.unwritten == 2
        assert await store.enter("assertion", "a", "after", UNTIL, NOW)


def test_an_answer_is_waited_for_for_a_bounded_time(
    table: PostgresUses, in_postgres: PostgresAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_postgres, "ANSWER_S", 0.05)
    assert is_fresh(table, 1)
    with holder(in_postgres) as hub:
        hub.execute("LOCK TABLE seen")
        with pytest.raises(UnwrittenError, match="the database does not answer"):
            is_fresh(table, 2)
    monkeypatch.setattr(replay_postgres, "ANSWER_S", 5.0)
    assert is_fresh(table, 3)


# -- rows that have expired ----------------------------------------------------------------------------------


def rows(address: PostgresAddress) -> int:
    [(count,)] = run(address, "SELECT count(*) FROM seen")
    assert isinstance(count, int)
    return count


def add_expired(address: PostgresAddress, count: int) -> None:
    run(
        address,
        "INSERT INTO seen SELECT sha256(random()::text::bytea), '', extract(epoch FROM now()) "
        f"FROM generate_series(1, {count})",
        "INSERT INTO seen SELECT sha256(random()::text::bytea), '', extract(epoch FROM now()) + 60",
    )


def test_expired_rows_are_deleted_each_minute_some_at_a_time(
    table: PostgresUses, in_postgres: PostgresAddress
) -> None:
    add_expired(in_postgres, PRUNED_ROWS_MAX + 1)
    found = []
    for number in range(3):
        assert is_fresh(table, number)
        found.append(rows(in_postgres) - number)
    assert found == [3, 2, 2]
    add_expired(in_postgres, 1)
    assert is_fresh(table, 4)
    assert rows(in_postgres) == 7
    assert table._prune_at_s == pytest.approx(time.monotonic() + PRUNE_EVERY_S, abs=10)
    table._prune_at_s -= PRUNE_EVERY_S
    assert is_fresh(table, 5)
    assert rows(in_postgres) == 7


def test_rows_that_another_hub_deletes_are_not_waited_for(
    table: PostgresUses, in_postgres: PostgresAddress
) -> None:
    add_expired(in_postgres, 2)
    with holder(in_postgres) as hub:
        hub.execute("DELETE FROM seen")
        assert is_fresh(table)
