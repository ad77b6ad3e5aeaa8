"""The clock that dates relay tokens: it follows the wall clock forward at once, and back slowly.

For a relay the clock of one hub process never goes back (auth/hubclock.py). If the wall clock is set back by
a few minutes, as by an NTP server's first answer, relays would take tokens of the new time as expired until
it has caught up. So tokens and time statements continue from the former time instead.

If the wall clock is set back by more than a relay accepts ahead of its own, most likely no relay believed the
former time. Such a step is followed at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import attrs

from auth.hubclock import RisingClock
from proxy.process.clock import steady_s

# Above the drift of any oscillator, or this clock would never meet the wall clock again. A relay allows for
# it (auth.hubclock.DRIFT). 17 s a day.
HUB_DRIFT = 200e-6
# The default of a relay's tunnel.clock_bound_s.
SET_BACK_MAX_S = 900.0
# The minimum difference that is logged: smaller ones are within the leeway of 5 s.
LOGGED_S = 5.0

_log = logging.getLogger("hawse.hub.relays")


@attrs.define(eq=False)
class TokenClock:
    """The clock of one hub process; calling it returns epoch seconds."""

    wall: Callable[[], float] = time.time
    steady: Callable[[], float] = steady_s
    _rising: RisingClock = attrs.field(factory=lambda: RisingClock(HUB_DRIFT), init=False)
    _kept_s: float = attrs.field(default=0.0, init=False)
    """How far it was ahead of the wall clock."""

    def __call__(self) -> float:
        wall, steady = self.wall(), self.steady()
        self._rising.update(wall, steady)
        kept_s = self._rising.at(steady) - wall
        if kept_s > SET_BACK_MAX_S:
            _log.warning(
                "this hub's clock was set back by %.0f s: a relay that went by the former time refuses "
                "tokens of the new one until this hub is restarted",
                kept_s,
            )
            self._rising = RisingClock(HUB_DRIFT)
            self._rising.update(wall, steady)
            kept_s = 0.0
        elif kept_s > self._kept_s + LOGGED_S:
            _log.warning(
                "this hub's clock was set back by %.0f s: tokens for relays go on by the former time, "
                "which it nears by %.0f s a day, or at once when the hub is restarted",
                kept_s - self._kept_s, HUB_DRIFT * 86_400,
            )  # fmt: skip
        self._kept_s = kept_s
        return wall + kept_s
