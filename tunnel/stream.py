"""One stream of a session: a `trio.abc.HalfCloseableStream` with a head in each direction.

The bytes, the halves and the credit are the core's (`StreamState`); this file is about tasks that wait.
There are four reasons to wait: for bytes, for the head, for room in the queue, for a RESET. Each has one
parking spot, and whatever happens to the stream (bytes, room, RESET, close, the session's end) wakes those
whom it concerns; they look again and decide for themselves. So a wakeup can be spurious but never lost, and
cancelling a wait changes nothing.
"""

from __future__ import annotations

import math
import operator
from types import TracebackType
from typing import TYPE_CHECKING

import trio

from tunnel.parking import ParkingSpot
from tunnel.protocol.errors import LocalProtocolError, Processed, StreamCode
from tunnel.protocol.state import Half, at_rest
from tunnel.protocol.streams import Context, StreamState

if TYPE_CHECKING:
    from tunnel.session import Session

# A caller waits while more than this is queued. It is what the writer can take in one or two wakeups: less
# would make it wait for the copier, more would only stand between the copier and the stream's own window.
QUEUE_HIGH_BYTES = 128 * 1024
# What receive_some returns at most when it is not told.
RECEIVE_BYTES = 64 * 1024


class StreamReset(trio.BrokenResourceError):
    """The stream was RESET: by the peer, by us, or with its session."""

    def __init__(self, code: StreamCode, processed: Processed, reason: str) -> None:
        super().__init__(f"{code.name}, processed: {processed.name}: {reason}")
        self.code = code
        self.processed = processed
        self.reason = reason


