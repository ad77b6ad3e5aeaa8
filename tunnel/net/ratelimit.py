"""A token bucket: an event or a byte takes a token, and tokens come back at a steady rate. Pure: `now` is an
argument."""

from __future__ import annotations

import math

__all__ = ["TokenBucket"]


class TokenBucket:
    """`burst` tokens at first, refilled at `per_s` up to `burst`. `now` is any clock in seconds."""

    __slots__ = ("_burst", "_filled_at", "_left", "_per_s")

    def __init__(self, per_s: float, burst: float, now: float = -math.inf) -> None:
        """Full at `now`; without it, full until the first question, so tokens must not be taken before."""
        assert per_s > 0
        self._per_s = per_s
        self._burst = burst
        self._left = burst
        self._filled_at = now

    def left(self, now: float) -> float:
        """Refill the bucket; returns how many tokens it holds, below 0 while it is in debt."""
        if now > self._filled_at:
            left = self._left + (now - self._filled_at) * self._per_s
            self._left = left if left < self._burst else self._burst
            self._filled_at = now
        return self._left

    def take(self, amount: float = 1) -> None:
        """Take tokens, into debt if need be; a negative amount gives tokens back."""
        self._left -= amount

    def allows(self, now: float) -> bool:
        """Take one token if there is one; returns whether there was."""
        if self.left(now) < 1:
            return False
        self._left -= 1
        return True
