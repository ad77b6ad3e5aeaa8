"""The numbers of the sequenced frames, in both directions (PROTOCOL.md, "Sequence numbers").

Frames of types below 0x10 are numbered implicitly: the first one a session sends is 0, and no byte of the
number is on the wire. What the peer has not acknowledged yet is bounded, and the bound is the connection's
window: when it is full the writer stops taking DATA, OPEN and HEAD. It is never an error: a slow link is
not a broken one.
"""

from __future__ import annotations

from collections import deque

import attrs

from tunnel.protocol.errors import RemoteProtocolError

# About 560 Mbit/s at 120 ms of round trip.
LEDGER_BYTES_MAX = 8 * 1024 * 1024
# What RESET, WINDOW and CONTEXT may go beyond that: they are what lets a full session move again.
LEDGER_RESERVE_BYTES = 1024 * 1024

ACK_EVERY_FRAMES = 64
ACK_EVERY_BYTES = 256 * 1024
ACK_AFTER_S = 0.050


@attrs.define
class SentLedger:
    """What we sent and the peer has not acknowledged."""

    acknowledged: int = 0
    unacknowledged_bytes: int = 0
    _sizes: deque[int] = attrs.field(init=False, factory=deque)

    @property
    def next_number(self) -> int:
        return self.acknowledged + len(self._sizes)

    @property
    def full(self) -> bool:
        return self.unacknowledged_bytes >= LEDGER_BYTES_MAX

    @property
    def exhausted(self) -> bool:
        """Even the reserve is used up: the peer takes without ever acknowledging."""
        return self.unacknowledged_bytes >= LEDGER_BYTES_MAX + LEDGER_RESERVE_BYTES

    def record(self, size: int) -> None:
        self._sizes.append(size)
        self.unacknowledged_bytes += size

    def acknowledge(self, count: int) -> None:
        """Take the peer's word that it has received `count` frames in all; an older word changes nothing."""
        if count > self.next_number:
            raise RemoteProtocolError(f"{count} frames acknowledged, {self.next_number} sent")
        sizes = self._sizes
        for _ in range(count - self.acknowledged):
            self.unacknowledged_bytes -= sizes.popleft()
        self.acknowledged = max(self.acknowledged, count)


@attrs.define
class ReceivedLedger:
    """What we received, and when the peer should hear of it."""

    count: int = 0
    acknowledged: int = 0
    unacknowledged_bytes: int = 0
    due_at: float | None = None

    def record(self, frames: int, size: int, now: float) -> None:
        self.count += frames
        self.unacknowledged_bytes += size
        if self.due_at is None:
            self.due_at = now + ACK_AFTER_S

    def due(self, now: float) -> bool:
        return self.due_at is not None and (
            self.count - self.acknowledged >= ACK_EVERY_FRAMES
            or self.unacknowledged_bytes >= ACK_EVERY_BYTES
            or now >= self.due_at
        )

    def said(self) -> int:
        """The count to put into ACK, PING or PONG; the peer knows it from now on."""
        self.acknowledged = self.count
        self.unacknowledged_bytes = 0
        self.due_at = None
        return self.count
