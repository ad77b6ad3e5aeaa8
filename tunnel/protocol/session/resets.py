"""The streams that we RESET and whose RESET the peer has not acknowledged: their DATA may still come,
late."""

from __future__ import annotations

import attrs

from tunnel.protocol import frames
from tunnel.protocol.control import CONTROL_RESETS_MAX, ControlQueue, peer_resets_max
from tunnel.protocol.errors import CloseCode, Processed, RemoteProtocolError, StreamCode

__all__ = ["Resets"]


@attrs.define(eq=False)
class Resets:
    peer_parity: int
    control: ControlQueue
    unacknowledged: dict[int, int] = attrs.field(init=False, factory=dict)
    """The number of the RESET's frame, by stream id."""
    of_peer: int = attrs.field(init=False, default=0)
    """How many of these streams the peer had opened."""
    replayed_until: int = attrs.field(init=False, default=0)
    """What the peer sends below this number it had sent before the last attach, without knowing what it has
    received since. 0: all of that has come."""

    def send(self, stream_id: int, code: StreamCode, processed: Processed, reason: str) -> None:
        """Queue an immediate RESET."""
        # DATA may come late from now on. The frame has no number before it is sent.
        self.expect(stream_id, 2**64)
        self.control.resets.append(
            (stream_id, frames.reset(stream_id, code, processed, reason, in_line=False))
        )

    def expect(self, stream_id: int, number: int) -> None:
        """Bear with what still comes for this stream until the peer has frame `number`, its RESET."""
        self.unacknowledged[stream_id] = number
        if stream_id % 2 == self.peer_parity:
            self.of_peer += 1

    def acknowledge(self, count: int) -> None:
        """The peer has received `count` frames, and knows of the RESETs among them."""
        resets = self.unacknowledged
        while resets:
            stream_id = next(iter(resets))
            if resets[stream_id] >= count:
                break
            del resets[stream_id]
            if stream_id % 2 == self.peer_parity:
                self.of_peer -= 1

    def check(self, max_streams: int) -> None:
        """Raise RemoteProtocolError when the peer leaves too many unacknowledged."""
        count, of_peer = len(self.unacknowledged), self.of_peer
        if count > CONTROL_RESETS_MAX or of_peer > peer_resets_max(max_streams):
            raise RemoteProtocolError(
                f"{count} RESETs are not acknowledged, {of_peer} of them of streams of the peer",
                CloseCode.LIMITS,
            )
