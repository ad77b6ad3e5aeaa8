"""Calls at given times, for many users that keep moving their times: one task and one deadline for all of
them.

A task that sleeps until a deadline of its own costs two switches and a cancel scope each time it wakes. A
session has something due a while after each message that it receives. With little traffic in each of many
sessions, such tasks would cost a quarter of what a request does. Here a time is an entry in a heap. Entries
of the same time share a wakeup, and a time that has moved later costs nothing until the earlier one has come.

A call must neither wait nor raise.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from itertools import count
from typing import Final

import trio

__all__ = ["Timer", "Timers", "timers_of_this_run"]

# Then other tasks run: thousands of sessions that began together have their PINGs together.
CALLS_PER_PASS: Final = 64


class Timer:
    """A call at `due_at` or earlier, until the timer is ended.

    A time that was asked for is never removed, so the call may come earlier than it has to.
    """

    __slots__ = ("_call", "_timers", "_times", "due_at")

    def __init__(self, timers: Timers, call: Callable[[], None]) -> None:
        self.due_at = math.inf
        """The time of the next call, on trio's clock; for reading only."""
        self._timers = timers
        self._call: Callable[[], None] | None = call
        # Its entries in the heap, each earlier than the one before. They are few: an entry is made only when
        # it is earlier than all of them, and is removed when its time has come.
        self._times: list[float] = []

    def by(self, time: float) -> None:
        """Call at this time or earlier. A call that comes too early asks again."""
        if time < self.due_at and self._call is not None:
            self.due_at = time
            self._times.append(time)
            self._timers.add(time, self)

    def end(self) -> None:
        """Call no more; a second time does nothing. Its entries refer to no user, and expire with time."""
        self._call = None
        self.due_at = math.inf

    def fire(self) -> None:
        """Its earliest time has come. For Timers."""
        self._times.pop()
        call = self._call
        if call is not None:
            self.due_at = self._times[-1] if self._times else math.inf
            call()


class Timers:
    """All timers of a run of trio. They are called only while `run` runs."""

    def __init__(self) -> None:
        # The number orders entries of the same time: timers cannot be compared.
        self._entries: list[tuple[float, int, Timer]] = []
        self._numbers = count()
        self._nap = trio.CancelScope()
        self._wakes_at = math.inf

    def timer(self, call: Callable[[], None]) -> Timer:
        """Return a timer without a time."""
        return Timer(self, call)

    def add(self, time: float, timer: Timer) -> None:
        """A timer has an earlier time. For Timer."""
        heapq.heappush(self._entries, (time, next(self._numbers), timer))
        if time < self._wakes_at:
            self._wakes_at = self._nap.deadline = time

    async def run(self) -> None:
        """Call, until cancelled."""
        entries = self._entries
        while True:
            with trio.CancelScope(deadline=self._wakes_at) as self._nap:
                await trio.sleep_forever()
            now = trio.current_time()
            for _ in range(CALLS_PER_PASS):
                if not entries or entries[0][0] > now:
                    break
                heapq.heappop(entries)[2].fire()
            self._wakes_at = entries[0][0] if entries else math.inf


_of_this_run: Final = trio.lowlevel.RunVar[Timers]("tunnel.net.timers")


def timers_of_this_run() -> Timers:
    """Return the one Timers of this run of trio; a system task runs it from the first call on."""
    try:
        return _of_this_run.get()
    except LookupError:
        timers = Timers()
        _of_this_run.set(timers)
        trio.lowlevel.spawn_system_task(timers.run)
        return timers
