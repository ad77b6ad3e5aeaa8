"""How often an address may show a code that is none, before it is not listened to for a while.

A code has 160 random bits, so nobody guesses one; this keeps whoever tries from having the hub do it.
"""

from __future__ import annotations

from collections import OrderedDict

import attrs

from proxy.listener.unauthenticated import place_of
from tunnel.net.ratelimit import TokenBucket

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

    # How many failures a place has left; the one that failed last is the last.
    _places: OrderedDict[str, TokenBucket] = attrs.Factory(OrderedDict)

    def refuses(self, address: str, now: float) -> bool:
        """Whether the address has failed too often to be listened to."""
        failures = self._places.get(place_of(address))
        return failures is not None and failures.left(now) < 1

    def failed(self, address: str, now: float) -> None:
        """Note a failed attempt."""
        place = place_of(address)
        failures = self._places.get(place)
        if failures is None:
            failures = self._places[place] = TokenBucket(FAILURES_MAX / FORGIVEN_AFTER_S, FAILURES_MAX)
        failures.left(now)
        failures.take()
        self._places.move_to_end(place)
        if len(self._places) > PLACES_MAX:
            self._places.popitem(last=False)
