"""Limits log lines that a peer can provoke: one a second, with the number of lines left out."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import attrs

from tunnel.net.ratelimit import TokenBucket

__all__ = ["LINES_PER_S", "LogLimit"]

# Enough to see that something goes on. A flood that would fill a disk becomes a number.
LINES_PER_S = 1.0


@attrs.define(eq=False)
class LogLimit:
    """Logs `at_once` lines together, and then one a second; the caller hands in its clock."""

    log: logging.Logger
    at_once: int = 1
    _rate: TokenBucket = attrs.field(init=False)
    _suppressed: int = attrs.field(init=False, default=0)

    @_rate.default
    def _rate_of_lines(self) -> TokenBucket:
        return TokenBucket(LINES_PER_S, self.at_once)

    def warning(self, message: str, now_s: float) -> None:
        """Log the message as a warning, or count it for the next one that is logged."""
        self.line(logging.WARNING, message, now_s)

    def line(self, level: int, message: str, now_s: float, ids: Mapping[str, str] | None = None) -> None:
        """Log the message, or count it for the next one that is logged; `ids` are those that it names."""
        if not self._rate.allows(now_s):
            self._suppressed += 1
            return
        more = f" (and {self._suppressed} more like it before)" if self._suppressed else ""
        self._suppressed = 0
        self.log.log(level, "%s%s", message, more, extra=ids)

    def end(self, level: int, what: str) -> None:
        """No more such lines will come: log how many were left out, if any were."""
        if self._suppressed:
            self.log.log(level, "%s: lines like the last one that were left out: %d", what, self._suppressed)
            self._suppressed = 0
