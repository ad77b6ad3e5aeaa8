from __future__ import annotations

import trio
from trio.testing import MockClock

from proxy.drain import PLAIN_S, Drained


class Underway(Drained):
    """Of each exchange under way whether it is long."""

    def __init__(self) -> None:
        self._kinds: list[bool] = []

    @property
    def count(self) -> int:
        return len(self._kinds)

    @property
    def long(self) -> int:
        return sum(self._kinds)

    def begin(self, *, long: bool) -> None:
        self._kinds.append(long)

    def end(self, *, long: bool) -> None:
        self._kinds.remove(long)
        self._ended()


async def test_nothing_under_way_is_not_waited_for(autojump_clock: MockClock) -> None:
    began = trio.current_time()
    assert await Underway().wait_drained(900)
    assert trio.current_time() == began


async def test_it_waits_for_the_last_one(autojump_clock: MockClock) -> None:
    underway = Underway()
    began = trio.current_time()

    async def run(seconds: float, *, long: bool) -> None:
        underway.begin(long=long)
        await trio.sleep(seconds)
        underway.end(long=long)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: run(20, long=False))
        nursery.start_soon(lambda: run(300, long=True))
        await trio.sleep(1)
        assert (underway.count, underway.long) == (2, 1)
        assert await underway.wait_drained(900)
        assert trio.current_time() - began == 300


async def test_a_plain_one_has_less_time_than_a_long_one(autojump_clock: MockClock) -> None:
    underway = Underway()
    began = trio.current_time()
    underway.begin(long=False)
    assert not await underway.wait_drained(900)
    assert trio.current_time() - began == PLAIN_S
    underway.begin(long=True)
    assert not await underway.wait_drained(900)
    assert trio.current_time() - began == PLAIN_S + 900


async def test_a_short_grace_holds_for_all(autojump_clock: MockClock) -> None:
    underway = Underway()
    began = trio.current_time()
    underway.begin(long=False)
    assert not await underway.wait_drained(10)
    assert trio.current_time() - began == 10
