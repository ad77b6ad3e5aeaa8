"""How much may be under way at once: the bandwidth-delay product, as measured by the peer's ACKs.

TCP fills any buffer before a slow link, and a keystroke then waits behind it: for seconds, where a home
router holds a megabyte. No socket option helps, since the buffer is not in our kernel, and often not
even on our TCP connection (an egress proxy ends it). So the bound is on what the *peer* has not acknowledged.
The model is that of BBR (Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 14(5), 2016),
taken down to what a sender above TCP needs: it paces no packets, and loss is TCP's business.

    delivery rate   of a round: what was acknowledged while its first message was under way, by the time that
                    took. The greatest of the last busy rounds is what the link can do.
    round trip      the least time from a message to its acknowledgement. A longer path shows as rounds that
                    are all longer than a queue of ours could make them.
    limit           rate x (round trip + a queue): what the link holds, and a queue too short to be felt,
    which
                    keeps the link busy between two acknowledgements and lets a rate that grows show.

It begins as TCP does: with each acknowledgement as much again may be under way, so twice as much a round
trip later, until a round shows a queue and is no faster than the one before.

A round in which we had nothing more to send says nothing of the link, unless it was faster than we knew.
"""

from __future__ import annotations

import math
from collections import deque

import attrs

from tunnel.protocol.ledger import ACK_EVERY_BYTES, ACK_SOON_BYTES, LEDGER_BYTES_MAX

# The standing queue that is wanted: below the 30 ms or so that are felt, above the peer's ACK_SOON_S. On a
# long way more, since what makes an acknowledgement late there (busy machines at both ends, other traffic)
# must not be taken for a queue: the limit would go down with every round.
QUEUE_S = 0.015
LONG_QUEUE_SHARE = 1 / 6
# Within a machine or a rack the queue is in the two kernels, megabytes of it, and acknowledgements are there
# at once. So less is enough, and what is small waits so much less: two of the peer's ACK_EVERY_BYTES, that
# there is something to do while one is acknowledged, or what a turn on a busy core takes. Less than that
# costs CPU time, as it leaves in smaller messages.
NEAR_S = 0.002
NEAR_QUEUE_S = 0.004
NEAR_QUEUE_BYTES = 2 * ACK_EVERY_BYTES
# A path that has become longer shows as rounds that take longer than our own queue and the peer could make
# them, whose word for ACK_SOON_BYTES comes soon.
LONGER_BY_S = 0.100
# So do rounds between machines that are busy; and as soon as those are not, our own queue takes the place of
# what they were late by, and hides that the path is as short as before. So one that has become longer is
# looked at again, by a round without a queue: after so long, and then after twice as long each time.
LOOK_AGAIN_S = 2.0
LOOK_AGAIN_MOST_S = 64.0
# A round that is late by so much is not waited for: the link has become slow.
LATE_BY_S = 0.100
# A quarter of the queue that is wanted may be none, so that the limit, and not the link, may be what holds us
# up. A limit that is only so much too high adds no more than the round trip's quarter to the queue.
UNSEEN_SHARE = 1 / 4
PROBE_GROWTH = 1.25
# From less than that on, the link and not the limit is what a round was measured by.
LEAST_GROWTH = 1.25
ROUNDS = 6
TIMES = 5
# A link that has become slower by so much is slow.
SLOWER_BY = 2

# A first answer of 100 KiB in one round trip, and no more than 0.1 s of 10 Mbit/s before anything is known.
FIRST_BYTES = 128 * 1024
LEAST_BYTES = 32 * 1024
# A message goes out as one, so its time on the link is what a keystroke waits for at least.
MESSAGE_S = 0.010
MESSAGE_FIRST_BYTES = 64 * 1024
MESSAGE_LEAST_BYTES = 16 * 1024
MESSAGE_MOST_BYTES = 256 * 1024
# The clock's steps, and on a loopback all there is; without it a rate would be infinite.
_TICK_S = 0.0001