class Stream(trio.abc.HalfCloseableStream):
    """Bytes both ways, each with its own end, and a head at the start of each.

    Leaving a stream without having ended it aborts it: `aclose()` ends quietly what has ended in both
    directions, and RESETs everything else with CANCEL. (What was ended by send_eof still arrives.) A reader
    that sees b"" can therefore trust that the sender meant it; a cut upload never looks like a complete
    one.
    """

    ends_on_close = False
    """True: aclose() sends the end of our bytes first, as closing a socket does. For bytes whose end says
    nothing."""

    def __init__(self, session: Session, state: StreamState) -> None:
        self._session = session
        self._state = state
        self._closed = False
        self._failure: tuple[StreamCode, Processed, str] | None = None
        self._failed_in_line = False
        self._reader = ParkingSpot("another task is receiving from this stream")
        self._sender = ParkingSpot("another task is sending on this stream")
        self._head_reader = ParkingSpot("another task is waiting for this stream's head")
        self._watcher = ParkingSpot("another task is waiting for this stream's RESET")
        state.owner = self

    def __repr__(self) -> str:
        state = self._state
        return f"<Stream {state.id} {state.sending.value}/{state.receiving.value}>"

    @property
    def head(self) -> bytes:
        """The head that opened the stream."""
        return self._state.head

    @property
    def context(self) -> Context:
        """The context that the OPEN named; its `note` is the user's."""
        return self._state.context

    @property
    def bytes_sent(self) -> int:
        return self._state.bytes_sent

    @property
    def bytes_received(self) -> int:
        return self._state.bytes_received

    # --- heads ---

    async def send_head(self, head: bytes, *, eof: bool = False) -> None:
        """Answer with a head, once and before any bytes; for the side that accepted the stream.

        Raises StreamReset. When cancelled the head was not sent.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_sendable()
        # No schedule point: a head is followed by something that has one.
        self._session._send_head(self._state, head, eof=eof)

    async def receive_head(self) -> bytes:
        """Wait for the head of the answer; for the side that opened the stream.

        Raises StreamReset, also (PROTOCOL) when the answer begins or ends without a head.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._head_reader.check_free()
        if not self._state.opened_here:
            raise LocalProtocolError("the acceptor has the head already")
        waited = False
        try:
            while True:
                if self._closed:
                    raise trio.ClosedResourceError("this stream was closed")
                if self._failure is not None and not self._failed_in_line:
                    raise StreamReset(*self._failure)
                head = self._state.answer_head
                if head is not None:
                    return head
                if self._state.partial_head is None and self._state.receiving in (Half.FLOWING, Half.ENDED):
                    raise StreamReset(StreamCode.PROTOCOL, Processed.MAYBE, "the answer has no head")
                if self._failure is not None:
                    raise StreamReset(*self._failure)
                waited = True
                await self._head_reader.park()
        finally:
            if not waited:
                await trio.lowlevel.cancel_shielded_checkpoint()

    # --- receiving ---

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return bytes, or b"" at the clean end. Raises StreamReset. When cancelled no byte is lost."""
        limit = RECEIVE_BYTES if max_bytes is None else operator.index(max_bytes)
        if limit < 1:
            raise ValueError("max_bytes must be >= 1")
        await trio.lowlevel.checkpoint_if_cancelled()
        self._reader.check_free()
        waited = False
        try:
            while (data := self.receive_nowait(limit)) is None:
                waited = True
                await self._reader.park()
            return data
        finally:
            if not waited:
                await trio.lowlevel.cancel_shielded_checkpoint()

    def receive_nowait(self, max_bytes: int = RECEIVE_BYTES) -> bytes | None:
        """Return bytes that are here, b"" at the clean end, None where receive_some would wait.

        Raises StreamReset.
        """
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed")
        state = self._state
        if state.incoming.size:
            return self._session._take(state, max_bytes)
        # A RESET that was not in line may have dropped bytes, so even a half that ended is not whole.
        if self._failure is not None and not self._failed_in_line:
            raise StreamReset(*self._failure)
        if state.receiving is Half.ENDED:
            return b""
        if self._failure is not None:
            raise StreamReset(*self._failure)
        return None

    async def wait_reset(self) -> None:
        """Return once the stream was RESET, by whomever, lost with its session, or closed here."""
        await trio.lowlevel.checkpoint_if_cancelled()
        waited = False
        while self._failure is None and not self._closed:
            waited = True
            await self._watcher.park()
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()

    # --- sending ---

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Queue bytes, waiting while the queue is full. Raises StreamReset.

        When cancelled, an unknown part was sent.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._sender.check_free()
        # An owner of a bytearray may change it when we return; bytes are nobody's to change.
        rest = data if isinstance(data, bytes) else bytes(data)
        self._check_sendable()
        waited = False
        while True:
            while self._state.outgoing.size >= QUEUE_HIGH_BYTES:
                waited = True
                await self._wait_for_room()
            if len(rest) <= QUEUE_HIGH_BYTES:
                break
            self._session._send_data(self._state, rest[:QUEUE_HIGH_BYTES])
            rest = rest[QUEUE_HIGH_BYTES:]
        self._session._send_data(self._state, rest)
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()
        self._sender.check_free()
        self._check_sendable()
        while self._state.outgoing.size >= QUEUE_HIGH_BYTES:
            await self._wait_for_room()

    async def send_eof(self) -> None:
        """End our bytes; they still arrive, and the end behind them. A second call does nothing."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._sender.check_free()
        if self._closed or self._state.sending is not Half.ENDED:
            self._check_sendable()
            self._session._send_eof(self._state)
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def _wait_for_room(self) -> None:
        self._state.drain_wanted = True
        await self._sender.park()
        self._check_sendable()

    def _check_sendable(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed")
        if self._failure is not None:
            raise StreamReset(*self._failure)
        if self._state.sending is Half.ENDED:
            raise trio.ClosedResourceError("the end of this stream was sent already")

    # --- the end ---

    def reset(
        self,
        code: StreamCode,
        *,
        processed: Processed = Processed.MAYBE,
        reason: str = "",
        in_line: bool = False,
    ) -> None:
        """Abort both directions now; whoever waits on this stream gets StreamReset with the same code.

        `in_line`: what was sent before still arrives, then the error. Does nothing to a stream that is over.
        """
        if self._closed or self._failure is not None:
            return
        self._failure = (code, processed, reason)
        self._session._reset(self._state, code, processed, reason, in_line=in_line)
        self._wake_all()

    async def aclose(self) -> None:
        """Leave the stream; see the class. Never waits, and is complete even when cancelled."""
        if not self._closed:
            self._closed = True
            self._state.owner = None
            if self._failure is None:
                if self.ends_on_close and not at_rest(self._state.sending) and not _is_cancelled():
                    self._session._send_eof(self._state)
                self._leave()
            else:
                self._session._discard(self._state)
            self._wake_all()
        await trio.lowlevel.checkpoint()

    def _leave(self) -> None:
        state = self._state
        if at_rest(state.sending) and at_rest(state.receiving):
            self._session._discard(state)
            return
        # What we ended is not taken back: the RESET, which tells the peer to stop, goes behind it.
        in_line = state.sending is Half.ENDED
        self._session._reset(state, StreamCode.CANCEL, Processed.MAYBE, "closed", in_line=in_line)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self.reset(StreamCode.CANCEL, reason="left by an exception")
        await self.aclose()

    # --- what the session tells ---

    def _on_data(self) -> None:
        self._reader.unpark()
        self._head_reader.unpark()

    def _on_head(self) -> None:
        self._head_reader.unpark()

    def _on_room(self) -> None:
        self._sender.unpark()

    def _on_broken(self, code: StreamCode, processed: Processed, reason: str, *, in_line: bool) -> None:
        if self._failure is None:
            self._failure = (code, processed, reason)
        # Bytes that memory took back are gone, even if the stream itself had ended well in line.
        self._failed_in_line = in_line
        self._wake_all()

    def _wake_all(self) -> None:
        self._reader.unpark()
        self._sender.unpark()
        self._head_reader.unpark()
        self._watcher.unpark()


def _is_cancelled() -> bool:
    return trio.current_effective_deadline() == -math.inf
