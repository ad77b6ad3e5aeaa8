"""How late the event loop runs what is due: the time that each waiting call pays as well."""

from __future__ import annotations

from collections import deque
from typing import NoReturn

import attrs
import trio

# Two wake-ups a second cost an idle process nothing that can be measured.
EVERY_S = 0.5
# The samples of a minute.
SAMPLES = 120


@attrs.define(eq=False)
class LoopLag:
    """Measures while `run` runs."""

    _late_s: deque[float] = attrs.field(factory=lambda: deque(maxlen=SAMPLES))

    async def run(self) -> NoReturn:
        """Measure until cancelled."""
        while True:
            due = trio.current_time() + EVERY_S
            await trio.sleep_until(due)
            self._late_s.append(trio.current_time() - due)

    @property
    def p99_s(self) -> float:
        """The 99th percentile of the last minute, in seconds; 0 without a sample."""
        ordered = sorted(self._late_s)
        return ordered[len(ordered) * 99 // 100] if ordered else 0.0
