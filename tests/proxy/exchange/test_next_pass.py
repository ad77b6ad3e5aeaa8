from __future__ import annotations

from functools import partial

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.exchange.next_pass import NextPass
from tests.tunnel.passes import counted_passes


async def test_peers_take_turns_and_one_call_runs_in_a_pass() -> None:
    passes = NextPass()
    said: list[str] = []

    with counted_passes() as counted:

        def call(name: str) -> None:
            said.append(name)
            counted.note()

        for name in ("a1", "a2", "a3", "b1", "c1", "b2"):
            passes.soon(name[0], partial(call, name))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(passes.run)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert said == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert counted.most == 1


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
