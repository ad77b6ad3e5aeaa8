"""By the relay's calls under way; the hub's are held to it where they are (hub/test_live.py)."""

from __future__ import annotations

from typing import cast

import attrs
import trio
from trio.testing import MockClock

from proxy.process.lifecycle.drain import PLAIN_S
from proxy.relay.exchange import Call, Underway
from proxy.relay.metrics import Counts


@attrs.frozen(eq=False)
class OfSomeLength:
    """All that is asked of a call here."""

    long: bool


def begun(underway: Underway, *, long: bool) -> Call:
    call = cast(Call, OfSomeLength(long))
    underway.begin(call)
    return call


async def test_nothing_under_way_is_not_waited_for(autojump_clock: MockClock) -> None:
    began = trio.current_time()
    assert await Underway(Counts().answers).wait_drained(900)
    assert trio.current_time() == began


async def test_it_waits_for_the_last_one(autojump_clock: MockClock) -> None:
    underway = Underway(Counts().answers)
    began = trio.current_time()

    async def run(seconds: float, *, long: bool) -> None:
        call = begun(underway, long=long)
        await trio.sleep(seconds)
        underway.end(call, 200)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: run(20, long=False))
        nursery.start_soon(lambda: run(300, long=True))
        await trio.sleep(1)
        assert (underway.count, underway.long) == (2, 1)
        assert await underway.wait_drained(900)
        assert trio.current_time() - began == 300


async def test_a_plain_one_has_less_time_than_a_long_one(autojump_clock: MockClock) -> None:
    underway = Underway(Counts().answers)
    began = trio.current_time()
    begun(underway, long=False)
    assert not await underway.wait_drained(900)
    assert trio.current_time() - began == PLAIN_S
    begun(underway, long=True)
    assert not await underway.wait_drained(900)
    assert trio.current_time() - began == PLAIN_S + 900


async def test_a_short_grace_holds_for_all(autojump_clock: MockClock) -> None:
    underway = Underway(Counts().answers)
    began = trio.current_time()
    begun(underway, long=False)
    assert not await underway.wait_drained(10)
    assert trio.current_time() - began == 10
