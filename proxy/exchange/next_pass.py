"""Schedules calls for a later pass of the event loop, or after a delay.

A socket's callback runs among those of other sockets, so it stops at its share and schedules the rest here.
One call runs per loop pass, round-robin over the peers, so a busy peer delays only itself.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from heapq import heappop, heappush
from itertools import count
from typing import NoReturn

import trio

from tunnel.net.waker import Waker


class NextPass:
    """Makes scheduled calls while `run` runs. A call must neither wait nor raise."""

    def __init__(self) -> None:
        self._soon: OrderedDict[Hashable, deque[Callable[[], None]]] = OrderedDict()
        # The number keeps calls with the same due time in order.
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._spot = Waker("one task makes the calls of later passes")
        self._nap = trio.CancelScope()

    def soon(self, peer: Hashable, call: Callable[[], None]) -> None:
        """Schedule a call for a later pass, round-robin over the peers."""
        self._soon.setdefault(peer, deque()).append(call)
        self._spot.unpark()

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Schedule a call after `delay_s` seconds."""
        due_at = trio.current_time() + delay_s
        heappush(self._later, (due_at, next(self._numbers), call))
        self._nap.deadline = min(self._nap.deadline, due_at)

    async def run(self) -> NoReturn:
        """Make the scheduled calls until cancelled."""
        while True:
            if self._soon:
                await trio.lowlevel.checkpoint()
                peer, calls = self._soon.popitem(last=False)
                call = calls.popleft()
                if calls:
                    self._soon[peer] = calls
                call()
            else:
                due_at = self._later[0][0] if self._later else math.inf
                with trio.CancelScope(deadline=due_at) as self._nap:
                    await self._spot.park()
            now = trio.current_time()
            while self._later and self._later[0][0] <= now:
                heappop(self._later)[2]()
