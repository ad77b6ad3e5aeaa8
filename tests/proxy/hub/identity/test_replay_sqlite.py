"""What only a file of used tokens does: several processes make it, and no failure of it refuses a token."""

from __future__ import annotations

import logging
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from tests.fakes.replays import open_replays

NOW = 1_800_000_000.0
UNTIL = NOW + 70.0


async def test_a_file_that_another_process_makes_at_the_same_time_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "seen.db"
    async with open_replays(path) as store:
        with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
            other.execute("BEGIN IMMEDIATE")
            other.execute("CREATE TABLE made (at_once INTEGER)")
            monkeypatch.setattr(
                "proxy.hub.identity.replay_sqlite.time.sleep", lambda _: other.execute("COMMIT")
            )
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

    async with open_replays(path) as store:
        with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
            other.execute("BEGIN IMMEDIATE")
            other.execute("CREATE TABLE made (at_once INTEGER)")
            monkeypatch.setattr("proxy.hub.identity.replay_sqlite.BUSY_TIMEOUT_S", 0.0)
            monkeypatch.setattr("proxy.hub.identity.replay_sqlite.time.sleep", tried_again)
            assert await store.enter("assertion", "a", "j", UNTIL, NOW)
            assert store.unwritten == 1


async def test_what_has_expired_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "seen.db"
    async with open_replays(path) as store:
        for number in range(50):
            await store.enter("assertion", "a", str(number), UNTIL, NOW)
        await store.enter("assertion", "a", "later", UNTIL + 70, UNTIL)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM seen").fetchone() == (1,)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_an_unwritable_file_refuses_no_token_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "seen.db"
    path.write_bytes(b"this is no database" * 100)
    async with open_replays(path) as store:
        with caplog.at_level(logging.WARNING):
            assert await store.enter("assertion", "a", "j", UNTIL, NOW)
        assert "a restart forgets which tokens were used: file is not a database: remove it" in caplog.text
        path.unlink()
        # And goes on as soon as it can.
        assert await store.enter("assertion", "a", "j", UNTIL, NOW)
        assert not await store.enter("assertion", "a", "j", UNTIL, NOW)
        assert store.unwritten == 1


async def test_a_missing_folder_refuses_no_token_until_it_is_back(tmp_path: Path) -> None:
    async with open_replays(tmp_path / "data" / "seen.db") as store:
        assert await store.enter("assertion", "a", "j", UNTIL, NOW)
        assert store.unwritten == 1
        (tmp_path / "data").mkdir()
        assert [await store.enter("assertion", "a", "j", UNTIL, NOW) for _ in range(2)] == [True, False]
