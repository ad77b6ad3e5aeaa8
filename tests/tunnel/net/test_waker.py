from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tunnel.net.waker import Waker


async def test_a_parked_task_waits_until_it_is_woken() -> None:
    spot, woken = Waker("taken"), []

    async def wait() -> None:
        await spot.park()
        woken.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert spot.task is not None
        assert not woken
        spot.unpark()
        assert spot.task is None
    assert woken


async def test_waking_without_a_waiting_task_is_not_remembered() -> None:
    spot = Waker("taken")
    spot.unpark()
    with trio.move_on_after(0) as scope:
        await spot.park()
    assert scope.cancelled_caught


async def test_a_second_task_is_a_bug_of_the_caller() -> None:
    spot = Waker("another task waits here")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(spot.park)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError, match="another task waits here"):
            await spot.park()
        spot.unpark()


async def test_a_cancelled_wait_leaves_the_spot_free() -> None:
    spot = Waker("taken")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(spot.park)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert spot.task is None
    # No task is woken in place of the one that left.
    spot.unpark()
