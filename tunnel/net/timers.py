"""Calls at their times, for many who keep moving theirs: one task and one deadline for all of them.

A task that sleeps until a deadline of its own costs two switches and a cancel scope each time it wakes. A
session has something due a while after whatever it receives, so with little in each of many sessions that
would be a quarter of what a request costs. Here it is an entry in a heap; those that are due at the same time
share a wakeup, and a time that has become later costs nothing until the earlier one has come.

What is called must neither wait nor raise.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from itertools import count
from typing import Final

import trio

__all__ = ["Alarm", "Alarms", "alarms_of_this_run"]

# Then the other tasks have their turn: thousands of sessions that began together have their PINGs together.
CALLS_PER_PASS: Final = 64


class Alarm:
    """A call of somebody's: at `due_at` at the latest, until it is ended.

    A time that was asked for is never taken back, so it may be called earlier than it has to be.
    """

    __slots__ = ("_alarms", "_call", "_times", "due_at")

    def __init__(self, alarms: Alarms, call: Callable[[], None]) -> None:
        self.due_at = math.inf
        """When it is called next, on trio's clock; to be read only."""
        self._alarms = alarms
        self._call: Callable[[], None] | None = call
        # Its entries in the heap, each earlier than the one before. They are few: one is only made when it is
        # earlier than all of them, and goes when its time has come.
        self._times: list[float] = []

    def by(self, time: float) -> None:
        """Have it called at this time or earlier. Whoever is called too early says so again."""
        if time < self.due_at and self._call is not None:
            self.due_at = time
            self._times.append(time)
            self._alarms.add(time, self)

    def end(self) -> None:
        """Call no more; a second time does nothing. Its entries hold nobody, and go when their time comes."""
        self._call = None
        self.due_at = math.inf

    def ring(self) -> None:
        """Its earliest time has come. For Alarms."""
        self._times.pop()
        call = self._call
        if call is not None:
            self.due_at = self._times[-1] if self._times else math.inf
            call()


class Alarms:
    """All alarms of a run of trio. Without `run` none is called."""

    def __init__(self) -> None:
        # The number keeps those of the same time in order, and apart.
        self._entries: list[tuple[float, int, Alarm]] = []
        self._numbers = count()
        self._nap = trio.CancelScope()
        self._wakes_at = math.inf

    def alarm(self, call: Callable[[], None]) -> Alarm:
        """Return an alarm that is not set."""
        return Alarm(self, call)

    def add(self, time: float, alarm: Alarm) -> None:
        """An alarm has an earlier time. For Alarm."""
        heapq.heappush(self._entries, (time, next(self._numbers), alarm))
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
                heapq.heappop(entries)[2].ring()
            self._wakes_at = entries[0][0] if entries else math.inf


_of_this_run: Final = trio.lowlevel.RunVar[Alarms]("tunnel.net.timers")


def alarms_of_this_run() -> Alarms:
    """The one Alarms of this run of trio, which a system task of the run serves from the first call on."""
    try:
        return _of_this_run.get()
    except LookupError:
        alarms = Alarms()
        _of_this_run.set(alarms)
        trio.lowlevel.spawn_system_task(alarms.run)
        return alarms
