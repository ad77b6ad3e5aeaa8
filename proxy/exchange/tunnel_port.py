"""A stream of the tunnel as the client's port of an exchange: for the relay, which accepts it.

OPEN carries the request's head, HEAD the answer's, DATA is the body and FIN its clean end. RESET in line is
the cut: it follows the last byte and can be taken for nothing else. After a 101 the same stream carries raw
bytes.

What the hub sends stays in the stream's window, which is counted in memory, until the exchange takes it. Only
then the hub gets more credit.

The tunnel knows nothing of lengths, so they are checked here. A body of another length than its head promises
would leave the API server's connection at odds over where the next request begins.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.exchange.engine import OVER, Exchange
from proxy.message.failure import GONE, Failure, Processed, StreamCode
from proxy.message.head import ResponseHead
from tunnel.stream import Stream, StreamReset

# What a stream delivers in one pass, beside the other streams that a message has brought bytes for.
SHARE_BYTES = 256 * 1024

_OTHER_LENGTH = Failure(
    StreamCode.PROTOCOL, Processed.MAYBE, "the request's body has another length than its head says"
)


class TunnelPort:
    """An accepted stream (a Port).

    `soon` calls something in a later pass, when the tunnel's own work is done. `encode` makes the bytes of an
    answer's head that does not pass as it is. `body_bytes` is the length that the request's head promises;
    None where it promises none.
    """

    __slots__ = ("_body_left", "_delivering", "_encode", "_paused", "_soon", "exchange", "stream")

    def __init__(
        self,
        stream: Stream,
        soon: Callable[[Callable[[], None]], None],
        encode: Callable[[ResponseHead], bytes],
        body_bytes: int | None,
    ) -> None:
        self.exchange: Exchange = OVER
        self.stream = stream
        self._soon = soon
        self._encode = encode
        self._body_left = body_bytes
        self._paused = True
        # A delivery is under way, further down this stack.
        self._delivering = False
        stream.on_reset(self._on_reset)

    def __repr__(self) -> str:
        return repr(self.stream)

    # -- what the exchange calls

    @property
    def half_closes(self) -> bool:
        """See Port."""
        return True

    def head(self, head: ResponseHead, data: bytes, end: bool) -> bool:
        """See Port."""
        try:
            self.stream.send_answer_nowait(head.passes or self._encode(head), data, eof=end)
        except StreamReset:
            # Its reset was not seen to yet.
            self.exchange.broken(self, GONE)
            return False
        if end:
            self.exchange.flushed(self)
            return True
        return self._sent(self.stream.has_room, False)

    def write(self, data: bytes, end: bool) -> bool:
        """See Port."""
        try:
            room = self.stream.write(data, eof=end)
        except StreamReset:
            self.exchange.broken(self, GONE)
            return False
        return self._sent(room, end)

    def _sent(self, room: bool, end: bool) -> bool:
        if end:
            # What waits is the session's from here on: it counts it, and sends it also after a resumption.
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
        """See Port. The hub learns it by the RESET behind the answer."""
        self._paused = True

    def cut(self, failure: Failure, drop: bool) -> None:
        """See Port."""
        self.stream.reset(failure.code, processed=failure.processed, reason=failure.reason, in_line=not drop)

    # -- what the stream calls, within the tunnel's own work

    def _on_room(self) -> None:
        self._soon(self._has_room)

    def _on_reset(self) -> None:
        self._soon(self._is_gone)

    # -- and what is done about it

    def _has_room(self) -> None:
        self.exchange.room(self)

    def _is_gone(self) -> None:
        self.exchange.broken(self, GONE)

    def _deliver(self) -> None:
        """Pass on what has come, as long as it is wanted."""
        if self._delivering:
            return
        self._delivering = True
        try:
            self._deliver_share()
        except StreamReset:
            self.exchange.broken(self, GONE)
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
            self.exchange.data(self, data, end)
            if end:
                return
            share -= len(data)
            if share <= 0:
                self._soon(self._deliver)
                return

    def _counts(self, size: int, end: bool) -> bool:
        """Whether the body's length is still what its head says."""
        if self._body_left is None:
            return True
        self._body_left -= size
        return self._body_left >= 0 and not (end and self._body_left)
