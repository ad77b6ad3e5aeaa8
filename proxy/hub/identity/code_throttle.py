"""How often an address may show a code that is none, before it is not listened to for a while.

A code has 160 random bits, so nobody guesses one; this keeps whoever tries from having the hub do it.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import attrs

from proxy.listener.unauthenticated import place_of

# Somebody who mistypes, several times over.
FAILURES_MAX = 10
# All of them are forgiven after this; one, after a tenth of it.
FORGIVEN_AFTER_S = 60.0
# Addresses that failed lately. Beyond it the one that failed longest ago is forgiven early.
PLACES_MAX = 4096


@attrs.define
class Guesses:
    """Failed attempts by the place they came from: an IPv4 address, or an IPv6 network.

    `now` is on a clock that nobody sets: one that was set back would keep a place out until then.
    """

    # When all failures of a place are forgiven.
    _places: OrderedDict[str, float] = attrs.Factory(OrderedDict)

    def refuses(self, address: str, now: float) -> bool:
        """Whether the address has failed too often to be listened to."""
        return self._debt(place_of(address), now) > FAILURES_MAX - 1

    def failed(self, address: str, now: float) -> None:
        """Note a failed attempt."""
        place = place_of(address)
        debt = self._debt(place, now)
        self._places[place] = now + (debt + 1) * FORGIVEN_AFTER_S / FAILURES_MAX
        self._places.move_to_end(place)
        if len(self._places) > PLACES_MAX:
            self._places.popitem(last=False)

    def _debt(self, place: str, now: float) -> float:
        """How many failures of a place are not forgiven yet."""
        return max(0.0, self._places.get(place, -math.inf) - now) * FAILURES_MAX / FORGIVEN_AFTER_S
