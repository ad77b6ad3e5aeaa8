"""Returns free memory to the kernel while the process is idle.

Operators see the memory that the kernel has given to a process. Without trimming, a hub or relay would stay
for ever at its busiest minute's size (tunnel.net.malloc explains why).
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import NoReturn

import attrs
import trio

from tunnel.net.malloc import trim_heap

# The interval between checks.
CHECK_S = 10.0
# Of one core. A busier process would soon allocate the memory again, and trimming would delay its work.
IDLE_SHARE = 0.2
# CPU time used since the last trim must be this many times the trim's cost, which grows with the heap. Less
# CPU time than WORK_S_MIN, some hundred requests, leaves too little to return.
COST_FACTOR = 100
WORK_S_MIN = 0.1
# After Python's allocated blocks have fallen by this many, a trim is worthwhile regardless of the last one's
# cost. That is 140 watches at a hub (6 MB of buffers) or 400 at a relay (15 MB). Connections can leave in
# several waves, and an idle process takes a quarter of an hour to use the CPU time for the next trim.
FALLEN_BLOCKS = 20_000
# A trim of this length is logged, since it blocks the event loop.
LOGGED_S = 0.05

_log = logging.getLogger("hawse.memory")


@attrs.define
class TrimSchedule:
    """Decides when to trim: after work, in an idle period, by the CPU time used in total, or once many
    objects are gone.
    """

    checked_s: float
    """At the last check."""
    due_s: float = attrs.field(init=False)
    """The total CPU time from which a trim is worthwhile."""
    most_blocks: int = 0
    """The most allocated blocks at a check since the last trim."""

    def __attrs_post_init__(self) -> None:
        self.due_s = self.checked_s + WORK_S_MIN

    def check(self, used_s: float, blocks: int) -> bool:
        """Check again, CHECK_S after the last time; returns whether to trim now."""
        share = (used_s - self.checked_s) / CHECK_S
        self.checked_s = used_s
        self.most_blocks = max(self.most_blocks, blocks)
        due = used_s >= self.due_s or blocks <= self.most_blocks - FALLEN_BLOCKS
        return due and share <= IDLE_SHARE

    def trimmed(self, used_s: float, blocks: int) -> None:
        """Note that a trim has ended, which began right after the last check."""
        self.due_s = used_s + max(WORK_S_MIN, COST_FACTOR * (used_s - self.checked_s))
        self.most_blocks = blocks


async def trim_when_idle(
    cpu_clock: Callable[[], float] = time.process_time,
    trim: Callable[[], object] = trim_heap,
    blocks: Callable[[], int] = sys.getallocatedblocks,
) -> NoReturn:
    """Trim memory in the idle period after each busy one, and after each fall; never returns."""
    schedule = TrimSchedule(cpu_clock())
    while True:
        await trio.sleep(CHECK_S)
        if schedule.check(cpu_clock(), blocks()):
            began_s = time.perf_counter()
            trim()
            took_s = time.perf_counter() - began_s
            if took_s >= LOGGED_S:
                _log.info("trimmed free memory in %.0f ms", took_s * 1000)
            schedule.trimmed(cpu_clock(), blocks())
