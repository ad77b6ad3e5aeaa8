"""Returns free memory to the kernel while the process is idle.

Operators see the memory that the kernel has given to a process. Without trimming, a hub or relay would stay
for ever at its busiest minute's size (tunnel.net.malloc explains why).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NoReturn

import attrs
import trio

from tunnel.net.malloc import give_back_holes

# The interval between checks.
LOOK_S = 10.0
# Of one core. A busier process would soon allocate the memory again, and trimming would delay its work.
QUIET_SHARE = 0.2
# CPU time used since the last trim must be this many times the trim's cost, which grows with the heap. Less
# CPU time than LEAST_S, some hundred requests, leaves too little to return.
TIMES_ITS_COST = 100
LEAST_S = 0.1
# A trim of this length is logged, since it blocks the event loop.
SHOWN_S = 0.05

_log = logging.getLogger("hawse.memory")


@attrs.define
class Quiet:
    """Decides when to trim: after work, in an idle period, by the CPU time used in total."""

    seen_s: float
    """At the last check."""
    due_s: float = attrs.field(init=False)
    """The total CPU time from which a trim is worthwhile."""

    def __attrs_post_init__(self) -> None:
        self.due_s = self.seen_s + LEAST_S

    def look(self, used_s: float) -> bool:
        """Check again, LOOK_S after the last time; returns whether to trim now."""
        share = (used_s - self.seen_s) / LOOK_S
        self.seen_s = used_s
        return share <= QUIET_SHARE and used_s >= self.due_s

    def given_back(self, used_s: float) -> None:
        """Note that a trim has ended, which began right after the last check."""
        self.due_s = used_s + max(LEAST_S, TIMES_ITS_COST * (used_s - self.seen_s))


async def give_back_when_quiet(
    cpu_clock: Callable[[], float] = time.process_time, give_back: Callable[[], object] = give_back_holes
) -> NoReturn:
    """Trim memory in the idle period after each busy one; never returns."""
    quiet = Quiet(cpu_clock())
    while True:
        await trio.sleep(LOOK_S)
        if quiet.look(cpu_clock()):
            began_s = time.perf_counter()
            give_back()
            took_s = time.perf_counter() - began_s
            if took_s >= SHOWN_S:
                _log.info("memory was given back to the system, which took %.0f ms", took_s * 1000)
            quiet.given_back(cpu_clock())
