from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from audit.store import TrailMark
from auth.keys import SigningKey
from proxy.hub.store import directory as directory_module
from proxy.hub.store.clusters import RelayContact
from proxy.hub.store.directory import POLL_EVERY_S, open_directory
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.engines.errors import NotFoundError, StoreUnavailableError
from proxy.hub.store.store import Store
from tests.fakes.databases import run


def clock() -> float:
    return 1000.0


def enrol(store: Store) -> None:
    store.add_team("sre")
    store.add_agent("sre-1", owner="ada", teams=["sre"], key_hash="h1", key_hint="x")
    store.add_cluster("prod", relay_key=SigningKey.generate().public, teams=["sre"])


async def test_a_change_stands_in_the_snapshot_when_it_returns(database: Location) -> None:
    async with open_directory(database, org="main", clock=clock) as directory:
        before = directory.current
        await directory.change(enrol)
        assert directory.current is not before
        assert before.agents_by_name == {}  # whoever reads the old one sees one consistent state
        await directory.change(lambda store: store.lock_agent("sre-1"))
        assert not directory.current.agents_by_name["sre-1"].active


async def test_a_refused_change_leaves_the_snapshot_true(database: Location) -> None:
    def half(store: Store) -> None:
        store.add_team("kept")
        store.lock_agent("none")

    async with open_directory(database, org="main", clock=clock) as directory:
        with pytest.raises(NotFoundError):
            await directory.change(half)
        assert list(directory.current.teams_by_name) == ["kept"]


async def test_a_change_that_began_is_seen_even_when_its_caller_gives_up(database: Location) -> None:
    async with open_directory(database, org="main", clock=clock) as directory:
        with trio.CancelScope() as scope:

            def add(store: Store) -> None:
                trio.from_thread.run_sync(scope.cancel)
                store.add_team("sre")

            await directory.change(add)
        assert list(directory.current.teams_by_name) == ["sre"]


async def test_changes_take_turns(database: Location) -> None:
    running = 0

    def add(name: str) -> None:
        nonlocal running

        def mutation(store: Store) -> None:
            nonlocal running
            running += 1
            assert running == 1
            store.add_team(name)
            running -= 1

        nursery.start_soon(directory.change, mutation)

    async with open_directory(database, org="main", clock=clock) as directory:
        async with trio.open_nursery() as nursery:
            for number in range(8):
                add(f"team-{number}")
        assert len(directory.current.teams_by_name) == 8


