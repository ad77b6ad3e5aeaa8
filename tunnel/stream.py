"""One stream of a session: a `trio.abc.HalfCloseableStream` with a head in each direction.

The bytes, the halves and the credit are in the core (`StreamState`); this file is about tasks that wait. A
task waits for bytes, for the head, or for room in the queue. Each has a waker, made when it is first needed.
What happens to the stream (bytes, room, RESET, close, the session's end) wakes the tasks that it concerns,
and they check again. So a wakeup can be spurious but is never lost, and cancelling a wait changes nothing.
One message of the peer can wake hundreds of tasks, so a woken task continues in the first pass that has room
for it (`tunnel.net.fairness`).

Methods that end in `_nowait` have no checkpoint. They are for callers that do several such steps in a row and
wait elsewhere: a checkpoint costs as much as the rest of the exchange.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable
from functools import partial
from types import TracebackType

import trio

from tunnel.driver import QUEUE_HIGH_BYTES, Driver
from tunnel.net.fairness import SMALL_PIECE_BYTES
from tunnel.net.waker import NO_WAKER, Waker
from tunnel.protocol.errors import LocalProtocolError, Processed, StreamCode
from tunnel.protocol.state import ENDED, FLOWING
from tunnel.protocol.streams import Context, StreamState

PIECE_BYTES_MOST = 128 * 1024
# What receive_some returns at most by default.
RECEIVE_BYTES = 128 * 1024


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

    __slots__ = (
        "_closed",
        "_driver",
        "_failed_in_line",
        "_failure",
        "_head_reader",
        "_reader",
        "_sender",
        "_state",
        "_tell_doubt",
        "_tell_input",
        "_tell_reset",
        "_tell_room",
        "_unqueued_bytes",
        "waits",
    )

    def __init__(self, driver: Driver, state: StreamState) -> None:
        self._driver = driver
        self._state = state
        self._closed = False
        self._failure: tuple[StreamCode, Processed, str] | None = None
        self._failed_in_line = False
        self._reader: Waker = NO_WAKER
        self._sender: Waker = NO_WAKER
        self._head_reader: Waker = NO_WAKER
        self._tell_input: Callable[[], None] | None = None
        self._tell_doubt: Callable[[], object] | None = None
        self._tell_reset: Callable[[], None] | None = None
        self._tell_room: Callable[[], None] | None = None
        self.waits = not state.opened_here
        """The user of the session has not been given it yet; until then `on_broken` is put off."""
        # The rest of the bytes of a sender that waits for room.
        self._unqueued_bytes = 0
        state.owner = self

    def __repr__(self) -> str:
        state = self._state
        return f"<Stream {state.id} {state.sending.value}/{state.receiving.value}>"

    @property
    def head(self) -> bytes:
        """The head that opened the stream; where that was here, only until it has left."""
        return self._state.head

    @property
    def context(self) -> Context:
        """The context that the OPEN named; its `note` is the user's."""
        return self._state.context

    @property
    def peer(self) -> Hashable:
        """The fairness key: the session's peer, or the group of a stream that the peer opened."""
        state = self._state
        return self._driver if state.opened_here else state.group

    @property
    def bytes_sent(self) -> int:
        return self._state.bytes_sent

    @property
    def bytes_received(self) -> int:
        return self._state.bytes_received

    @property
    def broken(self) -> bool:
        """Whether it was RESET, by the peer or by us, or was lost with its session."""
        return self._failure is not None

    @property
    def evicted(self) -> bool:
        """Whether it was RESET to make room in memory, here or at the peer's."""
        return self._failure is not None and self._failure[0] is StreamCode.OVERLOADED

    @property
    def held_up_bytes(self) -> int:
        """The bytes that a sender holds while it waits for room; the queue does not count them."""
        return self._unqueued_bytes

    # --- heads ---

    async def send_head(self, head: bytes, *, eof: bool = False) -> None:
        """Answer with a head, once and before any bytes; for the side that accepted the stream.

        Raises StreamReset. When cancelled the head was not sent.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        # No checkpoint: a head is followed by a call that has one.
        self.send_answer_nowait(head, eof=eof)

    def send_answer_nowait(self, head: bytes, data: bytes = b"", *, eof: bool = False) -> None:
        """Answer with a head, the bytes behind it and, with `eof`, the end, in one step.

        Raises StreamReset. At most QUEUE_HIGH_BYTES: more would have to wait, and that is ValueError.
        """
        if len(data) > QUEUE_HIGH_BYTES:
            raise ValueError(f"an answer of {len(data)} bytes at once; {QUEUE_HIGH_BYTES} may be")
        state = self._state
        if self._closed or self._failure is not None or state.sending is ENDED:
            self._check_sendable()
        self._driver.send_head(state, head, data, eof)

    async def receive_head(self) -> bytes:
        """Wait for the head of the answer; for the side that opened the stream.

        Raises StreamReset, also (PROTOCOL) when the answer begins or ends without a head.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        waited = False
        try:
            while (head := self.receive_head_nowait()) is None:
                waited = True
                if self._head_reader is NO_WAKER:
                    self._head_reader = Waker("another task is waiting for this stream's head")
                await self._head_reader.park()
                if not self._driver.fairness.admits():
                    await self._driver.fairness.wait(self.peer)
            return head
        finally:
            if not waited:
                await trio.lowlevel.cancel_shielded_checkpoint()

    def receive_head_nowait(self) -> bytes | None:
        """Return the head of the answer if it is here, None where receive_head would wait.

        Raises what receive_head raises.
        """
        state = self._state
        if not state.opened_here:
            raise LocalProtocolError("the acceptor has the head already")
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed")
        if self._failure is not None and not self._failed_in_line:
            raise StreamReset(*self._failure)
        head = state.answer_head
        if head is not None:
            return head
        if state.partial_head is None and state.receiving in (FLOWING, ENDED):
            raise StreamReset(StreamCode.PROTOCOL, Processed.MAYBE, "the answer has no head")
        if self._failure is not None:
            raise StreamReset(*self._failure)
        return None

    def on_answer(
        self, tell: Callable[[], None] | None, tell_doubt: Callable[[], object] | None = None
    ) -> None:
        """Call `tell` once, when part of the answer is here, or there will be none.

        That needs no task. The call comes when the core has handled the whole message, so it may use this
        stream, but must neither wait nor raise. None removes the callback. `tell_doubt` is called at most
        once before, by the same rules, when the peer is in doubt and no head has come (PROTOCOL.md,
        "Liveness").
        """
        self._tell_input = tell
        self._tell_doubt = tell_doubt

    def when_input(self, tell: Callable[[], None]) -> None:
        """Call `tell` once, when bytes or the end have come, or the stream is broken.

        As `on_answer` has it.
        """
        self._tell_input = tell

    # --- receiving ---

    def take_last(self, size: int | None, bytes_max: int) -> bytes | None:
        """Return the rest of the bytes, if the clean end follows them; else None, and nothing is taken.

        None also for another rest than `size` bytes, or for more than `bytes_max`. Costs a third of
        `receive_nowait` and `at_end`.
        """
        state = self._state
        rest = state.incoming.size
        if (
            state.receiving is not ENDED
            or not rest
            or rest > bytes_max
            or (size is not None and size != rest)
            or self._failure is not None
            or self._closed
        ):
            return None
        return self._driver.connection.streams.take_rest(state)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return bytes, or b"" at the clean end. Raises StreamReset. When cancelled no byte is lost."""
        limit = RECEIVE_BYTES if max_bytes is None else operator.index(max_bytes)
        if limit < 1:
            raise ValueError("max_bytes must be >= 1")
        await trio.lowlevel.checkpoint_if_cancelled()
        waited = False
        try:
            while (data := self.receive_nowait(limit)) is None:
                waited = True
                if self._reader is NO_WAKER:
                    self._reader = Waker("another task is receiving from this stream")
                await self._reader.park()
                if self._state.incoming.size <= SMALL_PIECE_BYTES and not self._driver.fairness.admits():
                    await self._driver.fairness.wait(self.peer)
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
            return self._driver.take(state, max_bytes)
        # A RESET that was not in line may have dropped bytes, so even a half that ended is not whole.
        if self._failure is not None and not self._failed_in_line:
            raise StreamReset(*self._failure)
        if state.receiving is ENDED:
            return b""
        if self._failure is not None:
            raise StreamReset(*self._failure)
        return None

    @property
    def has_input(self) -> bool:
        """Whether bytes are here to receive."""
        return self._state.incoming.size > 0

    @property
    def at_end(self) -> bool:
        """Whether all bytes were received, and a clean end behind them."""
        state = self._state
        return state.receiving is ENDED and not state.incoming.size and self._failure is None

    def on_reset(self, tell: Callable[[], None] | None) -> None:
        """Call `tell` once, when the peer RESETs the stream or it is lost with its session.

        At once if that has happened already. The call delays every other stream, so it must neither wait nor
        raise. None removes the callback.
        """
        if tell is not None and self._failure is not None:
            tell()
        else:
            self._tell_reset = tell

    # --- sending ---

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Queue bytes, waiting while the queue is full. Raises StreamReset.

        When cancelled, an unknown part was sent.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._sender.check_free()
        # A bytearray may be changed by the caller when we return; bytes cannot change.
        rest = data if isinstance(data, bytes) else bytes(data)
        self._check_sendable()
        waited = False
        while True:
            while self._state.outgoing.size > QUEUE_HIGH_BYTES:
                waited = True
                await self._wait_for_room(len(rest))
            if len(rest) <= PIECE_BYTES_MOST:
                break
            self._driver.send_data(self._state, rest[:PIECE_BYTES_MOST])
            rest = rest[PIECE_BYTES_MOST:]
        self._driver.send_data(self._state, rest)
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()

    def send_nowait(self, data: bytes, *, eof: bool = False) -> bool:
        """Queue bytes and, with `eof`, the end. False where send_all would wait, and then nothing was queued.

        Raises StreamReset.
        """
        state = self._state
        if self._sender is not NO_WAKER:
            self._sender.check_free()
        if self._closed or self._failure is not None or state.sending is ENDED:
            self._check_sendable()
        # As send_all does: a queue below the mark takes one more piece.
        if state.outgoing.size > QUEUE_HIGH_BYTES or len(data) > PIECE_BYTES_MOST:
            return False
        self._driver.send_data(state, data, eof=eof)
        return True

    def write(self, data: bytes, *, eof: bool = False) -> bool:
        """Queue bytes and, with `eof`, the end; whether there is room for PIECE_BYTES_MOST more.

        Raises StreamReset.
        """
        state = self._state
        if self._closed or self._failure is not None or state.sending is ENDED:
            self._check_sendable()
        self._driver.send_data(state, data, eof=eof)
        return state.outgoing.size <= QUEUE_HIGH_BYTES

    @property
    def has_room(self) -> bool:
        """Whether send_nowait would take PIECE_BYTES_MOST now, unless it raises."""
        return self._state.outgoing.size <= QUEUE_HIGH_BYTES

    def when_room(self, tell: Callable[[], None]) -> None:
        """Call `tell` once, when there is room again; to be used when there is none.

        The call comes out of the middle of the core's work: it must neither wait nor raise, nor use any
        stream.
        """
        self._tell_room = tell
        self._state.drain_wanted = True

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()
        self._sender.check_free()
        self._check_sendable()
        while self._state.outgoing.size > QUEUE_HIGH_BYTES:
            await self._wait_for_room()

    async def send_eof(self) -> None:
        """End our bytes; they still arrive, and the end behind them. A second call does nothing.

        Raises StreamReset.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self.send_eof_nowait()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def send_eof_nowait(self) -> None:
        """send_eof without its checkpoint: it never waits."""
        self._sender.check_free()
        if self._closed or self._state.sending is not ENDED:
            self._check_sendable()
            self._driver.send_eof(self._state)

    async def _wait_for_room(self, size: int = 0) -> None:
        if self._sender is NO_WAKER:
            self._sender = Waker("another task is sending on this stream")
        self._state.drain_wanted = True
        self._unqueued_bytes = size
        try:
            await self._sender.park()
        finally:
            self._unqueued_bytes = 0
        self._check_sendable()

    def _check_sendable(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed")
        if self._failure is not None:
            raise StreamReset(*self._failure)
        if self._state.sending is ENDED:
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
        """Abort both directions now; a task that waits on this stream gets StreamReset with the same code.

        `in_line`: what was sent before still arrives, then the error. Does nothing to a stream that is over.
        """
        if self._closed or self._failure is not None:
            return
        self._failure = (code, processed, reason)
        self._driver.reset(self._state, code, processed, reason, in_line=in_line)
        self._wake_all()

    async def aclose(self) -> None:
        """Leave the stream; see the class. Never waits, and is complete even when cancelled."""
        self.close_nowait()
        await trio.lowlevel.checkpoint()

    def close_nowait(self) -> None:
        """aclose without its checkpoint."""
        if self._closed:
            return
        self._closed = True
        state = self._state
        state.owner = None
        # These callbacks hold this stream: the cycle would last until a garbage collection.
        self._tell_reset = self._tell_doubt = self._tell_input = self._tell_room = None
        if self._failure is None:
            if state.sending is not ENDED or state.receiving is not ENDED or state.incoming.size:
                self._leave()
        else:
            self._driver.connection.streams.discard_received(state)
        if not (self._reader is self._sender is self._head_reader is NO_WAKER):
            self._wake_all()

    def _leave(self) -> None:
        state = self._state
        if state.sending.at_rest and state.receiving.at_rest:
            if state.incoming.size:
                self._driver.connection.streams.discard_received(state)
            return
        # What we ended still arrives: the RESET, by which the peer stops, follows it.
        in_line = state.sending is ENDED
        self._driver.reset(state, StreamCode.CANCEL, Processed.MAYBE, "closed", in_line=in_line)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self.reset(StreamCode.CANCEL, reason="left by an exception")
        await self.aclose()

    # --- what the core calls (protocol.streams.StreamOwner) ---

    def on_data(self) -> None:
        if self._tell_input is not None:
            self._driver.due.append(self._tell_input)
            self._tell_input = None
        if self._reader is not NO_WAKER:
            self._reader.unpark()
        # The bytes mean that there is no head.
        if self._head_reader is not NO_WAKER:
            self._head_reader.unpark()

    def on_head(self) -> None:
        if self._tell_input is not None:
            self._driver.due.append(self._tell_input)
            self._tell_input = None
        if self._head_reader is not NO_WAKER:
            self._head_reader.unpark()

    def on_room(self) -> None:
        tell, self._tell_room = self._tell_room, None
        if tell is not None:
            tell()
        self._sender.unpark()

    def on_broken(self, code: StreamCode, processed: Processed, reason: str, *, in_line: bool) -> None:
        if self.waits:
            self._driver.due.append(partial(self.on_broken, code, processed, reason, in_line=in_line))
            return
        if self._failure is None:
            self._failure = (code, processed, reason)
        # Bytes that memory took back are gone, even if the stream itself had ended well in line.
        self._failed_in_line = in_line
        if self._tell_input is not None:
            self._driver.due.append(self._tell_input)
            self._tell_input = None
        self._wake_all()
        tell, self._tell_reset = self._tell_reset, None
        if tell is not None:
            tell()

    def on_doubt(self) -> None:
        tell = self._tell_doubt
        if tell is not None and self._failure is None and self._state.answer_head is None:
            self._tell_doubt = None
            self._driver.due.append(tell)

    def _wake_all(self) -> None:
        # On most streams no task ever waited.
        if self._reader is not NO_WAKER:
            self._reader.unpark()
        if self._sender is not NO_WAKER:
            self._sender.unpark()
        if self._head_reader is not NO_WAKER:
            self._head_reader.unpark()
