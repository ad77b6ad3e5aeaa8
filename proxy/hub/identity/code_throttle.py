"""Refuses an address for a while after too many invalid enrolment codes.

A code has 160 random bits, so it cannot be guessed. The throttle saves the hub the work of checking attempts.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import attrs

from proxy.listener.unauthenticated import network_of

# Enough for several typing mistakes.
FAILURES_MAX = 10
# All failures are forgotten after this time, one failure after a tenth of it.
FORGIVEN_AFTER_S = 60.0
# Addresses with recent failures. Beyond this number the oldest one is evicted early.
NETWORKS_MAX = 4096


@attrs.define
class CodeThrottle:
    """Failed attempts by network: an IPv4 address, or an IPv6 prefix.

    `now` is monotonic: a clock that was set back would extend the refusal by that much.
    """

    # When all failures of a network are forgotten.
    _forgotten_at: OrderedDict[str, float] = attrs.Factory(OrderedDict)

    def refuses(self, address: str, now: float) -> bool:
        """Whether the address has failed too often lately."""
        return self._debt(network_of(address), now) > FAILURES_MAX - 1

    def failed(self, address: str, now: float) -> None:
        """Count a failed attempt."""
        network = network_of(address)
        debt = self._debt(network, now)
        self._forgotten_at[network] = now + (debt + 1) * FORGIVEN_AFTER_S / FAILURES_MAX
        self._forgotten_at.move_to_end(network)
        if len(self._forgotten_at) > NETWORKS_MAX:
            self._forgotten_at.popitem(last=False)

    def _debt(self, network: str, now: float) -> float:
        """The number of a network's failures that still count."""
        return max(0.0, self._forgotten_at.get(network, -math.inf) - now) * FAILURES_MAX / FORGIVEN_AFTER_S
