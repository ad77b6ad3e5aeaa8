"""Giving memory back when there is time for it.

What an operator sees of a process is what the kernel has given it. Without this a hub or relay would for good
stand at what its busiest minute took (tunnel.net.malloc says why).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NoReturn

import attrs
import trio

from tunnel.net.malloc import trim_heap

# Between two looks at what was done.
LOOK_S = 10.0
# Of one core. Whoever is busier would only take again what he gives back, and nobody should wait for that.
QUIET_SHARE = 0.2
# So many times what it cost the last time must have been worked since then: it takes longer where there is
# more to look through. Less than LEAST_S, some hundred requests, makes no holes that are worth the look.
TIMES_ITS_COST = 100
LEAST_S = 0.1
# From so long on it is worth a word: nothing else moves meanwhile.
SHOWN_S = 0.05

_log = logging.getLogger("hawse.memory")


@attrs.define
class Quiet:
    """Whether a process has worked and now rests, by what CPU time it has used in all."""

    seen_s: float
    """At the last look."""
    due_s: float = attrs.field(init=False)
    """From when on it is worth to give memory back."""

    def __attrs_post_init__(self) -> None:
        self.due_s = self.seen_s + LEAST_S

    def look(self, used_s: float) -> bool:
        """Look again, LOOK_S after the last time; returns whether it is the time to give memory back."""
        share = (used_s - self.seen_s) / LOOK_S
        self.seen_s = used_s
        return share <= QUIET_SHARE and used_s >= self.due_s

    def given_back(self, used_s: float) -> None:
        """It is done, and was begun right after the last look."""
        self.due_s = used_s + max(LEAST_S, TIMES_ITS_COST * (used_s - self.seen_s))


async def give_back_when_quiet(
    cpu_clock: Callable[[], float] = time.process_time, give_back: Callable[[], object] = trim_heap
) -> NoReturn:
    """Give free memory back after each time of work, once that is over; never returns."""
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
