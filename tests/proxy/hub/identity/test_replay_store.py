from __future__ import annotations

import logging
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry

from proxy.hub.admin.metrics import ReplayCollector
from proxy.hub.identity.replay_store import ReplayStore

NOW = 1_800_000_000.0
UNTIL = NOW + 70.0


async def test_two_processes_on_one_file_take_a_token_once(tmp_path: Path) -> None:
    """As an old hub and the one that takes its place: each has the file open."""
    with closing(ReplayStore(tmp_path / "seen.db")) as old, closing(ReplayStore(tmp_path / "seen.db")) as new:
        first: list[bool] = []

        async def use(store: ReplayStore, jti: str) -> None:
            first.append(await store.enter("assertion", "a1", jti, UNTIL, NOW))

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(use, old, f"j{number}")
                nursery.start_soon(use, new, f"j{number}")
        assert (first.count(True), first.count(False)) == (100, 100)


async def test_a_file_that_another_process_makes_at_the_same_time_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "seen.db"
    with (
        closing(ReplayStore(path)) as store,
        closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        other.execute("CREATE TABLE made (at_once INTEGER)")
        monkeypatch.setattr("proxy.hub.identity.replay_store.time.sleep", lambda _: other.execute("COMMIT"))
        assert await store.enter("assertion", "a", "j", UNTIL, NOW)
        assert store.unwritten == 0
        assert not other.in_transaction


async def test_a_file_that_another_process_keeps_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "seen.db"
    tries = 0

    def tried_again(pause_s: float) -> None:
        nonlocal tries
        tries += 1
        if tries == 1000:
            other.execute("COMMIT")

    with (
        closing(ReplayStore(path)) as store,
        closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        other.execute("CREATE TABLE made (at_once INTEGER)")
        monkeypatch.setattr("proxy.hub.identity.replay_store.BUSY_TIMEOUT_S", 0.0)
        monkeypatch.setattr("proxy.hub.identity.replay_store.time.sleep", tried_again)
        assert await store.enter("assertion", "a", "j", UNTIL, NOW)
        assert store.unwritten == 1


async def test_tokens_are_distinct_by_kind_owner_and_jti(tmp_path: Path) -> None:
    with closing(ReplayStore(tmp_path / "seen.db")) as store:
        jtis = ["j", "k", "\ud800", "x" * 100_000]
        tokens = [("hello", "a", "j"), ("assertion", "b", "j"), *(("assertion", "a", jti) for jti in jtis)]
        assert [await store.enter(*token, UNTIL, NOW) for token in tokens] == [True] * len(tokens)
        assert [await store.enter(*token, UNTIL, NOW) for token in tokens] == [False] * len(tokens)


async def test_what_has_expired_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "seen.db"
    with closing(ReplayStore(path)) as store:
        for number in range(50):
            await store.enter("assertion", "a", str(number), UNTIL, NOW)
        await store.enter("assertion", "a", "later", UNTIL + 70, UNTIL)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM seen").fetchone() == (1,)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_many_at_once_share_their_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    write = ReplayStore._write

    def counted(self: ReplayStore, batch: list[object], now: float) -> str:
        batches.append(len(batch))
        return write(self, batch, now)  # type: ignore[arg-type]

    monkeypatch.setattr(ReplayStore, "_write", counted)
    with closing(ReplayStore(tmp_path / "seen.db")) as store:
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(store.enter, "assertion", "a", str(number), UNTIL, NOW)
    assert sum(batches) == 200
    assert len(batches) <= 3


async def test_a_use_cancelled_during_its_write_delays_no_other(tmp_path: Path) -> None:
    with closing(ReplayStore(tmp_path / "seen.db")) as store:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(store.enter, "assertion", "a", str(number), UNTIL, NOW)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert await store.enter("assertion", "a", "another", UNTIL, NOW)
        # What was under way may have been noted; nothing is taken twice all the same.
        for number in range(20):
            await store.enter("assertion", "a", str(number), UNTIL, NOW)
            assert not await store.enter("assertion", "a", str(number), UNTIL, NOW)


async def test_a_use_cancelled_with_the_lock_loses_no_other_use(tmp_path: Path) -> None:
    path = tmp_path / "seen.db"
    first: list[bool] = []
    leaving = trio.CancelScope()

    async def leave(store: ReplayStore) -> None:
        with leaving:
            await store.enter("assertion", "a", "0", UNTIL, NOW)

    async def use(store: ReplayStore, jti: str) -> None:
        first.append(await store.enter("assertion", "a", jti, UNTIL, NOW))

    with closing(ReplayStore(path)) as store, closing(ReplayStore(path)) as after_a_restart:
        async with trio.open_nursery() as nursery:
            async with store._lock:
                nursery.start_soon(leave, store)
                await trio.testing.wait_all_tasks_blocked()
                for number in range(1, 20):
                    nursery.start_soon(use, store, str(number))
                await trio.testing.wait_all_tasks_blocked()
            # It holds the lock already, and a cancelled task starts no thread.
            leaving.cancel()
        assert leaving.cancelled_caught
        assert first == [True] * 19
        for number in range(20):
            assert not await after_a_restart.enter("assertion", "a", str(number), UNTIL, NOW)


async def test_work_in_other_threads_holds_up_no_use(tmp_path: Path) -> None:
    others = trio.to_thread.current_default_thread_limiter()
    others.total_tokens = 1
    await others.acquire_on_behalf_of("a look-up that hangs")
    with closing(ReplayStore(tmp_path / "seen.db")) as store, trio.fail_after(10):
        assert await store.enter("assertion", "a", "j", UNTIL, NOW)


async def test_an_unwritable_file_refuses_no_token_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "seen.db"
    path.write_bytes(b"this is no database" * 100)
    metrics = CollectorRegistry()
    with closing(ReplayStore(path)) as store, caplog.at_level(logging.WARNING):
        metrics.register(ReplayCollector(store))
        assert await store.enter("assertion", "a", "j", UNTIL, NOW)
        assert "a restart forgets which tokens were used: file is not a database: remove it" in caplog.text
        path.unlink()
        # And goes on as soon as it can.
        assert await store.enter("assertion", "a", "j", UNTIL, NOW)
        assert not await store.enter("assertion", "a", "j", UNTIL, NOW)
    assert metrics.get_sample_value("hawse_seen_unwritten_total") == 1


async def test_a_missing_folder_refuses_no_token_until_it_is_back(tmp_path: Path) -> None:
    with closing(ReplayStore(tmp_path / "data" / "seen.db")) as store:
        assert await store.enter("assertion", "a", "j", UNTIL, NOW)
        assert store.unwritten == 1
        (tmp_path / "data").mkdir()
        assert [await store.enter("assertion", "a", "j", UNTIL, NOW) for _ in range(2)] == [True, False]
