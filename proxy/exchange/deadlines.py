"""One watch over all connections: those that idle between two requests, and those whose client is not read.

A cancel scope with a deadline around each wait costs 5 µs, and a task beside each exchange 15, as much as all
else in a small request; and nearly every wait is over long before. So a connection only says since when it
waits, and one task looks at all of them from time to time. What idles for too long is closed under the one
who waits, who then finds its client gone. An exchange that takes its time is attended to only then.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import NoReturn, Protocol

import trio

_log = logging.getLogger("hawse")

# For a connection between two requests. Longer than the 90 s after which Go's clients close an idle one: if
# we closed first, a POST could meet the closing socket, and Go does not send a POST again.
IDLE_S = 120.0
# Between two looks, as long as there is something to look at; what is due may be late by that.
SWEEP_S = 0.25
# The age of an exchange from which its client's connection is watched: a client that leaves later is noticed
# at once. Half of the second within which the request must be cancelled upstream.
QUIET_S = 0.5
# To begin with one takes up to 8 µs, and a relay can have a thousand go on at the same moment.
ATTENDED_PER_PASS = 64


class Waiting(Protocol):
    """Who waits."""

    async def aclose(self) -> None:
        """End what is waited for, under the one who waits; called cancelled, so nothing in it can wait."""
        ...


class Idle:
    """A wait of a connection, and the time at which it has lasted too long; infinite between two waits."""

    __slots__ = ("due_at", "waiting")

    def __init__(self, waiting: Waiting) -> None:
        self.waiting = waiting
        self.due_at = math.inf


class Attended(Protocol):
    """An exchange that takes its time."""

    def begin_attendance(self, nursery: trio.Nursery) -> None:
        """Look after it, by a task in `nursery` that does not raise.

        Or without one, until there is something to do: then `attend_now` has this called again.
        """
        ...


class Deadlines:
    """The waits that are looked at, each from `watch` to `leave`. Without `run` nothing is ever due."""

    def __init__(self) -> None:
        self.ending = False
        """The server stops: each answer is the last one on its connection."""
        self._waits: set[Idle] = set()
        # With the time of their beginning, and in that order.
        self._exchanges: dict[Attended, float] = {}
        self._urgent: set[Attended] = set()
        self._nap = trio.CancelScope()
        self._looks_at = math.inf
        # In `run` the clock itself: a wait begins with each answer, and to look the clock up costs more.
        self._now: Callable[[], float] = trio.current_time

    @property
    def watched(self) -> int:
        """How many connections are looked at."""
        return len(self._waits)

    def watch(self, waiting: Waiting) -> Idle:
        """Return a wait for `begin`; call `leave` with it at the end."""
        idle = Idle(waiting)
        self._waits.add(idle)
        return idle

    def leave(self, idle: Idle) -> None:
        """Look at a wait no more."""
        self._waits.discard(idle)

    def begin(self, idle: Idle, seconds: float) -> None:
        """A wait begins, which must not last longer; it is over when its `due_at` is infinite again."""
        idle.due_at = due_at = self._now() + seconds
        if due_at < self._looks_at:
            self._look_by(due_at)

    def expire(self, idle: Idle) -> None:
        """End a wait as if it had lasted too long, unless it is over."""
        if idle.due_at != math.inf:
            idle.due_at = trio.current_time()
            self._look_by(idle.due_at)

    def attend_later(self, exchange: Attended) -> None:
        """Have an exchange attended if it is still under way QUIET_S from now, by and large."""
        self._exchanges[exchange] = now = trio.current_time()
        if self._looks_at > now + SWEEP_S:
            self._look_by(now + SWEEP_S)

    def attend_now(self, exchange: Attended) -> None:
        """Have an exchange attended at once."""
        self._urgent.add(exchange)
        self._look_by(trio.current_time())

    def forget(self, exchange: Attended) -> None:
        """The exchange is over, and is not attended any more."""
        self._exchanges.pop(exchange, None)
        self._urgent.discard(exchange)

    async def run(self) -> NoReturn:
        """Look again and again; never returns."""
        self._now = trio.lowlevel.current_clock().current_time
        async with trio.open_nursery() as attendants:
            while True:
                with trio.CancelScope(deadline=self._looks_at) as self._nap:
                    await trio.sleep_forever()
                now = trio.current_time()
                await self._close_due(now)
                while self._urgent:
                    _attend(self._urgent.pop(), attendants)
                left = ATTENDED_PER_PASS
                while self._exchanges and left:
                    left -= 1
                    exchange, since = next(iter(self._exchanges.items()))
                    if now - since < QUIET_S:
                        break
                    del self._exchanges[exchange]
                    _attend(exchange, attendants)
                soon = now + SWEEP_S
                first_due = min((idle.due_at for idle in self._waits), default=math.inf)
                if not left:
                    # Again, behind a pass of the others.
                    soon = now
                self._looks_at = soon if self._exchanges else max(first_due, soon)

    def _look_by(self, time: float) -> None:
        self._looks_at = self._nap.deadline = time

    async def _close_due(self, now: float) -> None:
        for idle in [idle for idle in self._waits if idle.due_at <= now]:
            if idle.due_at > now:
                # To close the one before took a pass, in which this one's next request came.
                continue
            idle.due_at = math.inf
            with trio.CancelScope() as scope:
                scope.cancel()
                await idle.waiting.aclose()


def _attend(exchange: Attended, attendants: trio.Nursery) -> None:
    try:
        exchange.begin_attendance(attendants)
    except Exception:
        # Raised further it would end the look at all others, and so the process.
        _log.exception("an exchange is not attended to, by a fault of ours")
