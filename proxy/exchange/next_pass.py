"""Calls for a later pass of the loop: what a port goes on with, and what is due after some time.

What a socket's watch calls runs in the midst of others, so it stops at its share. The rest of it comes here.
One call runs in a pass, and the peers take turns, so a peer with much to do delays only itself.
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
    """Calls what it is given, while `run` runs. What is called must neither wait nor raise."""

    def __init__(self) -> None:
        self._soon: OrderedDict[Hashable, deque[Callable[[], None]]] = OrderedDict()
        # The number keeps two of the same time in their order.
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._spot = Waker("one task makes the calls of later passes")
        self._nap = trio.CancelScope()

    def soon(self, peer: Hashable, call: Callable[[], None]) -> None:
        """Have something called in a later pass; one call of each peer after the other."""
        self._soon.setdefault(peer, deque()).append(call)
        self._spot.unpark()

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Have something called after so many seconds."""
        due_at = trio.current_time() + delay_s
        heappush(self._later, (due_at, next(self._numbers), call))
        self._nap.deadline = min(self._nap.deadline, due_at)

    async def run(self) -> NoReturn:
        """Call until cancelled."""
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
