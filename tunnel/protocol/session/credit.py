"""Credit that is returned to the peer, as a WINDOW, once bytes were taken."""

from __future__ import annotations

import attrs

from tunnel.protocol.control import ControlQueue
from tunnel.protocol.liveness import RoundTrips
from tunnel.protocol.memory import Level, Memory
from tunnel.protocol.session.status import Status
from tunnel.protocol.streams import StreamState

__all__ = ["Credit"]


@attrs.define(eq=False)
class Credit:
    status: Status
    memory: Memory
    control: ControlQueue
    round_trips: RoundTrips

    def grant(self, stream: StreamState, now: float) -> None:
        """Queue the WINDOW that is due for the stream, if one is."""
        if not stream.window.is_due:
            return
        level = self.memory.level()
        delta = stream.window.grant(
            now,
            self.round_trips.least_s,
            initial=self.status.local.initial_window,
            may_grow=level is Level.FREE,
            squeezed=level is Level.SQUEEZED,
        )
        if delta:
            self.control.add_window(stream, delta)
