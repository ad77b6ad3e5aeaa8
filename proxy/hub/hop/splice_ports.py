"""The two ports of a forwarded call at the second hub: both are streams, and no head is read.

For the exchange every forwarded answer is one of a raw stream, as after a 101: its directions are
independent, and each end is passed on by itself. What a head means, and what follows from it (an upload that
an early answer ends, a body of another length), is for the first hub and for the relay. So the second hub
parses nothing of a call, and a peer cannot confuse it.

A RESET is passed on with its code, whether the API server may have seen the request, and its reason.
"""

from __future__ import annotations

from proxy.exchange.engine import OVER
from proxy.exchange.next_pass import NextPass
from proxy.exchange.tunnel_port import TunnelPort
from proxy.hub.calls.relay_port import RelayPort
from proxy.message.failure import Failure
from proxy.message.head import ResponseHead
from tunnel.driver import QUEUE_HIGH_BYTES
from tunnel.protocol.state import ENDED
from tunnel.stream import Stream, StreamReset


def failure_of(reset: StreamReset) -> Failure:
    """Return the failure that a RESET states."""
    return Failure(reset.code, reset.processed, reset.reason)


class PeerPort(TunnelPort):
    """A stream that the first hub has opened (a Port)."""

    __slots__ = ()

    def __init__(self, stream: Stream, passes: NextPass) -> None:
        super().__init__(stream, passes, ResponseHead.encode, None)

    def _break(self) -> None:
        reset = self.stream.failure
        assert reset is not None, "it was reset"
        self.exchange.broken(self, failure_of(reset))


class SplicedPort(RelayPort):
    """A stream that this hub has opened to a relay of its own (a Port)."""

    __slots__ = ()

    # The attributes of a RelayPort, but those that are about heads.
    def __init__(self, stream: Stream, passes: NextPass) -> None:
        self.exchange = OVER
        self.bytes_passed = self.bytes_dropped = 0
        self.stream = stream
        self._passes = passes
        self._paused = self._awaits_head = True
        self._busy = self._answered = False
        self._held = None
        stream.on_reset(self._on_reset)
        stream.when_input(self._deliver)

    def _deliver_head(self) -> bool:
        """Pass on the answer's head unread, and received bytes behind it."""
        stream = self.stream
        encoded = stream.receive_head_nowait()
        if encoded is None:
            self._awaits_head = True
            stream.when_input(self._deliver)
            return False
        # An answer takes no more at once.
        rest = stream.take_last(None, QUEUE_HIGH_BYTES)
        data, end = (rest, True) if rest is not None else self._take()
        self._answered = True
        self._paused |= end
        self.bytes_passed = len(data or b"")
        self.exchange.answer_head(ResponseHead(101, b"", None, encoded, encoded), data or b"", end)
        return data is not None and not end

    def _take(self) -> tuple[bytes | None, bool]:
        """See RelayPort. The length of a body is not checked."""
        reset = self.stream.failure
        if reset is not None and not reset.in_line:
            # In line, the client would get what waits for it first.
            self.exchange.end(failure_of(reset))
            return None, False
        data = self.stream.receive_nowait()
        if data is None:
            self.stream.when_input(self._deliver)
            return None, False
        return data, not data or self.stream.at_end

    def _on_reset(self) -> None:
        self._passes.soon(self.stream.peer, self._is_reset)

    def _is_reset(self) -> None:
        exchange, reset = self.exchange, self.stream.failure
        assert reset is not None, "it was reset"
        if exchange.over:
            return
        if exchange.answer.half is ENDED:
            # The relay takes no more of the request.
            exchange.broken(self, failure_of(reset))
        elif not reset.in_line:
            # Also while the port is paused: the bytes that it has not passed on are gone.
            exchange.end(failure_of(reset))
