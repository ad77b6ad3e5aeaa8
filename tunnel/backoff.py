"""How long the dialer waits before it dials again. Pure: chance and lifetimes are handed in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

__all__ = ["Backoff"]

# PROTOCOL.md, "Reconnect": each wait is drawn from [d/2, d], so 5 s at least and 60 s at most.
DELAYS_S: Final = (10.0, 20.0, 40.0, 60.0)

# A session that lived this long was a working one. One that dies sooner counts as a failed dial, or a link
# that connects and breaks would be dialled every 5 s for good.
SESSION_LIVED_S: Final = 10.0

# A hub may ask for patience, but it cannot send its relays away for a day.
RETRY_AFTER_MAX_S: Final = 300.0

# All relays of a hub that restarts hear the same Retry-After, and must not come back in the same instant.
RETRY_AFTER_SPREAD_S: Final = 5.0


class Backoff:
    """The waits between dials to one hub."""

    def __init__(self, chance: Callable[[], float]) -> None:
        """`chance` returns numbers in [0, 1)."""
        self._chance = chance
        self._failures = 0
        self._hurried = False
        """The last session was told to go when it was young."""

    def note_session(self, lived_s: float) -> None:
        """Take note that a session has ended."""
        if lived_s >= SESSION_LIVED_S:
            self._failures = 0
            self._hurried = False

    def wait_after_goaway_s(self, lived_s: float, retry_after_s: float = 0.0) -> float:
        """Return how long to wait when the hub says GOAWAY to a session that goes on: not at all.

        But for what the hub asked for, and where one session after the other is told to go when it is young.
        """
        young = lived_s < SESSION_LIVED_S
        again, self._hurried = young and self._hurried, young
        if again:
            return self.next_wait_s(retry_after_s)
        return min(retry_after_s, RETRY_AFTER_MAX_S)

    def next_wait_s(self, retry_after_s: float = 0.0) -> float:
        """Return how long to wait now; `retry_after_s` is what the hub asked for."""
        delay_s = DELAYS_S[min(self._failures, len(DELAYS_S) - 1)]
        # A hub that says when it has room is no hub that fails.
        if not retry_after_s:
            self._failures += 1
        drawn_s = delay_s * (1 + self._chance()) / 2
        asked_s = min(retry_after_s, RETRY_AFTER_MAX_S)
        if asked_s <= drawn_s:
            return drawn_s
        return asked_s + RETRY_AFTER_SPREAD_S * self._chance()
