from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from tests.tunnel.passes import counted_passes
from tunnel.turns import SPARE_FRAMES, TASKS_PER_PASS, Turns


async def test_of_tasks_that_are_woken_at_once_some_go_on_in_a_pass_and_then_the_next() -> None:
    common = Turns()
    count = 10 * TASKS_PER_PASS + 1
    went_on: list[int] = []

    async def go_on(number: int) -> None:
        if not common.admits():
            await common.wait()
        passes.note()
        went_on.append(number)

    with counted_passes() as passes:
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for number in range(count):
                    nursery.start_soon(go_on, number)
            # There is room again for the first ones.
            await wait_all_tasks_blocked()
    assert sorted(went_on) == sorted(2 * list(range(count)))
    assert passes.most == TASKS_PER_PASS


async def test_whoever_waits_for_room_may_be_cancelled() -> None:
    common = Turns()
    while common.admits():
        pass
    with trio.CancelScope() as scope:
        scope.cancel()
        await common.wait()
    await wait_all_tasks_blocked()
    assert common.admits()


def test_what_one_takes_beyond_what_all_have_in_common_is_taken_from_nobody() -> None:
    common = Turns()
    assert common.spare(0.0) == SPARE_FRAMES
    common.take(2 * SPARE_FRAMES)
    assert common.spare(0.0) == 0
