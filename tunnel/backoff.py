"""How long the dialer waits before it dials again. Pure: chance and lifetimes are handed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

__all__ = ["Backoff"]

# PROTOCOL.md, "Reconnect": each wait is drawn from [d/2, d], so 5 s at least and 60 s at most.
DELAYS_S: Final = (10.0, 20.0, 40.0, 60.0)

# A session that lived this long was a working one. One that dies sooner counts as a failed dial, or a link
# that connects and breaks would be dialled every 5 s for good.
SESSION_LIVED_S: Final = 10.0

# A hub that is restarted says goodbye and is not a link that breaks, however young its sessions are: so many
# goodbyes are followed at once within so long. What says goodbye more often is no restart.
AT_ONCE_MAX: Final = 6
AT_ONCE_WINDOW_S: Final = 60.0

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
        self._followed_at: deque[float] = deque(maxlen=AT_ONCE_MAX)
        """When a goodbye was followed at once, the last times."""

    def note_session(self, lived_s: float) -> None:
        """Take note that a session has ended."""
        if lived_s >= SESSION_LIVED_S:
            self._failures = 0

    def wait_after_goaway_s(self, now_s: float, retry_after_s: float = 0.0) -> float:
        """Return how long to wait when the hub says GOAWAY to a session that goes on: not at all.

        But for what the hub asked for, and where that was followed AT_ONCE_MAX times within AT_ONCE_WINDOW_S.
        `now_s` is any clock that does not go back.
        """
        if len(self._followed_at) == AT_ONCE_MAX and now_s - self._followed_at[0] < AT_ONCE_WINDOW_S:
            return self.next_wait_s(retry_after_s)
        self._followed_at.append(now_s)
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
