"""How long the dialer waits before it dials again. Pure: chance, time and lifetimes are arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tunnel.net.ratelimit import TokenBucket

__all__ = ["Backoff"]

# PROTOCOL.md, "Reconnect": each wait is drawn from [d/2, d], so 5 s at least and 60 s at most.
DELAYS_S: Final = (10.0, 20.0, 40.0, 60.0)

# A session that lived this long was a working one. One that dies sooner counts as a failed dial, or a link
# that connects and breaks would be dialled every 5 s for good.
SESSION_LIVED_S: Final = 10.0

# A hub that restarts is away for a few seconds. So once a tunnel was up, the next dial follows within
# REDIAL_S, and each further one a quarter of it earlier or later than REDIAL_S after the one before.
REDIAL_S: Final = 1.0
REDIAL_SPREAD: Final = 0.25
# These dials come from a budget, regardless of the age of the sessions: a restart takes about four of them,
# and a link that connects and breaks without end gets one in REDIAL_REFILL_S on top of the waits above.
REDIALS_MAX: Final = 20
REDIAL_REFILL_S: Final = 10.0

# One of several hubs that asks for no more than this is followed by a redial, which may reach another one. It
# is the shortest of the waits above.
BUSY_MAX_S: Final = DELAYS_S[0] / 2

# A hub may ask for patience, but it cannot send its relays away for a day.
RETRY_AFTER_MAX_S: Final = 300.0

# All relays of a hub that restarts hear the same Retry-After, and must not come back in the same instant.
RETRY_AFTER_SPREAD_S: Final = 5.0


class Backoff:
    """The waits between dials to one hub. `now_s` is any clock that does not go back."""

    def __init__(self, chance: Callable[[], float]) -> None:
        """`chance` returns numbers in [0, 1)."""
        self._chance = chance
        self._failures = 0
        self._redials = False
        """A tunnel was up, and no dial since then was refused or found the budget empty."""
        self._budget = TokenBucket(1 / REDIAL_REFILL_S, REDIALS_MAX)

    def note_session(self, lived_s: float) -> None:
        """A session has ended, or its hub goes away."""
        if lived_s >= SESSION_LIVED_S:
            self._failures = 0

    def wait_after_goaway_s(self, now_s: float, retry_after_s: float = 0.0) -> float:
        """Return how long to wait when the hub says GOAWAY to a session that goes on: as long as it asks for.

        By default that is not at all: another hub may have taken over.
        """
        self._redials = True
        if self._takes_redial(now_s):
            return min(retry_after_s, RETRY_AFTER_MAX_S)
        return self._next_wait_s(retry_after_s)

    def wait_after_tunnel_s(self, now_s: float, *, hub_is_here: bool = False) -> float:
        """Return how long to wait when a tunnel that was up has ended, and not by a refusal, or when a hub
        asks for one more.

        `hub_is_here`: it has just answered a dial, at a time that was drawn, and takes a new session.
        """
        self._redials = True
        if self._takes_redial(now_s):
            return 0.0 if hub_is_here else REDIAL_S * self._chance()
        return self._next_wait_s()

    def wait_after_dial_s(self, now_s: float, retry_after_s: float = 0.0) -> float:
        """Return how long to wait when a dial has failed without an answer of the hub, or when one of several
        hubs has refused it for `retry_after_s`.
        """
        if retry_after_s <= BUSY_MAX_S and self._takes_redial(now_s):
            least_s = retry_after_s or REDIAL_S * (1 - REDIAL_SPREAD)
            return least_s + REDIAL_S * 2 * REDIAL_SPREAD * self._chance()
        return self._next_wait_s(retry_after_s)

    def wait_while_draining_s(self) -> float:
        """Return the same while the hub that said GOAWAY still serves its old sessions.

        Its port stays closed until it ends, so no redial is spent; then `wait_after_tunnel_s` holds.
        """
        return self._next_wait_s()

    def wait_after_refusal_s(self, retry_after_s: float = 0.0) -> float:
        """Return how long to wait when the hub refused a dial or a session, or asked to come later."""
        self._redials = False
        return self._next_wait_s(retry_after_s)

    def _takes_redial(self, now_s: float) -> bool:
        self._redials = self._redials and self._budget.allows(now_s)
        return self._redials

    def _next_wait_s(self, retry_after_s: float = 0.0) -> float:
        delay_s = DELAYS_S[min(self._failures, len(DELAYS_S) - 1)]
        # A hub that asks for a wait has not failed.
        if not retry_after_s:
            self._failures += 1
        drawn_s = delay_s * (1 + self._chance()) / 2
        asked_s = min(retry_after_s, RETRY_AFTER_MAX_S)
        if asked_s <= drawn_s:
            return drawn_s
        return asked_s + RETRY_AFTER_SPREAD_S * self._chance()
