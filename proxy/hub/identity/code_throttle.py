"""Refuses an address for a while after too many invalid enrolment codes.

A code has 160 random bits, so it cannot be guessed. The throttle saves the hub the work of checking attempts.
"""

from __future__ import annotations

from collections import OrderedDict

import attrs

from proxy.listener.unauthenticated import network_of
from tunnel.net.ratelimit import TokenBucket

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

    # The failures that each network has left, the latest failure last.
    _networks: OrderedDict[str, TokenBucket] = attrs.Factory(OrderedDict)

    def refuses(self, address: str, now: float) -> bool:
        """Whether the address has failed too often lately."""
        failures = self._networks.get(network_of(address))
        return failures is not None and failures.left(now) < 1

    def failed(self, address: str, now: float) -> None:
        """Count a failed attempt."""
        network = network_of(address)
        failures = self._networks.get(network)
        if failures is None:
            failures = self._networks[network] = TokenBucket(FAILURES_MAX / FORGIVEN_AFTER_S, FAILURES_MAX)
        failures.left(now)
        failures.take()
        self._networks.move_to_end(network)
        if len(self._networks) > NETWORKS_MAX:
            self._networks.popitem(last=False)
