from __future__ import annotations

import trio
import trio.testing

from proxy.process.malloc_trim import (
    LEAST_S,
    LOOK_S,
    QUIET_SHARE,
    TIMES_ITS_COST,
    Quiet,
    give_back_when_quiet,
)


def test_not_while_there_is_much_to_do() -> None:
    quiet = Quiet(0.0)
    busy_s = LOOK_S * QUIET_SHARE * 2
    assert [quiet.look(used_s) for used_s in (busy_s, 2 * busy_s, 2 * busy_s)] == [False, False, True]


def test_not_before_there_was_some_work() -> None:
    quiet = Quiet(0.0)
    assert not quiet.look(LEAST_S * 0.9)
    assert quiet.look(LEAST_S)
    quiet.given_back(LEAST_S)
    assert not quiet.look(LEAST_S * 1.9)
    assert quiet.look(LEAST_S * 2)


def test_what_takes_long_is_done_seldom() -> None:
    quiet = Quiet(0.0)
    assert quiet.look(1.0)
    quiet.given_back(1.1)
    due_s = 1.1 + TIMES_ITS_COST * 0.1
    assert not any(quiet.look(1.1 + tenths / 10) for tenths in range(99))
    assert quiet.look(due_s + 0.001)


async def test_memory_is_given_back_after_each_time_of_work(autojump_clock: trio.testing.MockClock) -> None:
    given_back_at: list[float] = []

    def worked_s() -> float:
        """Without a pause for half a minute, and again from the second minute on."""
        now = trio.current_time()
        return min(now, 30.0) + max(0.0, min(now, 150.0) - 120.0)

    def give_back() -> None:
        given_back_at.append(trio.current_time())

    with trio.move_on_after(300):
        await give_back_when_quiet(worked_s, give_back)
    assert given_back_at == [40.0, 160.0]
