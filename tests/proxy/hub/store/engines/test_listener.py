from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock

from proxy.hub.store import directory as directory_module
from proxy.hub.store.directory import open_directory
from proxy.hub.store.engines import listener as listener_module
from proxy.hub.store.engines.listener import listen
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.store import Store
from proxy.hub.store.versions.version import CHANNEL
from tests.fakes.databases import run
from tests.postgres import PostgresServer


@attrs.define
class Heard:
    """What a listener has heard."""

    times: int = 0
    _again: trio.Event = attrs.Factory(trio.Event)

    def __call__(self) -> None:
        self.times += 1
        self._again.set()

    async def wait(self) -> None:
        """Wait for the next one, if it has not come since the last wait."""
        with trio.fail_after(10):
            await self._again.wait()
        self._again = trio.Event()


@asynccontextmanager
async def listening(address: PostgresAddress) -> AsyncIterator[Heard]:
    heard = Heard()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen, address, CHANNEL, heard)
        # With the connection, since what was announced before is lost.
        await heard.wait()
        yield heard
        nursery.cancel_scope.cancel()


async def test_a_change_of_another_process_is_heard_at_once(in_postgres: PostgresAddress) -> None:
    with closing(Store(in_postgres, org="main", clock=float)) as other:
        async with listening(in_postgres) as heard:
            for team in ("sre", "web"):
                await trio.to_thread.run_sync(other.add_team, team)
                await heard.wait()
            assert heard.times == 3
            # What is no change announces nothing.
            await trio.to_thread.run_sync(other.close_relays)
            run(in_postgres, "notify other")
            await trio.sleep(0.02)
            assert heard.times == 3


async def test_many_announcements_together_are_heard_as_few(in_postgres: PostgresAddress) -> None:
    async with listening(in_postgres) as heard:
        await trio.to_thread.run_sync(
            run, in_postgres, f"select pg_notify('{CHANNEL}', n::text) from generate_series(1, 1000) n"
        )
        await heard.wait()
        assert heard.times < 1 + 1000 / 10


def end_connections(postgres: PostgresServer) -> None:
    postgres.execute("select pg_terminate_backend(pid) from pg_stat_activity where query like 'LISTEN%'")


async def test_a_lost_connection_is_made_again(
    postgres: PostgresServer, in_postgres: PostgresAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "RECONNECT_S", 0.01)
    async with listening(in_postgres) as heard:
        for _ in range(2):
            end_connections(postgres)
            await heard.wait()
        run(in_postgres, f"notify {CHANNEL}")
        await heard.wait()


async def test_attempts_to_connect_are_spaced_further_and_further(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, tmp_path: Path
) -> None:
    waits: list[float] = []
    sleep = trio.sleep

    async def note(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 8:
            scope.cancel()
        await sleep(seconds)

    monkeypatch.setattr(listener_module.trio, "sleep", note)
    nowhere = PostgresAddress(f"postgresql://hawse@/hawse?host={tmp_path}")
    with trio.CancelScope() as scope:
        await listen(nowhere, CHANNEL, lambda: None)
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]


async def test_a_server_that_does_not_answer_never_blocks_the_loop(
    postgres: PostgresServer, in_postgres: PostgresAddress
) -> None:
    heard, passes = Heard(), 0
    async with trio.open_nursery() as nursery:
        postgres.process.send_signal(signal.SIGSTOP)
        try:
            nursery.start_soon(listen, in_postgres, CHANNEL, heard)
            with trio.move_on_after(0.05):
                while True:
                    await trio.sleep(0.001)
                    passes += 1
        finally:
            postgres.process.send_signal(signal.SIGCONT)
        # It waited for the server all the time.
        assert heard.times == 0
        assert passes > 5
        await heard.wait()
        nursery.cancel_scope.cancel()


async def test_an_announced_change_counts_without_the_poll(
    in_postgres: PostgresAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_module, "POLL_EVERY_S", 3600.0)
    with closing(Store(in_postgres, org="main", clock=float)) as other:
        async with (
            open_directory(in_postgres, org="main", clock=float) as directory,
            trio.open_nursery() as nursery,
        ):
            changed = trio.Event()
            directory.on_change(changed.set)
            nursery.start_soon(directory.run_poll)
            heard = Heard()

            def hear() -> None:
                directory.poll_soon()
                heard()

            nursery.start_soon(listen, in_postgres, CHANNEL, hear)
            await heard.wait()
            await trio.to_thread.run_sync(other.add_team, "sre")
            with trio.fail_after(10):
                await changed.wait()
            assert "sre" in directory.current.teams_by_name
            nursery.cancel_scope.cancel()