@attrs.define
class Flight:
    """What is known of one direction of a transport."""

    most_bytes: int = LEDGER_BYTES_MAX
    """The limit where the link sets none."""
    limit_bytes: int = attrs.field(init=False, default=FIRST_BYTES)
    """What may be unacknowledged when a flow that is not sparse sends."""
    message_bytes: int = attrs.field(init=False, default=MESSAGE_FIRST_BYTES)
    """What a message may hold, so that it is MESSAGE_S on the link."""
    rate: float = attrs.field(init=False, default=0.0)
    """Bytes a second; 0 while nothing is known."""
    least_s: float | None = attrs.field(init=False, default=None)
    """The round trip without a queue."""
    _delivered: int = attrs.field(init=False, default=0)
    round_until: int = attrs.field(init=False, default=0)
    """The number of frames whose acknowledgement ends the round; 0 while there is none."""
    _round_at: float = attrs.field(init=False, default=0.0)
    _round_from: int = attrs.field(init=False, default=0)
    _round_full: bool = attrs.field(init=False, default=False)
    _round_small: bool = attrs.field(init=False, default=False)
    """It began with less than what a peer acknowledges soon."""
    _rates: deque[float] = attrs.field(init=False, factory=lambda: deque(maxlen=ROUNDS))
    _tooks: deque[float] = attrs.field(init=False, factory=lambda: deque(maxlen=TIMES))
    _growing: bool = attrs.field(init=False, default=True)
    """No round has shown a queue yet."""
    _look_at: float = attrs.field(init=False, default=math.inf)
    """When a path that has become longer is looked at again, and how long after the last time."""
    _look_s: float = attrs.field(init=False, default=LOOK_AGAIN_S)

    def __attrs_post_init__(self) -> None:
        self.limit_bytes = min(FIRST_BYTES, self.most_bytes)

    def for_next_transport(self) -> Flight:
        """A Flight for another transport, of which nothing is known."""
        return type(self)(self.most_bytes)

    def begin_round(self, number: int, under_way: int, now: float) -> None:
        """A message left that ends with frame `number`, while no round was on; now so much is under way."""
        self.round_until, self._round_at = number, now
        self._round_small = under_way < ACK_SOON_BYTES
        self._round_from, self._round_full = self._delivered, False

    def full(self) -> None:
        """More would have been sent, were it not for the limit."""
        self._round_full = True

    def acknowledged(self, number: int, size: int, now: float) -> None:
        """The peer has `number` frames now, `size` bytes more than before."""
        self._delivered += size
        if not self.round_until:
            return
        if self._growing and self._round_full:
            self._allow(self.limit_bytes + size)
        took_s = max(now - self._round_at, _TICK_S)
        rate = (self._delivered - self._round_from) / took_s
        if number < self.round_until:
            if self._round_full and self.least_s is not None and took_s > self.least_s + QUEUE_S + LATE_BY_S:
                self._slow_down(rate)
            return
        self.round_until = 0
        if self._round_small and (self.least_s is None or took_s > self.least_s):
            # The peer may have delayed its ACK.
            return
        delivered = self._delivered - self._round_from
        least_s = self._note_time(took_s, now)
        queue_s = took_s - least_s
        wanted_s = queue_wanted_s(least_s, self.rate)
        if self._round_full or (queue_s > wanted_s and delivered >= LEAST_BYTES):
            if queue_s > wanted_s and rate < self.rate * LEAST_GROWTH:
                self._growing = False
            self._note_rate(rate)
            if not self._growing:
                probe = PROBE_GROWTH if queue_s < wanted_s * UNSEEN_SHARE else 1
                self._allow(int(probe * self._wanted(least_s)))
        elif rate > self.rate:
            # We had no more to send, so the link can do at least this.
            self._note_rate(rate)
            self._allow(max(self.limit_bytes, self._wanted(least_s)))
        if now >= self._look_at:
            self._look_s *= 2
            self._look_at = now + self._look_s if self._look_s <= LOOK_AGAIN_MOST_S else math.inf
            # What is under way drains first; the round behind that sets the limit again.
            self.limit_bytes = ACK_SOON_BYTES

    def answered(self, took_s: float) -> None:
        """A PING took so long."""
        if self.least_s is None or took_s < self.least_s:
            self.least_s = took_s

    def _note_time(self, took_s: float, now: float) -> float:
        tooks = self._tooks
        tooks.append(took_s)
        if self.least_s is None or took_s < self.least_s:
            self.least_s = took_s
        elif len(tooks) == TIMES and (least_s := min(tooks)) > self.least_s + LONGER_BY_S:
            self.least_s = least_s
            self._look_s = LOOK_AGAIN_S
            self._look_at = now + LOOK_AGAIN_S
        return self.least_s

    def _note_rate(self, rate: float) -> None:
        self._rates.append(rate)
        self.rate = max(self._rates)

    def _wanted(self, least_s: float) -> int:
        return int(self.rate * (least_s + queue_wanted_s(least_s, self.rate)))

    def _allow(self, limit: int) -> None:
        self.limit_bytes = max(LEAST_BYTES, min(limit, self.most_bytes))
        if not self.rate:
            return
        # What is under way is sent, received and acknowledged at the same time; near, the link takes no time.
        share = 2 if self.least_s is not None and self.least_s < NEAR_S else 4
        message = min(int(self.rate * MESSAGE_S), self.limit_bytes // share, MESSAGE_MOST_BYTES)
        self.message_bytes = max(message, MESSAGE_LEAST_BYTES)

    def _slow_down(self, rate: float) -> None:
        """The round has not ended where it would have: what is known of the rate holds no more."""
        if rate * SLOWER_BY >= self.rate:
            return
        assert self.least_s is not None
        self._rates.clear()
        self._note_rate(rate)
        self._growing = False
        self._allow(self._wanted(self.least_s))


def queue_wanted_s(round_trip_s: float, bytes_per_s: float) -> float:
    """How long what is sent may wait before a link with such a round trip and rate."""
    if round_trip_s < NEAR_S and bytes_per_s:
        return min(QUEUE_S, max(NEAR_QUEUE_S, NEAR_QUEUE_BYTES / bytes_per_s))
    return max(QUEUE_S, round_trip_s * LONG_QUEUE_SHARE)
