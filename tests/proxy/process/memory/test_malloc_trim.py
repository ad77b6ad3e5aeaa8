from __future__ import annotations

import trio
import trio.testing

from proxy.process.memory.malloc_trim import (
    CHECK_S,
    COST_FACTOR,
    FALLEN_BLOCKS,
    IDLE_SHARE,
    WORK_S_MIN,
    TrimSchedule,
    trim_when_idle,
)


def test_not_while_there_is_much_to_do() -> None:
    schedule = TrimSchedule(0.0)
    busy_s = CHECK_S * IDLE_SHARE * 2
    assert [schedule.check(used_s, 0) for used_s in (busy_s, 2 * busy_s, 2 * busy_s)] == [False, False, True]


def test_not_before_there_was_some_work() -> None:
    schedule = TrimSchedule(0.0)
    assert not schedule.check(WORK_S_MIN * 0.9, 0)
    assert schedule.check(WORK_S_MIN, 0)
    schedule.trimmed(WORK_S_MIN, 0)
    assert not schedule.check(WORK_S_MIN * 1.9, 0)
    assert schedule.check(WORK_S_MIN * 2, 0)


def test_what_takes_long_is_done_seldom() -> None:
    schedule = TrimSchedule(0.0)
    assert schedule.check(1.0, 0)
    schedule.trimmed(1.1, 0)
    due_s = 1.1 + COST_FACTOR * 0.1
    assert not any(schedule.check(1.1 + tenths / 10, 0) for tenths in range(99))
    assert schedule.check(due_s + 0.001, 0)


def test_many_objects_that_are_gone_are_a_reason_soon_after_a_trim_that_took_long() -> None:
    schedule = TrimSchedule(0.0)
    assert schedule.check(1.0, 1_000_000)
    schedule.trimmed(1.1, 1_000_000)
    # More came, and some of them went.
    grown = 1_000_000 + FALLEN_BLOCKS
    assert not schedule.check(1.2, grown)
    assert not schedule.check(1.3, grown - FALLEN_BLOCKS + 1)
    assert schedule.check(1.4, grown - FALLEN_BLOCKS)
    schedule.trimmed(1.4, grown - FALLEN_BLOCKS)
    assert not schedule.check(1.45, grown - FALLEN_BLOCKS)
    # Not while there is much to do.
    assert not schedule.check(1.45 + 2 * CHECK_S * IDLE_SHARE, 0)


async def test_memory_is_trimmed_after_each_busy_period(autojump_clock: trio.testing.MockClock) -> None:
    trimmed_at: list[float] = []

    def worked_s() -> float:
        """Without a pause for half a minute, and again from the second minute on."""
        now = trio.current_time()
        return min(now, 30.0) + max(0.0, min(now, 150.0) - 120.0)

    def trim() -> None:
        trimmed_at.append(trio.current_time())

    with trio.move_on_after(300):
        await trim_when_idle(worked_s, trim, lambda: 0)
    assert trimmed_at == [40.0, 160.0]


async def test_memory_is_trimmed_after_each_wave_that_leaves(autojump_clock: trio.testing.MockClock) -> None:
    trimmed_at: list[float] = []
    trims = 0

    def used_s() -> float:
        """Hardly any, but a second for each trim."""
        return 1.0 + trims

    def blocks() -> int:
        """A third leaves at 25 s, and at 85 s."""
        now = trio.current_time()
        return FALLEN_BLOCKS * (3 - (now > 25) - (now > 85))

    def trim() -> None:
        nonlocal trims
        trims += 1
        trimmed_at.append(trio.current_time())

    with trio.move_on_after(300):
        await trim_when_idle(used_s, trim, blocks)
    assert trimmed_at == [30.0, 90.0]
