"""What calls have in hand, in the memory that the tunnels have."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import attrs
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.exchange.inflight_memory import ENDED_PER_PASS, LOOK_S, HeldUp
from tests.tunnel.protocol.joined import Joined, broken
from tunnel import Memory

KIB = 1024


@attrs.define(eq=False)
class Call:
    name: str
    group: tuple[bool, int]
    held_bytes: int
    moved_bytes: int = 0
    evicted: bool = False


@attrs.define(eq=False)
class Calls:
    memory: Memory
    under_way: list[Call] = attrs.Factory(list)
    ended: list[str] = attrs.Factory(list)
    most_at_once: int = 0

    async def end(self, doomed: Sequence[Call]) -> None:
        self.most_at_once = max(self.most_at_once, len(doomed))
        for call in doomed:
            self.under_way.remove(call)
            self.ended.append(call.name)
        await trio.lowlevel.checkpoint()

    def begin(self, name: str, group: int, size: int) -> Call:
        call = Call(name, (True, group), size)
        self.under_way.append(call)
        return call


@asynccontextmanager
async def looked_at(limit: int) -> AsyncIterator[Calls]:
    calls = Calls(Memory(limit))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(HeldUp(calls.memory, calls.under_way, calls.end).run)
        yield calls
        nursery.cancel_scope.cancel()


async def test_what_calls_hold_is_counted_for_as_long_as_they_do(autojump_clock: MockClock) -> None:
    async with looked_at(1000 * KIB) as calls:
        one, other = calls.begin("one", 1, 100 * KIB), calls.begin("other", 2, 50 * KIB)
        await trio.sleep(LOOK_S * 1.5)
        assert calls.memory.used_bytes == 150 * KIB
        one.held_bytes = 0
        calls.under_way.remove(other)
        await trio.sleep(LOOK_S)
        assert calls.memory.used_bytes == 0
        assert calls.ended == []


async def test_the_agent_whose_calls_hold_the_most_makes_room_and_of_these_what_stands(
    autojump_clock: MockClock,
) -> None:
    async with looked_at(1000 * KIB) as calls:
        calls.begin("paused", 1, 300 * KIB)
        many = [calls.begin(f"many {n}", 2, 100 * KIB) for n in range(6)]
        await trio.sleep(LOOK_S * 1.5)
        for call in many:
            call.moved_bytes += call.name != "many 3"
        await trio.sleep(LOOK_S)
        assert calls.ended == []
        calls.begin("one more", 3, 150 * KIB)
        await trio.sleep(LOOK_S)
        assert calls.ended[0] == "many 3"
        assert {name.partition(" ")[0] for name in calls.ended} == {"many"}
        assert calls.memory.used_bytes == sum(call.held_bytes for call in calls.under_way) <= 1000 * KIB


async def test_of_very_many_that_make_room_some_are_ended_at_a_time(autojump_clock: MockClock) -> None:
    async with looked_at(1000 * KIB) as calls:
        for number in range(3 * ENDED_PER_PASS):
            calls.begin(f"one {number}", 1, 10 * KIB)
        await trio.sleep(LOOK_S * 1.5)
        assert calls.memory.used_bytes == 10 * KIB * len(calls.under_way) < 1000 * KIB
        assert calls.most_at_once == ENDED_PER_PASS


async def test_a_call_that_ends_during_a_look_is_not_counted_behind_it(autojump_clock: MockClock) -> None:
    class Leaving:
        """There when the look begins, and gone when it ends."""

        def __iter__(self) -> Iterator[Call]:
            return iter([left.pop()] if left else [])

    left = [Call("one", (True, 1), KIB)]
    memory = Memory(2**40)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(HeldUp(memory, Leaving(), Calls(memory).end).run)
        await trio.sleep(LOOK_S * 1.5)
        assert not left
        assert memory.used_bytes == 0
        nursery.cancel_scope.cancel()


async def test_beside_many_silent_calls_windows_grow_by_what_is_left(autojump_clock: MockClock) -> None:
    async with looked_at(4000 * KIB) as calls:
        for number in range(80):
            calls.begin(f"silent {number}", number, 40 * KIB)
        await trio.sleep(LOOK_S * 1.5)
        assert calls.memory.used_bytes == 3200 * KIB
        joined = Joined(dialer_memory=Memory(2**40, parent=calls.memory))
        opened, accepted = joined.streams()
        for size in (64 * KIB, 128 * KIB):
            joined.listener.streams.send_data(opened, bytes(size))
            joined.flow()
            while joined.dialer.streams.take(accepted, size, joined.now):
                pass
        assert accepted.window.size == 256 * KIB
        assert calls.ended == []


async def test_a_call_makes_room_for_a_tunnels_streams_and_a_stream_for_a_call(
    autojump_clock: MockClock,
) -> None:
    async with looked_at(300 * KIB) as calls:
        joined = Joined(listener_memory=Memory(2**40, parent=calls.memory))
        opened, accepted = joined.streams()
        calls.begin("other", 2, 270 * KIB)
        # All go by one clock, and what crosses here does so at its 100.
        await trio.sleep(100 + LOOK_S * 0.5)
        joined.dialer.streams.send_data(accepted, bytes(60 * KIB))
        joined.flow()
        # At once, not with the next look.
        await wait_all_tasks_blocked()
        assert calls.ended == ["other"]
        assert broken(joined.at_listener) == []
        # The same agent's, one by a tunnel and one by none.
        calls.begin("small", 1, 50 * KIB)
        calls.begin("other", 2, 100 * KIB)
        calls.begin("third", 3, 100 * KIB)
        await trio.sleep(LOOK_S * 1.5)
        joined.flow()
        assert [event.stream for event in broken(joined.at_listener)] == [opened]
        assert calls.ended == ["other"]