async def test_use_is_written_in_batches_and_at_the_end(
    database: Location, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_directory(database, org="main", clock=clock) as directory:
        await directory.change(enrol)
        agent, key = directory.current.api_keys_by_hash["h1"]
        cluster = directory.current.clusters_by_name["prod"]
        await directory.change(
            lambda store: store.relay_connected(RelayContact(cluster.id, "pod-1", "b", "1", "a"))
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(directory.run_use_writer)
            directory.used.note_agent(agent, key, 1.0)
            directory.used.note_relay(cluster.id, "pod-1", 1500.0)
            assert await directory.read(Store.last_used) == {}
            await trio.sleep(31)
            while not await directory.read(Store.last_used):
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        directory.used.note_agent(agent, key, 2.0)
    async with open_directory(database, org="main", clock=clock) as directory:
        assert await directory.read(Store.last_used) == {agent.id: 2.0, key.id: 2.0}
        # As a hub does that has begun to listen.
        await directory.change(Store.close_relays)
        (relay,) = await directory.read(Store.relay_instances)
        # A hub that starts has no relays yet, whatever the last one left behind.
        assert (relay.last_seen_at, relay.disconnected_at) == (1500.0, 1500.0)


async def test_a_store_that_fails_stops_neither_the_writer_nor_the_end(
    database: Location, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_directory(database, org="main", clock=clock) as directory:
        await directory.change(enrol)
        run(database, "alter table agents rename to away")
        agent, key = directory.current.api_keys_by_hash["h1"]
        directory.used.note_agent(agent, key, 1.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(directory.run_use_writer)
            await trio.sleep(31)
            while not caplog.records:
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert directory.current.agents_by_name["sre-1"].active
        run(database, "alter table away rename to agents")
    assert all("cannot write the last-used times" in record.getMessage() for record in caplog.records)


async def test_a_store_that_cannot_be_looked_at_for_a_while_leaves_what_is_known(
    database: Location, autojump_clock: trio.testing.MockClock
) -> None:
    told = trio.Event()
    async with open_directory(database, org="main", clock=clock) as directory:
        await directory.change(enrol)
        directory.on_change(told.set)
        before = directory.current
        run(database, "alter table admin_tokens rename to away", "update directory set nonce = 'another'")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(directory.run_poll)
            await trio.sleep(2 * POLL_EVERY_S)
            while not directory.fault:
                await trio.testing.wait_all_tasks_blocked()
            assert directory.current is before
            assert not told.is_set()
            run(database, "alter table away rename to admin_tokens")
            await told.wait()
            assert directory.current is not before
            assert directory.fault == ""
            nursery.cancel_scope.cancel()


async def test_a_row_that_must_not_be_used_does_not_keep_a_lock_from_taking_effect(
    database: Location, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_directory(database, org="main", clock=clock) as directory:
        await directory.change(enrol)
        await directory.change(
            lambda store: store.add_agent("bad", owner="ada", teams=["sre"], key_hash="h2", key_hint="x")
        )
        run(database, "update agents set name = 'system:admin' where name = 'bad'")
        await directory.change(lambda store: store.lock_agent("sre-1"))
        assert not directory.current.agents_by_name["sre-1"].active
        assert list(directory.current.agents_by_name) == ["sre-1"]
        await directory.change(lambda store: store.unlock_agent("sre-1"))
        assert directory.current.agents_by_name["sre-1"].active
    # Told once, and not at every change.
    [told] = caplog.records
    assert "system:admin" in told.getMessage()


async def test_whoever_must_act_on_a_change_is_told_after_it_stands(database: Location) -> None:
    told: list[bool] = []
    async with open_directory(database, org="main", clock=clock) as directory:
        directory.on_change(lambda: told.append("sre-1" in directory.current.agents_by_name))
        await directory.change(enrol)
        assert told == [True]
        with pytest.raises(NotFoundError):
            await directory.change(lambda store: store.lock_agent("none"))
        await directory.read(Store.relay_instances)
        # Neither changed anything.
        assert told == [True]

        def half(store: Store) -> None:
            store.add_team("web")
            store.lock_agent("none")

        with pytest.raises(NotFoundError):
            await directory.change(half)
        assert told == [True, True]


async def test_use_reloads_nothing_at_any_hub(database: Location) -> None:
    told: list[str] = []
    async with (
        open_directory(database, org="main", clock=clock) as directory,
        open_directory(database, org="main", clock=clock) as other,
    ):
        await directory.change(enrol)
        agent, key = directory.current.api_keys_by_hash["h1"]
        cluster = directory.current.clusters_by_name["prod"]
        await trio.to_thread.run_sync(other._refresh)
        other._notify()
        assert other.current.version == directory.current.version
        before = directory.current, other.current
        directory.on_change(lambda: told.append("here"))
        other.on_change(lambda: told.append("there"))
        directory.used.note_agent(agent, key, 1.0)
        await directory.write_use()
        contact = RelayContact(cluster.id, "pod-1", "b", "1", "a")
        await directory.change(lambda store: store.relay_connected(contact))
        await directory.change(lambda store: store.relay_disconnected(cluster.id, "pod-1", "b"))
        await directory.change(Store.close_relays)
        for each in (directory, other):
            await trio.to_thread.run_sync(each._refresh)
            each._notify()
        assert directory.current is before[0]
        assert other.current is before[1]
        assert told == []
        assert await other.read(Store.last_used) == {agent.id: 1.0, key.id: 1.0}


async def test_a_snapshot_that_could_not_be_read_is_read_with_the_next_use(database: Location) -> None:
    told: list[bool] = []
    async with open_directory(database, org="main", clock=clock) as directory:
        await directory.change(enrol)
        agent, key = directory.current.api_keys_by_hash["h1"]
        directory.on_change(lambda: told.append(directory.current.agents_by_name["sre-1"].active))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Store, "snapshot", lambda store, before: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await directory.change(lambda store: store.lock_agent("sre-1"))
        assert told == []
        directory.used.note_agent(agent, key, 3.0)
        await directory.write_use()
        assert told == [False]


async def test_what_another_process_changes_is_seen_and_told_of(
    database: Location, autojump_clock: trio.testing.MockClock
) -> None:
    told = trio.Event()
    async with (
        open_directory(database, org="main", clock=clock) as directory,
        open_directory(database, org="main", clock=clock) as other,
        trio.open_nursery() as nursery,
    ):
        directory.on_change(told.set)
        nursery.start_soon(directory.run_poll)
        await trio.sleep(3 * POLL_EVERY_S)
        before = directory.current
        await other.change(lambda store: store.add_team("sre"))
        # No bound on it here: time that stands still for the threads jumps while they work.
        await told.wait()
        assert "sre" in directory.current.teams_by_name
        assert directory.current is not before
        # A change of its own is no news, and nothing is read again for it.
        await directory.change(lambda store: store.add_team("web"))
        mine = directory.current
        await trio.sleep(3 * POLL_EVERY_S)
        assert directory.current is mine
        nursery.cancel_scope.cancel()


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow, so that SQLite meets what it does on a full disk; reads go on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_revocation_stands_in_memory_until_the_store_can_take_it(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    settled: list[str] = []
    told: list[bool] = []
    async with open_directory(tmp_path / "hub.db", org="main", clock=clock) as directory:
        await directory.change(enrol)
        directory.on_change(lambda: told.append(directory.current.agents_by_name["sre-1"].active))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(directory.run_poll)
            with full_disk():
                with pytest.raises(StoreUnavailableError):
                    await directory.change(lambda store: store.lock_agent("sre-1"))
                assert directory.current.agents_by_name["sre-1"].active
                await directory.change_in_memory(
                    lambda store: store.lock_agent("sre-1"), lambda: settled.append("lock")
                )
                await directory.change_in_memory(
                    lambda store: store.revoke("prod", "sre"), lambda: settled.append("revoke")
                )
                assert not directory.current.agents_by_name["sre-1"].active
                assert directory.current.clusters_by_name["prod"].teams == ()
                assert told[-1] is False
                # What is asked of the store is asked of the same.
                found = await directory.read(lambda store: store.snapshot().agents_by_name["sre-1"].state)
                assert found == "locked"
                # A change that is refused waits for nothing.
                with pytest.raises(NotFoundError):
                    await directory.change_in_memory(
                        lambda store: store.lock_agent("none"), lambda: settled.append("none")
                    )
                await trio.sleep(10 * POLL_EVERY_S)
                assert not directory.current.agents_by_name["sre-1"].active
                # Nothing else passes what waits.
                with pytest.raises(StoreUnavailableError):
                    await directory.change(lambda store: store.unlock_agent("sre-1"))
                assert settled == []
            await trio.sleep(3 * POLL_EVERY_S)
            nursery.cancel_scope.cancel()
        assert settled == ["lock", "revoke"]
        assert directory._copy is None
        await directory.change(lambda store: store.unlock_agent("sre-1"))
        assert directory.current.agents_by_name["sre-1"].active
    with closing(Store(tmp_path / "hub.db", org="main", clock=clock)) as store:
        assert store.snapshot().clusters_by_name["prod"].teams == ()


async def test_the_next_change_writes_first_what_waits(database: Location) -> None:
    settled: list[str] = []
    async with open_directory(database, org="main", clock=clock) as directory:
        await directory.change(enrol)
        await directory.change_in_memory(Store.close_relays, lambda: settled.append("first"))
        await directory.change_in_memory(
            lambda store: store.lock_agent("sre-1"), lambda: settled.append("lock")
        )
        # As a hub that was replaced, and has the same in its memory, does meanwhile.
        with closing(Store(database, org="main", clock=clock)) as other:
            other.lock_agent("sre-1")
        await directory.change(lambda store: store.unlock_agent("sre-1"))
        assert settled == ["first", "lock"]
        assert directory.current.agents_by_name["sre-1"].active


async def test_of_revocations_that_wait_for_the_store_there_is_a_bound(
    database: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_module, "PENDING_MAX", 2)
    async with open_directory(database, org="main", clock=clock) as directory:
        for _ in range(2):
            await directory.change_in_memory(Store.close_relays, lambda: None)
        with pytest.raises(StoreUnavailableError, match="2 revocations wait for the store already"):
            await directory.change_in_memory(Store.close_relays, lambda: None)


async def test_the_store_learns_how_far_the_trail_has_come_and_never_less(database: Location) -> None:
    async with open_directory(database, org="main", clock=clock) as directory:
        assert directory.current.trail is None
        directory.used.note_trail(TrailMark("a", 5))
        # Whose trail that is was not said yet.
        await directory.write_use()
        assert directory.current.trail is None
        await directory.change(lambda store: store.accept_trail(TrailMark("a", 5)))
        told: list[bool] = []
        directory.on_change(lambda: told.append(True))
        for noted, known in ((7, 7), (6, 7), (9, 9)):
            directory.used.note_trail(TrailMark("a", noted))
            await directory.write_use()
            assert await directory.read(lambda store: store.snapshot().trail) == TrailMark("a", known)
        # No call is judged again for that.
        assert told == []
        # Another one was accepted meanwhile, by a process beside this one.
        with closing(Store(database, org="main", clock=clock)) as other:
            other.accept_trail(TrailMark("b", 1))
        directory.used.note_trail(TrailMark("a", 11))
    with closing(Store(database, org="main", clock=clock)) as store:
        assert store.snapshot().trail == TrailMark("b", 1)
        store.accept_trail(None)
        assert store.snapshot().trail is None
