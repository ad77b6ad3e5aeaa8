"""What the hub does at each age of its snapshot, on virtual time."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from proxy.hub.calls.live import LiveCalls
from proxy.hub.calls.outcome import CloseReason
from proxy.hub.health.stale_watch import CHECK_S, StaleWatch
from proxy.hub.store.versions.applied import Applied
from proxy.hub.store.versions.snapshot_age import SnapshotAge
from proxy.hub.store.versions.version import Version
from tests.proxy.hub.calls.fake_live_calls import exchanging_call, live_call


class World:
    """A directory that is confirmed only by the test, and its watch."""

    def __init__(self, nursery: trio.Nursery, stale_s: float = 10) -> None:
        age = SnapshotAge(trio.current_time(), stale_s, 60)
        self.directory = SimpleNamespace(age=age, fault="", applied=Applied(age, Version(1, "a")))
        self.live = LiveCalls(lambda live: None)
        self.forwarded: list[str] = []
        """Why the calls of other hubs were ended."""
        watch = StaleWatch(self.directory, self.live, trio.current_time, self.end_forwarded)  # type: ignore[arg-type]
        nursery.start_soon(watch.run)

    async def end_forwarded(self, reason: str) -> int:
        self.forwarded.append(reason)
        return 0

    def confirm(self) -> None:
        self.directory.age.confirm(trio.current_time())


async def test_what_runs_ends_at_its_age_and_not_before(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        begun, client, relay = exchanging_call(begun=True)
        world.live.enter(begun)
        waiting = live_call(2)
        world.live.enter(waiting)
        await trio.sleep(59.9)
        assert begun.ended is waiting.ended is None
        assert not world.forwarded
        await trio.sleep(0.1 + CHECK_S)
        for live in (begun, waiting):
            assert live.ended is not None
            assert live.ended.close_reason is CloseReason.REVOKED
            assert live.ended.unavailable
            assert "60 s (database.stale_streams_s)" in live.ended.reason
        assert relay.cuts
        assert client.cuts
        assert "60 s (database.stale_streams_s)" in world.forwarded[0]
        # What enters now is to be refused by admission; it is ended all the same.
        late = live_call(3)
        world.live.enter(late)
        await trio.sleep(2 * CHECK_S)
        assert late.ended is not None
        nursery.cancel_scope.cancel()


async def test_a_database_that_comes_back_in_time_ends_nothing(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        live = live_call()
        world.live.enter(live)
        for _ in range(5):
            await trio.sleep(59)
            world.confirm()
        await trio.sleep(1)
        assert live.ended is None
        nursery.cancel_scope.cancel()


async def test_each_stage_is_logged_once(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    def logged() -> list[tuple[int, str]]:
        found = [(record.levelno, record.getMessage()) for record in caplog.records]
        caplog.clear()
        return found

    async with trio.open_nursery() as nursery:
        world = World(nursery)
        for _ in range(100):
            await trio.sleep(4.9)
            world.confirm()
        assert logged() == []
        world.directory.fault = "no connection"
        await trio.sleep(9.9)
        assert logged() == [
            (
                logging.WARNING,
                "the database has not confirmed the hub's state for 5 s (no connection); "
                "after 10 s all calls are refused (database.stale_s)",
            )
        ]
        await trio.sleep(40)
        [(level, text)] = logged()
        assert (level, text) == (
            logging.ERROR,
            "all calls are refused: this hub cannot confirm its state with the database since 10 s "
            "(database.stale_s is 10)",
        )
        await trio.sleep(30)
        # Nothing ran.
        assert logged() == []
        world.confirm()
        await trio.sleep(1)
        away_s = 9.9 + 40 + 30
        text = f"the database has confirmed the hub's state again, after {away_s:.0f} s"
        assert logged() == [(logging.WARNING, text)]
        nursery.cancel_scope.cancel()


async def test_a_process_that_was_stopped_acts_with_its_first_timer(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        live = live_call()
        world.live.enter(live)
        await trio.testing.wait_all_tasks_blocked()
        # No timer has run meanwhile.
        autojump_clock.jump(70)
        await trio.sleep(0.01)
        assert live.ended is not None
        nursery.cancel_scope.cancel()
