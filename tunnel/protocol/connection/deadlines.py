"""What a session does by time: PING, ACK, doubt, and the end of waiting for a transport."""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs

from tunnel.protocol.control import ControlQueue
from tunnel.protocol.errors import Processed, StreamCode
from tunnel.protocol.ledger import ReceivedLedger
from tunnel.protocol.liveness import Liveness, RoundTrips
from tunnel.protocol.session.status import DETACHED, OPEN, Status
from tunnel.protocol.session.table import StreamTable

__all__ = ["OPEN_WAITS_S", "Deadlines"]

# How long an OPEN waits for the transport to come back; its caller has other ways.
OPEN_WAITS_S = 2.0


@attrs.define(eq=False)
class Deadlines:
    status: Status
    control: ControlQueue
    received: ReceivedLedger
    liveness: Liveness
    round_trips: RoundTrips
    table: StreamTable
    close: Callable[[StreamCode, str], None]
    """Ends the session."""

    def next(self) -> float:
        """When to call `tick`, or to give the peer up (`liveness.dead_at`), or to `doubt` it."""
        status, liveness, table = self.status, self.liveness, self.table
        if status.phase is not OPEN:
            if status.phase is not DETACHED:
                return math.inf
            expires_at = min(liveness.received_at + status.resume_ttl_s, self.doubt_at)
            return min(expires_at, status.detached_at + OPEN_WAITS_S) if table.unsent else expires_at
        deadline = min(liveness.ping_at(busy=table.count > 0), liveness.dead_at)
        # Nearly always every PING is answered.
        if liveness.unanswered_since < math.inf:
            deadline = min(deadline, self.doubt_at)
        ack_at = self.received.due_at
        # An ACK that waits for the transport is nothing that a clock could help.
        return deadline if ack_at is None or self.control.ack_due else min(deadline, ack_at)

    def tick(self, now: float) -> None:
        """Queue the PING and the ACK that are due; detached, end what has waited long enough."""
        if self.status.phase is not OPEN:
            if self.status.phase is DETACHED:
                self._expire(now)
            return
        if now >= self.liveness.ping_at(busy=self.table.count > 0):
            self.ping(now)
        if self.received.due(now):
            self.control.ack_due = True

    def _expire(self, now: float) -> None:
        ttl_s = self.status.resume_ttl_s
        if now >= self.liveness.received_at + ttl_s:
            self.close(StreamCode.DETACH_EXPIRED, f"the tunnel was away for {ttl_s:.0f} s")
        elif self.too_late_to_open(now):
            for stream in list(self.table.unsent):
                self.table.break_stream(
                    stream, StreamCode.REFUSED, Processed.NO, "the tunnel is away", in_line=False
                )

    def too_late_to_open(self, now: float) -> bool:
        """Whether the transport is away for so long already that an OPEN would not wait for it."""
        # As in `next`: a difference may round to less, and then the timer would be due again at once.
        return now >= self.status.detached_at + OPEN_WAITS_S

    def ping(self, now: float) -> None:
        number = self.round_trips.next()
        if number is not None:
            self.control.ping = number
        self.liveness.pinged(now)

    @property
    def doubt_at(self) -> float:
        """When to report to the streams that were opened here that the peer is in doubt (`doubt`)."""
        if not self.table.opened_here:
            return math.inf
        return self.liveness.doubt_at(attached=self.status.phase is OPEN)

    def doubt(self) -> None:
        """Report to the streams that were opened here that the peer is in doubt."""
        self.liveness.doubted = True
        for stream in [*self.table.unsent, *self.table.by_id.values()]:
            if stream.opened_here and stream.owner is not None:
                stream.owner.on_doubt()
