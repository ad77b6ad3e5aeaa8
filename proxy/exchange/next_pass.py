"""Schedules calls for a later pass of the event loop, or after a delay.

A callback of a socket or of a stream runs among many others, so it stops at its share and schedules the rest
here. The calls use the budget of a pass that woken tasks use (`tunnel.net.fairness`), round-robin over the
peers, so a busy peer delays only itself.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from heapq import heappop, heappush
from itertools import count
from typing import NoReturn

import trio

from tunnel.net.fairness import Chunks, fairness
from tunnel.net.waker import Waker

# Heads of answers, and other short calls that follow from one message of a peer. Each takes 10 to 40 µs, so
# they take 10 ms of a pass at most. A quarter of this budget delays calls of busy peers as well, and makes a
# small request 3 % dearer.
SHORT_CALLS_PER_PASS = 256

_Calls = OrderedDict[Hashable, deque[Callable[[], None]]]


class NextPass:
    """Makes scheduled calls while `run` runs. A call must neither wait nor raise."""

    def __init__(self) -> None:
        self._soon: _Calls = OrderedDict()
        # The number keeps calls with the same due time in order.
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._short_calls_left = SHORT_CALLS_PER_PASS
        self._spot = Waker("one task makes the calls of later passes")

    def admits(self) -> bool:
        """Whether this pass has room for a short call. If not, the caller uses `soon`."""
        if not self._short_calls_left:
            return False
        self._short_calls_left -= 1
        if not self._short_calls_left:
            self.soon(self, self._renew)
        return True

    def _renew(self) -> None:
        self._short_calls_left = SHORT_CALLS_PER_PASS

    def soon(self, peer: Hashable, call: Callable[[], None]) -> None:
        """Schedule a call for a later pass, round-robin over the peers."""
        self._soon.setdefault(peer, deque()).append(call)
        self._spot.unpark()

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Schedule a call after `delay_s` seconds."""
        due_at = trio.current_time() + delay_s
        number = next(self._numbers)
        heappush(self._later, (due_at, number, call))
        if self._later[0][1] == number:
            self._spot.unpark()

    async def run(self) -> NoReturn:
        """Make the scheduled calls until cancelled."""
        while True:
            if self._soon:
                await trio.lowlevel.checkpoint()
            elif self._later:
                with trio.CancelScope(deadline=self._later[0][0]):
                    await self._spot.park()
            else:
                await self._spot.park()
            if self._soon:
                self._make_calls()
            now = trio.current_time()
            while self._later and self._later[0][0] <= now:
                # Hundreds of clients can leave at the same time.
                self.soon(self, heappop(self._later)[2])

    def _make_calls(self) -> None:
        """Make the calls that fit into this pass.

        One call at least, because tasks that wait can use up the budget of every pass. A call can take as
        long as many small ones, so the time counts too.
        """
        calls, self._soon = self._soon, OrderedDict()
        common, chunk = fairness(), Chunks()
        # The first call uses the budget, but does not depend on it.
        common.admits()
        while True:
            peer, queue = calls.popitem(last=False)
            call = queue.popleft()
            if queue:
                calls[peer] = queue
            call()
            if not calls or chunk.over or not common.admits():
                break
        # The calls that were scheduled meanwhile follow: they belong to later passes.
        scheduled, self._soon = self._soon, calls
        for peer, queue in scheduled.items():
            calls.setdefault(peer, deque()).extend(queue)
