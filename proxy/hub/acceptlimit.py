"""How many relays are let in a second, and when those that are not shall come back.

When a hub comes back, all relays of its fleet dial at once. Each costs a verified signature, a session and a
row in the store, and an agent's call must not wait behind five thousand of them. So what is above the limit
is answered before anything is verified, with the second in which there is room for it: they come back one
after the other, and not all at once again. Relays that resume a session go first: streams wait for them.
"""

from __future__ import annotations

import math

import attrs

ACCEPTS_PER_S = 200
# At once, after a quiet second: a fleet of that size does not notice the limit.
BURST = 200
# Of these the last ones are for relays that resume a session.
RESERVED = 100
# Whoever is told to come later than this is told this; by then those before have been let in.
RETRY_AFTER_MAX_S = 60


@attrs.define(eq=False)
class AcceptLimit:
    """A bucket of tokens, and a book of when the next room is. `now` is any clock in seconds."""

    _tokens: float = BURST
    _filled_at: float = 0.0
    _booked_until: float = 0.0
    """Up to when the room that comes is promised to those who were sent away."""

    def admit(self, now: float, *, resumes: bool) -> int:
        """Let one in: 0; or in how many seconds, at least 1, it shall ask again."""
        self._tokens = min(BURST, self._tokens + (now - self._filled_at) * ACCEPTS_PER_S)
        self._filled_at = now
        if self._tokens >= (1 if resumes else RESERVED + 1):
            self._tokens -= 1
            return 0
        # Behind those who were told so before.
        self._booked_until = max(self._booked_until, now) + 1 / ACCEPTS_PER_S
        return min(RETRY_AFTER_MAX_S, max(1, math.ceil(self._booked_until - now)))

    def give_back(self) -> None:
        """One that was let in was nobody: strangers must not use up what relays need."""
        self._tokens += 1
