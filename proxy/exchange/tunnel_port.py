"""An accepted tunnel stream as the client's port of an exchange, at the relay.

OPEN carries the request's head, HEAD carries the answer's. DATA is the body and FIN its clean end. A cut is a
RESET in line: it follows the last byte and is unambiguous. After a 101 the same stream carries raw bytes.

Bytes from the hub stay in the stream's window until the exchange takes them. The window is counted as memory.
The hub gets more credit only after the exchange has taken the bytes.

The tunnel does not check body lengths, so this port does. A body of a wrong length would desynchronize the
API server's connection: the next request would begin at the wrong byte.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.exchange.engine import OVER, SHARE_BYTES, Exchange
from proxy.exchange.next_pass import NextPass
from proxy.message.failure import GONE, Failure, Processed, StreamCode
from proxy.message.head import ResponseHead
from tunnel.stream import Stream, StreamReset

_OTHER_LENGTH = Failure(
    StreamCode.PROTOCOL, Processed.MAYBE, "the request's body has another length than its head says"
)


class TunnelPort:
    """An accepted stream (a Port).

    `passes` schedules calls for a later pass, after the tunnel's own work. `encode` encodes an answer's head
    that cannot pass unchanged. `body_bytes` is the body's length by the request's head, or None if the head
    has no length.
    """

    __slots__ = ("_body_left", "_delivering", "_encode", "_passes", "_paused", "exchange", "stream")

    def __init__(
        self,
        stream: Stream,
        passes: NextPass,
        encode: Callable[[ResponseHead], bytes],
        body_bytes: int | None,
    ) -> None:
        self.exchange: Exchange = OVER
        self.stream = stream
        self._passes = passes
        self._encode = encode
        self._body_left = body_bytes
        self._paused = True
        # A delivery is in progress, in an outer call.
        self._delivering = False
        stream.on_reset(self._on_reset)

    def __repr__(self) -> str:
        return repr(self.stream)

    # -- calls from the exchange

    @property
    def half_closes(self) -> bool:
        """See Port."""
        return True

    def head(self, head: ResponseHead, data: bytes, end: bool) -> bool:
        """See Port."""
        try:
            room = self.stream.send_answer_nowait(head.passes or self._encode(head), data, eof=end)
        except StreamReset:
            # The reset has arrived, but the scheduled `_break` has not run yet.
            self._break()
            return False
        if end:
            self.exchange.flushed(self)
            return True
        return self._sent(room, False)

    def write(self, data: bytes, end: bool) -> bool:
        """See Port."""
        try:
            room = self.stream.write(data, eof=end)
        except StreamReset:
            self._break()
            return False
        return self._sent(room, end)

    def _sent(self, room: bool, end: bool) -> bool:
        if end:
            # The session owns the queued bytes now: it counts them, and sends them even after a resumption.
            self.exchange.flushed(self)
        elif not room:
            self.stream.when_room(self._on_room)
        return room

    def pause(self) -> None:
        """See Port."""
        self._paused = True

    def resume(self) -> None:
        """See Port."""
        self._paused = False
        self._deliver()

    def stop(self) -> None:
        """See Port. The RESET after the answer tells the hub."""
        self._paused = True

    def cut(self, failure: Failure, drop: bool) -> None:
        """See Port."""
        self.stream.reset(failure.code, processed=failure.processed, reason=failure.reason, in_line=not drop)

    # -- calls from the stream, within the tunnel's own work

    def _on_room(self) -> None:
        self._passes.soon(self.stream.peer, self._has_room)

    def _on_reset(self) -> None:
        self._passes.soon(self.stream.peer, self._break)

    # -- the scheduled reactions

    def _has_room(self) -> None:
        self.exchange.room(self)

    def _break(self) -> None:
        self.exchange.broken(self, GONE)

    def _deliver(self) -> None:
        """Pass on the received bytes until the port is paused."""
        if self._delivering:
            return
        self._delivering = True
        try:
            self._deliver_share()
        except StreamReset:
            self._break()
        except Exception as error:
            self.exchange.crash(error)
        finally:
            self._delivering = False

    def _deliver_share(self) -> None:
        stream, share = self.stream, SHARE_BYTES
        while not (self._paused or self.exchange.over):
            data = stream.receive_nowait()
            if data is None:
                stream.when_input(self._deliver)
                return
            end = not data or stream.at_end
            if not self.exchange.spliced and not self._counts(len(data), end):
                self.exchange.broken(self, _OTHER_LENGTH)
                return
            if end:
                # Another call of `_deliver` may be scheduled, and would find the end again.
                self._paused = True
            self.exchange.data(self, data, end)
            if end:
                return
            share -= len(data)
            if share <= 0:
                self._passes.soon(self.stream.peer, self._deliver)
                return

    def _counts(self, size: int, end: bool) -> bool:
        """Whether the body still fits the length in its head."""
        if self._body_left is None:
            return True
        self._body_left -= size
        return self._body_left >= 0 and not (end and self._body_left)
