"""When to PING, and when to give a peer up (PROTOCOL.md, "Liveness"). Pure: `now` is an argument.

The keepalive is a frame of ours and not the WebSocket's ping, because middleboxes answer those themselves.
Any received byte of a message is a sign of life: a link that is busy with a bulk transfer must not be killed
because one PONG is late.
"""

from __future__ import annotations

import math
from collections import deque

import attrs

# A peer that is gone is noticed within 40 s, and within 15 s while a stream is open. The dial follows within
# 1 s. Most middleboxes forget a connection after a minute or more.
PING_IDLE_S = 30.0
PING_BUSY_S = 5.0
# kubectl's own exec socket dies 61 s after its last pong: detection, reconnect and replay must fit in 50 s.
DEAD_AFTER_S = 10.0
# A peer that sends nothing for this long while a stream is open is in doubt: a request that may be repeated
# is better sent elsewhere. A PING must have been unanswered for a while as well, as silence alone means
# nothing.
DOUBT_AFTER_S = 5.0
DOUBT_PING_S = 1.0
# Ten a second, and as many at once: what a session that opens streams in bursts may need is one in 4 s.
PINGS_PER_S = 10.0
# A path that has become longer shows as PINGs in a row that are all later than a queue could make them.
LONGER_PINGS = 3
LONGER_BY_S = 0.100


@attrs.define
class Liveness:
    idle_s: float = PING_IDLE_S
    """Between two PINGs while no stream is open."""
    pinged_at: float = -math.inf
    received_at: float = 0.0
    unanswered_since: float = math.inf
    """When the oldest PING was queued since the peer was last heard. Queued and not sent: a transport that
    takes nothing is as dead as one that brings nothing."""
    busy_since: float = -math.inf
    """When a stream was opened here while there was no other: before that, silence was to be expected."""
    doubted: bool = False
    """The peer is in doubt, and that was reported to the streams."""

    def received(self, now: float) -> None:
        self.received_at = now
        self.unanswered_since = math.inf
        self.doubted = False

    def restart(self, now: float) -> None:
        """The peer is heard on a new transport: PING at once, and expect nothing of the old one."""
        self.received(now)
        self.pinged_at = -math.inf

    def pinged(self, now: float) -> None:
        self.pinged_at = now
        self.unanswered_since = min(self.unanswered_since, now)

    def ping_at(self, *, busy: bool) -> float:
        """When the next PING is due. A stream that opens on a silent session makes it due at once."""
        return self.pinged_at + (PING_BUSY_S if busy else self.idle_s)

    @property
    def dead_at(self) -> float:
        return self.unanswered_since + DEAD_AFTER_S

    def doubt_at(self, *, attached: bool) -> float:
        """When the peer is in doubt; without a transport no PING can tell more."""
        if self.doubted:
            return math.inf
        silent_at = max(self.received_at, self.busy_since) + DOUBT_AFTER_S
        return max(silent_at, self.unanswered_since + DOUBT_PING_S) if attached else silent_at


@attrs.define
class RoundTrips:
    """The PING that is under way, one at most, and the least time from PING to PONG.

    A second one would measure nothing more. PINGs that gather while a link takes nothing, though it brings
    something, would arrive together and so exceed the peer's limit.
    """

    least_s: float | None = None
    _last: int = attrs.field(init=False, default=0)
    _under_way: bool = attrs.field(init=False, default=False)
    _sent: tuple[float, bool] | None = attrs.field(init=False, default=None)
    _last_took: deque[float] = attrs.field(init=False, factory=lambda: deque(maxlen=LONGER_PINGS))

    def next(self) -> int | None:
        """The number of a PING to queue; None while the one before is not answered."""
        if self._under_way:
            return None
        self._under_way = True
        self._last += 1
        return self._last

    def restart(self) -> None:
        """Forget the times of an old transport; its PING will not be answered any more."""
        self.least_s = None
        self._last_took.clear()
        self._under_way = False
        self._sent = None

    def sent(self, now: float, *, quiet: bool) -> None:
        self._sent = now, quiet

    def answered(self, number: int, now: float) -> float | None:
        """The round trip of this one; None when it was not ours, or was answered before.

        A PING that shared its message with others measures the queue as well, so it counts only as long as
        there is nothing better.
        """
        if self._sent is None or number != self._last:
            return None
        sent_at, quiet = self._sent
        self._sent, self._under_way = None, False
        took_s = now - sent_at
        last = self._last_took
        last.append(took_s)
        if self.least_s is None or (quiet and took_s < self.least_s):
            self.least_s = took_s
        elif len(last) == LONGER_PINGS and (least_s := min(last)) > self.least_s + LONGER_BY_S:
            self.least_s = least_s
        return took_s
