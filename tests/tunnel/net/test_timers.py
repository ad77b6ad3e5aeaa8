from __future__ import annotations

import gc
import itertools
import math
import random
import weakref

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.tunnel.pairs import open_pair
from tunnel.net import timers as module
from tunnel.net.timers import Timer, timers_of_this_run
from tunnel.protocol.connection.deadlines import Deadlines


class Ringing:
    """An timer, and when it was called."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.timer: Timer = timers_of_this_run().timer(lambda: self.at.append(trio.current_time()))


async def test_each_is_called_at_its_time_and_only_once(autojump_clock: MockClock) -> None:
    first, second, never = Ringing(), Ringing(), Ringing()
    second.timer.by(2)
    first.timer.by(1)
    assert (first.timer.due_at, never.timer.due_at) == (1, math.inf)
    await trio.sleep(100)
    assert (first.at, second.at, never.at) == ([1], [2], [])
    assert first.timer.due_at == math.inf
    first.timer.by(101)
    await trio.sleep(100)
    assert first.at == [1, 101]


async def test_a_time_becomes_earlier_by_by_and_never_later(autojump_clock: MockClock) -> None:
    ringing = Ringing()
    for time in (25, 3, 9, 4):
        ringing.timer.by(time)
    assert ringing.timer.due_at == 3
    await trio.sleep(100)
    # The later time stood: a time is never removed.
    assert ringing.at == [3, 25]


async def test_one_that_is_past_is_called_at_once(autojump_clock: MockClock) -> None:
    await trio.sleep(10)
    ringing = Ringing()
    ringing.timer.by(-math.inf)
    await wait_all_tasks_blocked()
    assert ringing.at == [10]


async def test_one_that_was_ended_is_never_called(autojump_clock: MockClock) -> None:
    ringing, other = Ringing(), Ringing()
    ringing.timer.by(1)
    other.timer.by(1)
    ringing.timer.end()
    ringing.timer.end()
    ringing.timer.by(0.5)
    assert ringing.timer.due_at == math.inf
    await trio.sleep(10)
    assert (ringing.at, other.at) == ([], [1])


async def test_a_call_may_set_its_own_timer_and_that_of_others(autojump_clock: MockClock) -> None:
    calls: list[float] = []

    def call() -> None:
        now = trio.current_time()
        calls.append(now)
        if len(calls) < 5:
            again.by(now if len(calls) % 2 else now + 1)
            other.timer.by(now + 0.5)

    again, other = timers_of_this_run().timer(call), Ringing()
    again.by(1)
    await trio.sleep(10)
    assert calls == [1, 1, 2, 2, 3]
    assert other.at == [1.5, 2.5]


async def test_many_at_once_let_others_run_in_between(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CALLS_PER_PASS", 3)
    all_of_them = [Ringing() for _ in range(10)]
    for ringing in all_of_them:
        ringing.timer.by(1)
    seen: set[int] = set()
    await trio.sleep(1)
    while (now := sum(len(ringing.at) for ringing in all_of_them)) < 10:
        seen.add(now)
        await trio.lowlevel.checkpoint()
    assert len(seen) >= 2
    assert [ringing.at for ringing in all_of_them] == [[1]] * 10


async def test_times_that_move_as_those_of_a_session_do_leave_no_heap_behind(
    autojump_clock: MockClock,
) -> None:
    chance = random.Random(1)
    timers = timers_of_this_run()
    rings: list[float] = []
    timer = timers.timer(lambda: rings.append(trio.current_time()))
    for _ in range(2000):
        now = trio.current_time()
        timer.by(now + 25)
        timer.by(now + 1)
        assert len(timers._entries) <= 3
        assert timer.due_at <= now + 1
        await trio.sleep(chance.choice([0.01, 0.3, 2]))
    assert max(later - sooner for sooner, later in itertools.pairwise(rings)) <= 25


async def test_each_run_has_its_own() -> None:
    ours = timers_of_this_run()
    assert timers_of_this_run() is ours

    async def of_another_run() -> object:
        return timers_of_this_run()

    def run() -> object:
        return trio.run(of_another_run)

    assert await trio.to_thread.run_sync(run) is not ours


class Buggy(Deadlines):
    def tick(self, now: float) -> None:
        raise ZeroDivisionError


async def test_a_bug_in_what_is_due_ends_its_session_and_no_other(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_pair() as other:
        with pytest.RaisesGroup(pytest.RaisesExc(ZeroDivisionError), flatten_subgroups=True):
            async with open_pair() as pair:
                connection = pair.listener._connection
                monkeypatch.setattr(
                    connection, "deadlines", Buggy(*attrs.astuple(connection.deadlines, recurse=False))
                )
                await trio.sleep(60)
                pytest.fail("it goes on")
        await trio.sleep(60)
        assert not other.listener.closed
        assert not other.dialer.closed


async def test_a_session_that_has_ended_is_held_by_nothing(autojump_clock: MockClock) -> None:
    async with open_pair() as pair:
        await trio.sleep(1)
        # What a session is made of holds its transport.
        ended = weakref.ref(pair.wire)
    del pair
    # Its timer was set for a PING that is not sent any more.
    await trio.sleep(2)
    gc.collect()
    assert ended() is None
