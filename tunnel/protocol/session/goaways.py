"""GOAWAY in both directions (PROTOCOL.md, "The end of a session")."""

from __future__ import annotations

import attrs

from tunnel.protocol import frames
from tunnel.protocol.control import ControlQueue

__all__ = ["GoAways"]


@attrs.define(eq=False)
class GoAways:
    control: ControlQueue
    sent: bool = attrs.field(init=False, default=False)
    """We said GOAWAY: what the peer opens from then on is refused."""
    last_id: int = attrs.field(init=False, default=0)
    """The last stream of the peer that is not refused."""
    opens_no_more: bool = attrs.field(init=False, default=False)
    """The peer said GOAWAY, or our ids are used up: nothing more is opened here."""
    frame: bytes = attrs.field(init=False, default=b"")
    """The last one that was queued."""
    _retry_after_ms: int = attrs.field(init=False, default=0)

    def send(self, last_id: int, code: int, drain_ms: int, retry_after_ms: int, reason: str) -> None:
        """Ask the peer to open no stream beyond `last_id`; the first such id stands."""
        if not self.sent:
            self.sent = True
            self.last_id = last_id
        # The peer goes by the last GOAWAY, and the end of the session sends another: the longest wait stands.
        retry_after_ms = self._retry_after_ms = max(self._retry_after_ms, retry_after_ms)
        self.frame = frames.goaway(self.last_id, code, drain_ms, retry_after_ms, reason)
        self.control.goaway = self.frame

    def repeat(self) -> None:
        """Send the last one again on a new transport, as GOAWAY is not sequenced."""
        if self.sent:
            self.control.goaway = self.frame
