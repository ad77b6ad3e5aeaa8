"""One watch over all connections that are idle between two requests.

A cancel scope with a deadline around each wait costs 5 µs, as much as all else in reading a request, and
nearly every wait is over long before. So a connection only says until when it waits, and one task looks at
all of them from time to time. What waits for too long is closed under the one who waits, who then finds its
client gone.
"""

from __future__ import annotations

import math

import trio

# Between two looks. A deadline of two minutes may be late by that.
SWEEP_S = 1.0


class Idle:
    """A wait: the stream that is waited for, and when it has lasted too long; never while nobody waits."""

    __slots__ = ("due_at", "stream")

    def __init__(self, stream: trio.abc.AsyncResource) -> None:
        self.stream = stream
        self.due_at = math.inf


class Deadlines:
    """The waits that are looked at, each from `watch` to `leave`. Without `run` nothing is ever due."""

    def __init__(self) -> None:
        self._waits: set[Idle] = set()
        self.now = trio.current_time()
        """The time of the last look, which is cheaper than the time."""

    def watch(self, stream: trio.abc.AsyncResource) -> Idle:
        """Return a wait for a stream, to be set due and not due as it comes, and left at the end."""
        idle = Idle(stream)
        self._waits.add(idle)
        return idle

    @property
    def watched(self) -> int:
        """How many waits are looked at."""
        return len(self._waits)

    def leave(self, idle: Idle) -> None:
        """Look at a wait no more."""
        self._waits.discard(idle)

    async def run(self) -> None:
        """Close what is due, again and again; never returns."""
        while True:
            await trio.sleep(SWEEP_S)
            self.now = now = trio.current_time()
            for idle in [idle for idle in self._waits if idle.due_at < now]:
                idle.due_at = math.inf
                await trio.aclose_forcefully(idle.stream)
