"""Limits how many relays are accepted per second, and spreads the retries of the others.

When a hub comes back, all relays of its fleet dial at once. Each costs a verified signature, a session and a
row in the store, and an agent's call must not wait behind five thousand of them. So dials above the limit are
refused before anything is verified, with a time to retry at. These times follow one another at the accepted
rate, so that the retries do not arrive all at once. Relays that resume a session go first, since streams wait
for them.

A rate alone does not protect a slow hub. If it accepted more dials than it can serve within the relays'
deadline of 10 s, it would spend its time on relays that have left, and these would dial again. So dials are
also refused while as many as one burst have no session yet.

The cluster of a dial is known only once its token is verified. Each cluster has lower limits then, and a
dial above them returns its token to the common bucket: a relay that dials in a loop must not keep others out.
"""

from __future__ import annotations

import math
from collections import Counter

import attrs

from tunnel.net.ratelimit import TokenBucket

ACCEPTS_PER_S = 200
# Accepted at once after a quiet second, and without a session at once: one to two seconds of work for a hub.
# Fleets up to this size do not notice the limit.
BURST = 200
# The last tokens of the bucket, and the last of those without a session, are for relays that resume one.
RESERVED = 100
# The largest retry delay. Dials that were refused before are accepted by then.
RETRY_AFTER_MAX_S = 60
# Per cluster. Eight relays (the most that limits.relays_per_cluster allows) dial this often when their
# connections break every second. Each may dial a few times at once when a hub or a network comes back.
CLUSTER_ACCEPTS_PER_S = 8
CLUSTER_BURST = 64
# Per cluster, without a session at once. A relay that never sends its greeting counts for 10 s.
CLUSTER_ARRIVALS_MAX = 16
CLUSTER_RETRY_AFTER_S = 2


@attrs.define(eq=False)
class Arrival:
    """An accepted dial, until its session has begun or it has failed; `settle` ends it, once."""

    _limit: AcceptLimit
    _cluster_id: str | None = None
    _counted: bool = True

    def settle(self) -> None:
        """Stop counting the dial."""
        if self._counted:
            self._counted = False
            self._limit.arrivals -= 1
            if self._cluster_id is not None:
                self._limit.arrivals_of[self._cluster_id] -= 1

    def refuse(self) -> None:
        """Stop counting a dial that failed to authenticate, which costs other relays nothing."""
        self.settle()
        self._limit.refund()

    @property
    def is_authenticated(self) -> bool:
        """Whether the dial counts for a cluster."""
        return self._cluster_id is not None

    def authenticated(self, cluster_id: str) -> None:
        """Count the dial for its cluster too."""
        self._cluster_id = cluster_id
        self._limit.arrivals_of[cluster_id] += 1


class TooManyDialsError(Exception):
    """The relays of one cluster dial too often; the message is for the relay's log."""


@attrs.define(eq=False)
class AcceptLimit:
    """A token bucket, and a schedule of retries. `now` is in seconds of any clock."""

    _accepts: TokenBucket = attrs.Factory(lambda: TokenBucket(ACCEPTS_PER_S, BURST))
    _booked_until: float = 0.0
    """Tokens that arrive before this time are promised to refused dials."""
    _clusters: dict[str, TokenBucket] = attrs.Factory(dict)
    """Bounded by the clusters ever enrolled: only their relays are authenticated."""
    arrivals: int = 0
    """Accepted dials without a session."""
    arrivals_of: Counter[str] = attrs.Factory(Counter)
    """Those of each cluster, bounded as `_clusters`."""

    def admit(self, now: float, *, resumes: bool) -> int:
        """Accept a dial: return 0, or the seconds (at least 1) after which to retry.

        An accepted dial is passed to `arrive`.
        """
        least = 1 if resumes else RESERVED + 1
        if self._accepts.left(now) >= least and BURST - self.arrivals >= least:
            self._accepts.take()
            return 0
        # After the retries that were scheduled before.
        self._booked_until = max(self._booked_until, now) + 1 / ACCEPTS_PER_S
        return min(RETRY_AFTER_MAX_S, max(1, math.ceil(self._booked_until - now)))

    def arrive(self) -> Arrival:
        """Count an accepted dial until it has a session."""
        self.arrivals += 1
        return Arrival(self)

    def refund(self) -> None:
        """Return the token of an accepted dial."""
        self._accepts.take(-1)

    def admit_cluster(self, arrival: Arrival, cluster_id: str, name: str, now: float) -> None:
        """Accept an authenticated relay of this cluster, once for a dial; raises TooManyDialsError."""
        if arrival.is_authenticated:
            return
        if self.arrivals_of[cluster_id] >= CLUSTER_ARRIVALS_MAX:
            raise TooManyDialsError(
                f"{CLUSTER_ARRIVALS_MAX} relays of cluster {name} have dialled and have no session yet, the "
                f"limit: come back in {CLUSTER_RETRY_AFTER_S} s"
            )
        rate = self._clusters.get(cluster_id)
        if rate is None:
            rate = self._clusters[cluster_id] = TokenBucket(CLUSTER_ACCEPTS_PER_S, CLUSTER_BURST)
        if not rate.allows(now):
            raise TooManyDialsError(
                f"the relays of cluster {name} dialled {CLUSTER_BURST} times at once, and more than "
                f"{CLUSTER_ACCEPTS_PER_S} times a second since then, the limit: come back in "
                f"{CLUSTER_RETRY_AFTER_S} s"
            )
        arrival.authenticated(cluster_id)
