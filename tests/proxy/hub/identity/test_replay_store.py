"""The store of used tokens on both engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from proxy.hub.identity.replay_store import (
    BATCH_USES_MAX,
    LAST_ANSWER_S,
    ReplayStore,
    Use,
    open_replay_store,
)
from proxy.hub.store.engines.engine import Location
from tests.fakes.replays import HeldTable, open_replays, table_at

# Beyond the clocks of all databases, so that no row expires.
NOW = 4_000_000_000.0
UNTIL = NOW + 70.0


@pytest.fixture
def place(database: Location, tmp_path: Path) -> Location:
    """Where the used tokens are, on each engine in turn."""
    return tmp_path / "seen.db" if isinstance(database, Path) else database


async def test_two_processes_on_one_place_take_a_token_once(place: Location) -> None:
    """As an old hub and the one that takes its place, or two hubs on one database."""
    async with open_replays(place) as old, open_replays(place) as new:
        first: list[bool] = []

        async def use(store: ReplayStore, jti: str) -> None:
            first.append(await store.enter("assertion", "a1", jti, UNTIL, NOW))

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(use, old, f"j{number}")
                nursery.start_soon(use, new, f"j{number}")
        assert (first.count(True), first.count(False)) == (100, 100)


def test_every_replay_at_another_store_is_refused(place: Location) -> None:
    here, there = table_at(place), table_at(place)
    tokens = [number.to_bytes(32, "big") for number in range(10_000)]
    for table, fresh in ((here, True), (there, False)):
        found: list[bool | None] = []
        for start in range(0, len(tokens), BATCH_USES_MAX):
            batch = [Use(token, UNTIL, NOW) for token in tokens[start : start + BATCH_USES_MAX]]
            table.write(batch)
            found += [use.fresh for use in batch]
        assert found == [fresh] * len(tokens)
        table.close()


async def test_tokens_are_distinct_by_kind_owner_and_jti(place: Location) -> None:
    async with open_replays(place) as store:
        jtis = ["j", "k", "\ud800", "x" * 100_000]
        tokens = [("hello", "a", "j"), ("assertion", "b", "j"), *(("assertion", "a", jti) for jti in jtis)]
        assert [await store.enter(*token, UNTIL, NOW) for token in tokens] == [True] * len(tokens)
        assert [await store.enter(*token, UNTIL, NOW) for token in tokens] == [False] * len(tokens)


async def test_many_at_once_share_their_writes_and_none_is_taken_twice(place: Location) -> None:
    held = HeldTable(table_at(place))
    first: list[bool] = []

    async def use(jti: str) -> None:
        first.append(await store.enter("assertion", "a", jti, UNTIL, NOW))

    async with open_replay_store(held) as store, trio.open_nursery() as nursery:
        nursery.start_soon(use, "first")
        await held.reached.wait()
        for number in range(200):
            nursery.start_soon(use, str(number % 150))
        await trio.testing.wait_all_tasks_blocked()
        held.go.set()
    assert held.batches == [1, 200]
    assert (first.count(True), first.count(False)) == (151, 50)


async def test_a_batch_is_bounded(place: Location) -> None:
    held = HeldTable(table_at(place))
    async with open_replay_store(held) as store, trio.open_nursery() as nursery:
        nursery.start_soon(store.enter, "assertion", "a", "first", UNTIL, NOW)
        await held.reached.wait()
        for number in range(BATCH_USES_MAX + 1):
            nursery.start_soon(store.enter, "assertion", "a", str(number), UNTIL, NOW)
        await trio.testing.wait_all_tasks_blocked()
        held.go.set()
    assert held.batches == [1, BATCH_USES_MAX, 1]


async def test_uses_cancelled_before_their_write_cost_none(place: Location) -> None:
    held = HeldTable(table_at(place))
    async with open_replay_store(held) as store, trio.open_nursery() as nursery:
        nursery.start_soon(store.enter, "assertion", "a", "first", UNTIL, NOW)
        await held.reached.wait()
        with trio.move_on_after(60) as leaving:
            async with trio.open_nursery() as others:
                for number in range(20):
                    others.start_soon(store.enter, "assertion", "a", str(number), UNTIL, NOW)
                await trio.testing.wait_all_tasks_blocked()
                leaving.cancel()
        held.go.set()
        for number in range(20):
            assert await store.enter("assertion", "a", str(number), UNTIL, NOW)
            assert not await store.enter("assertion", "a", str(number), UNTIL, NOW)


async def test_a_use_cancelled_during_its_write_is_used_up_and_delays_no_other(place: Location) -> None:
    held = HeldTable(table_at(place))
    async with open_replay_store(held) as store:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.enter, "assertion", "a", "first", UNTIL, NOW)
            await held.reached.wait()
            nursery.cancel_scope.cancel()
        held.go.set()
        assert await store.enter("assertion", "a", "another", UNTIL, NOW)
        assert not await store.enter("assertion", "a", "first", UNTIL, NOW)


async def test_work_in_other_threads_holds_up_no_use(place: Location) -> None:
    others = trio.to_thread.current_default_thread_limiter()
    others.total_tokens = 1
    await others.acquire_on_behalf_of("a look-up that hangs")
    async with open_replays(place) as store:
        with trio.fail_after(10):
            assert await store.enter("assertion", "a", "j", UNTIL, NOW)


async def test_a_writer_that_hangs_holds_up_the_end_for_a_bounded_time(
    place: Location, mock_clock: trio.testing.MockClock
) -> None:
    held, leaving, ended = HeldTable(table_at(place)), trio.Event(), trio.Event()

    async def serve() -> None:
        async with open_replay_store(held) as store, trio.open_nursery() as uses:
            uses.start_soon(store.enter, "assertion", "a", "first", UNTIL, NOW)
            await held.reached.wait()
            uses.cancel_scope.cancel()
            leaving.set()
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await leaving.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert not ended.is_set()
        mock_clock.jump(LAST_ANSWER_S)
        await ended.wait()
    held.go.set()
    assert held.closed.wait(30)


async def test_a_bug_in_the_table_ends_the_hub(place: Location) -> None:
    class Broken(HeldTable):
        def write(self, uses: Sequence[Use]) -> None:
            raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError):
        async with open_replay_store(Broken(table_at(place))) as store:
            await store.enter("assertion", "a", "j", UNTIL, NOW)
