"""A log line that a stranger can provoke comes once a second, with the number of those that did not."""

from __future__ import annotations

import logging

import attrs

# Enough to see that something goes on; what a flood would fill a disk with is one number.
INTERVAL_S = 1.0


@attrs.define(eq=False)
class LogLimit:
    """Logs warnings, at most one each INTERVAL_S; the caller hands in its clock."""

    log: logging.Logger
    _next_s: float = float("-inf")
    _suppressed: int = 0

    def warning(self, message: str, now_s: float) -> None:
        """Log the message, or count it for the next one that is logged."""
        if now_s < self._next_s:
            self._suppressed += 1
            return
        more = f" (and {self._suppressed} more like it before)" if self._suppressed else ""
        self._next_s = now_s + INTERVAL_S
        self._suppressed = 0
        self.log.warning("%s%s", message, more)
