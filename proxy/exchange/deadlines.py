"""The deadlines of connections that idle between two requests.

A cancel scope with a deadline around each wait costs 5 µs, and nearly every wait ends long before its
deadline. So a connection only notes when its wait is due, and one task checks all of them from time to time.
It closes a connection that has idled too long; the connection's own task then finds its client gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NoReturn, Protocol

import trio

# Longer than the 90 s after which Go's clients close an idle connection: if the server closed first, a POST
# could meet the closing socket, and Go does not send a POST again.
IDLE_S = 120.0
# The interval of checks, and so the longest delay.
SWEEP_S = 0.25


class Waiting(Protocol):
    """A connection that waits."""

    async def aclose(self) -> None:
        """Close it under its own task. It is called cancelled, so it cannot wait."""
        ...


class Idle:
    """A connection's wait, and the time at which it is due; infinite between two waits."""

    __slots__ = ("due_at", "waiting")

    def __init__(self, waiting: Waiting) -> None:
        self.waiting = waiting
        self.due_at = math.inf


class Deadlines:
    """The waits of connections, each from `watch` to `leave`. Without `run` nothing is ever due."""

    def __init__(self) -> None:
        self.ending = False
        """The server stops: each answer is the last one on its connection."""
        self._waits: set[Idle] = set()
        self._nap = trio.CancelScope()
        self._looks_at = math.inf
        # While `run` runs, the clock itself: a wait begins with each answer, and a lookup of the clock costs
        # more than reading it.
        self._now: Callable[[], float] = trio.current_time

    @property
    def watched(self) -> int:
        """The number of connections."""
        return len(self._waits)

    def watch(self, waiting: Waiting) -> Idle:
        """Return a wait for `begin`; call `leave` with it at the end."""
        idle = Idle(waiting)
        self._waits.add(idle)
        return idle

    def leave(self, idle: Idle) -> None:
        """End a wait, and forget it. A check that is in progress does not close it any more."""
        idle.due_at = math.inf
        self._waits.discard(idle)

    def begin(self, idle: Idle, seconds: float) -> None:
        """Begin a wait that may last this long. It ends when its `due_at` is set to infinity."""
        idle.due_at = due_at = self._now() + seconds
        if due_at < self._looks_at:
            self._look_by(due_at)

    def expire(self, idle: Idle) -> None:
        """Make a wait due now, unless it has ended."""
        if idle.due_at != math.inf:
            idle.due_at = trio.current_time()
            self._look_by(idle.due_at)

    async def run(self) -> NoReturn:
        """Close connections whose wait is due; never returns."""
        self._now = trio.lowlevel.current_clock().current_time
        while True:
            with trio.CancelScope(deadline=self._looks_at) as self._nap:
                await trio.sleep_forever()
            now = trio.current_time()
            await self._close_due(now)
            first_due = min((idle.due_at for idle in self._waits), default=math.inf)
            self._looks_at = max(first_due, now + SWEEP_S)

    def _look_by(self, time: float) -> None:
        self._looks_at = self._nap.deadline = time

    async def _close_due(self, now: float) -> None:
        for idle in [idle for idle in self._waits if idle.due_at <= now]:
            if idle.due_at > now:
                # The next request of this connection arrived in the pass that closed another one.
                continue
            idle.due_at = math.inf
            with trio.CancelScope() as scope:
                scope.cancel()
                await idle.waiting.aclose()
