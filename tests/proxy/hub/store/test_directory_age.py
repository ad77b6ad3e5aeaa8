"""What confirms the snapshot of a directory, and what does not."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from proxy.hub.store import directory as directory_module
from proxy.hub.store.database import Database
from proxy.hub.store.directory import POLL_EVERY_S, POLL_GAP_S, Directory, open_directory
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.engines.errors import ConflictError, StoreUnavailableError
from proxy.hub.store.store import Store
from proxy.hub.store.versions.lineage import Lineage
from proxy.hub.store.versions.snapshot_age import SnapshotAge
from proxy.hub.store.versions.version import Version
from tests.fakes.databases import full_disk, lose, run

STALE_S = 10.0


@attrs.define
class Clock:
    """A monotonic clock that stands still between its steps."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def monotonic() -> Clock:
    return Clock()


@pytest.fixture
async def directory(database: Location, monotonic: Clock) -> AsyncIterator[Directory]:
    async with opened(database, monotonic) as directory:
        await directory.change(lambda store: store.add_team("sre"))
        yield directory


@asynccontextmanager
async def opened(database: Location, monotonic: Callable[[], float]) -> AsyncIterator[Directory]:
    async with open_directory(
        database, org="main", clock=float, stale_s=STALE_S, stale_streams_s=60, monotonic=monotonic
    ) as directory:
        yield directory


async def poll(directory: Directory) -> None:
    """Poll once, as `run_poll` does."""
    try:
        await trio.to_thread.run_sync(directory._refresh)
    finally:
        directory._notify()


def change_elsewhere(database: Location, change: Callable[[Store], object]) -> None:
    """Make a change as another process does."""
    with closing(Store(database, org="main", clock=float)) as store:
        change(store)


