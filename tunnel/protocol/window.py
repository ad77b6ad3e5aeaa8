"""Credit of one direction of one stream, as its receiver keeps it.

Charged when bytes arrive, returned when the consumer took them, never before: so what a peer can make us
hold is bounded by what we granted. It is returned in batches of half a window (a WINDOW frame for every
read would cost more than the read), or at once when the peer stands at 0 and waits for us.

Three numbers are enough. `credit` is what the peer may still send, `held` what arrived and was not
consumed; the difference of their sum to `size` is what is due back. Growing and shrinking is then only
another `size`: what was granted is never taken back, a smaller window is just slower to be granted again.
"""

from __future__ import annotations

from typing import Final

import attrs

from tunnel.protocol.errors import FlowControlError

INITIAL_WINDOW_BYTES = 64 * 1024
# One stream fills 560 Mbit/s at 60 ms with it. Fixed windows of 256 KiB cap a 120 ms link at 17 Mbit/s.
WINDOW_BYTES_MAX = 4 * 1024 * 1024
# Credit is a u32 on the wire, and a sum that wraps would be a silent stall.
CREDIT_MAX = 2**31 - 1
# An event loop under load answers later than the link does. Without a floor, a window on a fast local link
# would never grow, and a bulk stream would pay a WINDOW frame for every 32 KiB.
RTT_FLOOR_S = 0.005
GROWS_WITHIN_RTTS = 3


@attrs.define
class ReceiveWindow:
    size: int = INITIAL_WINDOW_BYTES
    credit: int = INITIAL_WINDOW_BYTES
    held: int = 0
    granted_at: float = 0.0
    """When credit was last returned: what is due since then tells how fast the window drains."""

    def receive(self, count: int) -> None:
        """Charge `count` bytes that arrived. More than was granted is FlowControlError."""
        if count > self.credit:
            raise FlowControlError(f"{count} bytes exceed the credit of {self.credit}")
        self.credit -= count
        self.held += count

    def consume(self, count: int) -> bool:
        """Take `count` of the bytes that are held; whether `grant` may have something."""
        assert 0 <= count <= self.held
        self.held -= count
        # Most of the time less than half was used, so less is due: see is_due.
        return self.credit * 2 <= self.size and self.is_due

    @property
    def is_due(self) -> bool:
        """Whether `grant` may have something, at any level of memory: a smaller window is not due earlier."""
        if self.credit * 2 > self.size:
            # Most of the time: less than half of it was used, so less is due.
            return False
        due = self.size - self.credit - self.held
        return due > 0 and (due * 2 >= self.size or self.credit <= 0)

    def grant(self, now: float, rtt_s: float | None, *, initial: int, may_grow: bool, squeezed: bool) -> int:
        """The credit to return now, already booked as granted; 0 when it is not worth a frame yet.

        A window that drains within three round trips is what limits its stream, so it doubles, while memory
        allows it. Half of one that does nothing but limit comes back a round trip, and a little: to ask for
        all of it within two would let the window grow every other time. When memory is squeezed nothing
        beyond the initial window is granted again.
        """
        size = min(self.size, initial) if squeezed else self.size
        due = size - self.credit - self.held
        if due <= 0 or (due * 2 < size and self.credit > 0):
            return 0
        if squeezed:
            self.size = size
        elif may_grow and size < WINDOW_BYTES_MAX and due * 2 >= size:
            limit_s = RTT_FLOOR_S if rtt_s is None or rtt_s < RTT_FLOOR_S else rtt_s
            if (now - self.granted_at) * size <= GROWS_WITHIN_RTTS * limit_s * due:
                self.size = min(size * 2, WINDOW_BYTES_MAX)
                due += self.size - size
        self.credit += due
        self.granted_at = now
        return due


# The window of every stream whose OPEN had FIN. It is shared, and nothing is ever received in it.
NO_WINDOW: Final = ReceiveWindow(0, 0)
