"""How many relays are let in a second, and when those that are not shall come back.

When a hub comes back, all relays of its fleet dial at once. Each costs a verified signature, a session and a
row in the store, and an agent's call must not wait behind five thousand of them. So what is above the limit
is answered before anything is verified, with the second in which there is room for it: they come back one
after the other, and not all at once again. Relays that resume a session go first: streams wait for them.

Whose relay it is shows only in what is verified. Of one cluster fewer are let in, and those that are not give
their place back: a relay that dials without end must not keep the others of the fleet outside.
"""

from __future__ import annotations

import math

import attrs

from tunnel.net.ratelimit import TokenBucket

ACCEPTS_PER_S = 200
# At once, after a quiet second: a fleet of that size does not notice the limit.
BURST = 200
# Of these the last ones are for relays that resume a session.
RESERVED = 100
# Whoever is told to come later than this is told this; by then those before have been let in.
RETRY_AFTER_MAX_S = 60
# Of one cluster. Eight relays (the most that limits.relays_per_cluster allows) whose connection is cut every
# second dial so often; and at once it may be each of them a few times, when a hub or a network comes back.
CLUSTER_ACCEPTS_PER_S = 8
CLUSTER_BURST = 64
CLUSTER_RETRY_AFTER_S = 2


class TooManyDialsError(Exception):
    """The relays of one cluster dial too often; the message is for the relay's log."""


@attrs.define(eq=False)
class AcceptLimit:
    """A bucket of tokens, and the time up to which tokens to come are promised. `now` is any clock in
    seconds."""

    _accepts: TokenBucket = attrs.Factory(lambda: TokenBucket(ACCEPTS_PER_S, BURST))
    _booked_until: float = 0.0
    """Up to when the room that comes is promised to those who were sent away."""
    _clusters: dict[str, TokenBucket] = attrs.Factory(dict)
    """Those that are, or were, enrolled: nobody else gets so far."""

    def admit(self, now: float, *, resumes: bool) -> int:
        """Let one in: 0; or in how many seconds, at least 1, it shall ask again."""
        if self._accepts.left(now) >= (1 if resumes else RESERVED + 1):
            self._accepts.take()
            return 0
        # Behind those who were told so before.
        self._booked_until = max(self._booked_until, now) + 1 / ACCEPTS_PER_S
        return min(RETRY_AFTER_MAX_S, max(1, math.ceil(self._booked_until - now)))

    def give_back(self) -> None:
        """One that was let in was nobody: strangers must not use up what relays need."""
        self._accepts.take(-1)

    def admit_cluster(self, cluster_id: str, name: str, now: float) -> None:
        """Let in one of this cluster's, which has shown that it is; raises TooManyDialsError."""
        rate = self._clusters.get(cluster_id)
        if rate is None:
            rate = self._clusters[cluster_id] = TokenBucket(CLUSTER_ACCEPTS_PER_S, CLUSTER_BURST)
        if not rate.allows(now):
            raise TooManyDialsError(
                f"the relays of cluster {name} dialled {CLUSTER_BURST} times at once, and more than "
                f"{CLUSTER_ACCEPTS_PER_S} times a second since then, the limit: come back in "
                f"{CLUSTER_RETRY_AFTER_S} s"
            )
