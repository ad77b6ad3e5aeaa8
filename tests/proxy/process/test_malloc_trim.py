from __future__ import annotations

import trio
import trio.testing

from proxy.process.malloc_trim import (
    CHECK_S,
    COST_FACTOR,
    IDLE_SHARE,
    WORK_S_MIN,
    TrimSchedule,
    trim_when_idle,
)


def test_not_while_there_is_much_to_do() -> None:
    schedule = TrimSchedule(0.0)
    busy_s = CHECK_S * IDLE_SHARE * 2
    assert [schedule.check(used_s) for used_s in (busy_s, 2 * busy_s, 2 * busy_s)] == [False, False, True]


def test_not_before_there_was_some_work() -> None:
    schedule = TrimSchedule(0.0)
    assert not schedule.check(WORK_S_MIN * 0.9)
    assert schedule.check(WORK_S_MIN)
    schedule.trimmed(WORK_S_MIN)
    assert not schedule.check(WORK_S_MIN * 1.9)
    assert schedule.check(WORK_S_MIN * 2)


def test_what_takes_long_is_done_seldom() -> None:
    schedule = TrimSchedule(0.0)
    assert schedule.check(1.0)
    schedule.trimmed(1.1)
    due_s = 1.1 + COST_FACTOR * 0.1
    assert not any(schedule.check(1.1 + tenths / 10) for tenths in range(99))
    assert schedule.check(due_s + 0.001)


async def test_memory_is_trimmed_after_each_busy_period(autojump_clock: trio.testing.MockClock) -> None:
    trimmed_at: list[float] = []

    def worked_s() -> float:
        """Without a pause for half a minute, and again from the second minute on."""
        now = trio.current_time()
        return min(now, 30.0) + max(0.0, min(now, 150.0) - 120.0)

    def trim() -> None:
        trimmed_at.append(trio.current_time())

    with trio.move_on_after(300):
        await trim_when_idle(worked_s, trim)
    assert trimmed_at == [40.0, 160.0]