async def test_a_poll_confirms_as_of_the_moment_in_which_it_was_sent(
    directory: Directory, monotonic: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = Database.version

    def take_long(store: Database) -> Version:
        found = version(store)
        monotonic.now_s += 3
        return found

    monkeypatch.setattr(Database, "version", take_long)
    monotonic.now_s += 5
    assert directory.age_s == 5
    await poll(directory)
    assert directory.age_s == 3


async def test_a_change_confirms_too(directory: Directory, monotonic: Clock) -> None:
    monotonic.now_s += 5
    await directory.change(lambda store: store.add_team("web"))
    assert directory.age_s == 0
    monotonic.now_s += 5
    with pytest.raises(ConflictError):
        await directory.change(lambda store: store.add_team("web"))
    assert directory.age_s == 0


async def test_a_new_snapshot_is_confirmed_only_after_the_calls_are_judged_by_it(
    directory: Directory, database: Location, monotonic: Clock
) -> None:
    judged: list[tuple[bool, float]] = []
    directory.on_change(lambda: judged.append(("web" in directory.current.teams_by_name, directory.age_s)))
    monotonic.now_s += 5
    change_elsewhere(database, lambda store: store.add_team("web"))
    await poll(directory)
    assert judged == [(True, 5.0)]
    assert directory.age_s == 0


async def test_a_poll_whose_reading_fails_confirms_nothing(
    directory: Directory, database: Location, monotonic: Clock
) -> None:
    run(database, "alter table admin_tokens rename to away", "update directory set nonce = 'another'")
    before = directory.current
    for _ in range(3):
        monotonic.now_s += 3
        with pytest.raises(StoreUnavailableError):
            await poll(directory)
    assert (directory.age_s, directory.refusal()) == (9, "")
    monotonic.now_s += 1
    assert "since 10 s" in directory.refusal()
    assert directory.current is before
    run(database, "alter table away rename to admin_tokens")
    await poll(directory)
    assert (directory.age_s, directory.refusal()) == (0, "")
    assert directory.current is not before


async def test_a_database_without_its_version_confirms_nothing_and_takes_no_change(
    directory: Directory, database: Location, monotonic: Clock
) -> None:
    # As in the middle of a pg_restore.
    version = directory.current.version
    run(database, "create table kept as select * from directory", "delete from directory")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(directory.run_poll)
        with trio.fail_after(5):
            while not directory.fault:  # noqa: ASYNC110 - a thread decides it
                await trio.sleep(0.01)
        assert "finish the restore" in directory.fault
        for change in (
            lambda store: store.add_team("web"),
            lambda store: store.accept_loss(version),
        ):
            with pytest.raises(StoreUnavailableError, match="finish the restore"):
                await directory.change(change)
        monotonic.now_s += STALE_S
        assert directory.refusal() != ""
        assert run(database, "select name from teams") == [("sre",)]
        run(database, "insert into directory select * from kept", "drop table kept")
        await poll(directory)
        assert directory.refusal() == ""
        await directory.change(lambda store: store.add_team("web"))
        nursery.cancel_scope.cancel()


async def test_after_an_accepted_loss_only_the_snapshot_that_has_the_acceptance_serves(
    database: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_directory(database, org="main", clock=float, lineage=Lineage(None)) as directory:
        before = directory.current.version
        await directory.change(lambda store: store.add_team("lost"))
        applied = directory.current.version
        lose(database, back_to=before)
        await poll(directory)
        assert directory.refusal() != ""
        serves: list[bool] = []
        withhold = SnapshotAge.withhold

        def look(age: SnapshotAge, reason: str) -> None:
            withhold(age, reason)
            serves.append(not directory.refusal() and "again" in directory.current.teams_by_name)

        monkeypatch.setattr(SnapshotAge, "withhold", look)
        # The operator repeats what was lost, and accepts, between two readings.
        change_elsewhere(database, lambda store: store.add_team("again"))
        change_elsewhere(database, lambda store: store.accept_loss(applied))
        await poll(directory)
        assert serves == [True]


async def test_a_reading_that_hangs_confirms_nothing_until_it_is_applied(
    directory: Directory, database: Location, monotonic: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, goes_on = trio.Event(), threading.Event()
    snapshot = Store.snapshot

    def hang(store: Store, before: object = None) -> object:
        trio.from_thread.run_sync(hangs.set)
        assert goes_on.wait(10)
        return snapshot(store, None)

    monkeypatch.setattr(Store, "snapshot", hang)
    change_elsewhere(database, lambda store: store.add_team("web"))
    async with trio.open_nursery() as nursery:
        directory.poll_soon()
        nursery.start_soon(directory.run_poll)
        await hangs.wait()
        monotonic.now_s += 9.5
        assert directory.refusal() == ""
        monotonic.now_s += 0.5
        assert directory.refusal() != ""
        changed = trio.Event()
        directory.on_change(changed.set)
        goes_on.set()
        await changed.wait()
        await trio.testing.wait_all_tasks_blocked()
        # It was sent before it hung, so only the next poll confirms.
        assert "web" in directory.current.teams_by_name
        assert directory.refusal() != ""
        nursery.cancel_scope.cancel()
    await poll(directory)
    assert directory.refusal() == ""


async def test_a_change_that_waits_delays_no_poll(
    directory: Directory, database: Location, monotonic: Clock
) -> None:
    holds, goes_on = trio.Event(), threading.Event()

    def wait(store: Store) -> None:
        # It holds the lock of all changes.
        with store._change():
            trio.from_thread.run_sync(holds.set)
            assert goes_on.wait(10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(directory.change, wait)
        await holds.wait()
        nursery.start_soon(directory.change, lambda store: store.add_team("queued"))
        monotonic.now_s += 9
        await poll(directory)
        assert directory.age_s == 0
        goes_on.set()
    assert "queued" in directory.current.teams_by_name


async def test_a_full_disk_confirms_and_revocations_are_in_force(
    tmp_path: Path, monotonic: Clock, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(tmp_path / "hub.db", monotonic) as directory:
        await directory.change(lambda store: store.add_team("sre"))
        with full_disk():
            for in_memory in (False, True):
                if in_memory:
                    await directory.change_in_memory(lambda store: store.remove_team("sre"), lambda: None)
                    assert "sre" not in directory.current.teams_by_name
                monotonic.now_s += 9
                await poll(directory)
                assert directory.age_s == 0
                assert ("sre" in directory.current.teams_by_name) is not in_memory
        async with trio.open_nursery() as nursery:
            nursery.start_soon(directory.run_poll)
            while directory._copy is not None:  # noqa: ASYNC110 - a thread decides it
                await trio.sleep(POLL_EVERY_S)
            nursery.cancel_scope.cancel()
        monotonic.now_s += 1
        await poll(directory)
        assert (directory.age_s, list(directory.current.teams_by_name)) == (0, [])


async def test_revocations_in_memory_are_confirmed_only_while_the_store_has_no_other_change(
    directory: Directory, database: Location, monotonic: Clock
) -> None:
    await directory.change_in_memory(lambda store: store.remove_team("sre"), lambda: None)
    monotonic.now_s += 5
    await poll(directory)
    assert directory.age_s == 0
    change_elsewhere(database, lambda store: store.add_team("web"))
    monotonic.now_s += 5
    await poll(directory)
    # What is in force lacks that change.
    assert directory.age_s == 5
    assert list(directory.current.teams_by_name) == []
    await trio.to_thread.run_sync(directory._write_pending)
    directory._notify()
    assert directory.age_s == 0
    assert list(directory.current.teams_by_name) == ["web"]


@contextmanager
def counted_polls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The times of the polls, which read nothing."""
    polls: list[float] = []

    async def run_sync(sync_fn: Callable[[], None], *, limiter: trio.CapacityLimiter) -> None:
        assert sync_fn.__name__ == "_refresh"
        polls.append(trio.current_time())

    with monkeypatch.context() as patched:
        patched.setattr(directory_module.trio.to_thread, "run_sync", run_sync)
        yield polls


async def test_an_announced_change_is_polled_at_once_and_many_have_a_bound(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path / "hub.db", Clock()) as directory:
        with counted_polls(monkeypatch) as polls:
            async with trio.open_nursery() as nursery:
                begin = trio.current_time()
                nursery.start_soon(directory.run_poll)
                await trio.sleep(0.2)
                directory.poll_soon()
                await trio.sleep(0.01)
                assert [round(at - begin, 3) for at in polls] == [0.2]
                # Soon after that one.
                directory.poll_soon()
                await trio.sleep(2)
                # Without an announcement, at the usual interval.
                assert [round(at - begin, 3) for at in polls] == [0.2, 0.3, 0.8, 1.3, 1.8]
                polls.clear()
                for _ in range(1000):
                    directory.poll_soon()
                    await trio.sleep(0.001)
                assert 1 / POLL_GAP_S - 1 <= len(polls) <= 1 / POLL_GAP_S + 1
                nursery.cancel_scope.cancel()
    assert POLL_GAP_S < POLL_EVERY_S
