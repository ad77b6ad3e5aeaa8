from __future__ import annotations

import time
from functools import partial

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.exchange.next_pass import NextPass
from tests.tunnel.passes import counted_passes
from tunnel.net.fairness import CHUNK_S, TASKS_PER_PASS, fairness


async def test_calls_use_the_budget_of_a_pass_and_peers_alternate(mock_clock: MockClock) -> None:
    passes = NextPass()
    said: list[str] = []

    with counted_passes() as counted:

        def call(name: str) -> None:
            said.append(name)
            counted.note()

        names = [f"a{number}" for number in range(3 * TASKS_PER_PASS)]
        for name in (*names, "b0", "c0", "b1"):
            passes.soon(name[0], partial(call, name))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(passes.run)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert said == ["a0", "b0", "c0", "a1", "b1", *names[2:]]
    assert counted.most == TASKS_PER_PASS


async def test_one_call_runs_in_a_pass_also_where_tasks_use_up_the_budget(mock_clock: MockClock) -> None:
    passes, common = NextPass(), fairness()
    ran = 0

    async def compete() -> None:
        while True:
            while common.admits():
                pass
            await common.wait("others")

    with counted_passes() as counted:
        async with trio.open_nursery() as nursery:
            for _ in range(2 * TASKS_PER_PASS):
                nursery.start_soon(compete)
            for _ in range(10):
                await trio.lowlevel.checkpoint()
            nursery.start_soon(passes.run)
            for _ in range(50):
                passes.soon("peer", counted.note)
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            ran = counted.noted.total()
            nursery.cancel_scope.cancel()
    assert ran == 50
    assert counted.most == 1


async def test_a_long_call_is_the_last_one_of_its_pass() -> None:
    passes = NextPass()

    with counted_passes() as counted:

        def call() -> None:
            counted.note()
            ends_at = time.perf_counter() + CHUNK_S
            while time.perf_counter() < ends_at:
                pass

        for number in range(4):
            passes.soon(number, call)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(passes.run)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert counted.noted.total() == 4
    assert counted.most == 1


async def test_calls_that_come_due_together_use_the_budget_of_a_pass(autojump_clock: MockClock) -> None:
    passes = NextPass()
    with counted_passes() as counted:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(passes.run)
            for _ in range(3 * TASKS_PER_PASS):
                passes.later(5, counted.note)
            await trio.sleep(6)
            nursery.cancel_scope.cancel()
    assert counted.noted.total() == 3 * TASKS_PER_PASS
    assert counted.most == TASKS_PER_PASS


async def test_a_call_that_is_given_within_a_call_runs_in_a_later_pass() -> None:
    passes = NextPass()
    said: list[int] = []

    def call(number: int) -> None:
        said.append(number)
        if number:
            passes.soon("peer", partial(call, number - 1))
            assert said[-1] == number

    async with trio.open_nursery() as nursery:
        nursery.start_soon(passes.run)
        passes.soon("peer", partial(call, 10_000))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert said == list(range(10_000, -1, -1))


async def test_calls_come_due_in_their_order_also_beside_others(autojump_clock: MockClock) -> None:
    passes = NextPass()
    said: list[tuple[str, float]] = []

    def call(name: str) -> None:
        said.append((name, trio.current_time()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(passes.run)
        passes.later(5, partial(call, "third"))
        await wait_all_tasks_blocked()
        passes.later(1, partial(call, "first"))
        passes.later(1, partial(call, "second"))
        passes.soon("peer", partial(call, "soon"))
        await trio.sleep(10)
        passes.later(0, partial(call, "now"))
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert said == [("soon", 0), ("first", 1), ("second", 1), ("third", 5), ("now", 10)]
