"""One stream of a session: bytes both ways with credit, and a head in each direction.

The bytes, the halves and the credit are in the core (`StreamState`). Nothing here waits. A caller that finds
no bytes or no room sets a callback, which is called once. So a stream needs no task: it continues in the
callback that reads the peer's message.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial

import trio

from tunnel.driver import QUEUE_HIGH_BYTES, Driver
from tunnel.protocol.errors import LocalProtocolError, Processed, StreamCode
from tunnel.protocol.state import ENDED, FLOWING
from tunnel.protocol.streams import Context, StreamState

# What receive_nowait returns at most by default.
RECEIVE_BYTES = 128 * 1024


class StreamReset(trio.BrokenResourceError):
    """The stream was RESET: by the peer, by us, or with its session."""

    def __init__(self, code: StreamCode, processed: Processed, reason: str, *, in_line: bool = False) -> None:
        super().__init__(f"{code.name}, processed: {processed.name}: {reason}")
        self.code = code
        self.processed = processed
        self.reason = reason
        self.in_line = in_line
        """What was received before it could still be taken; as `Stream.failure` has it."""


class Stream:
    """Bytes both ways, each with its own end, and a head at the start of each.

    Leaving a stream without having ended it aborts it: `close_nowait` ends quietly what has ended in both
    directions, and RESETs everything else with CANCEL. (What was ended by `eof` still arrives.) A reader
    that sees b"" can therefore trust that the sender meant it; a cut upload never looks like a complete
    one.
    """

    __slots__ = (
        "_closed",
        "_driver",
        "_failed_in_line",
        "_failure",
        "_state",
        "_tell_doubt",
        "_tell_input",
        "_tell_reset",
        "_tell_room",
        "waits",
    )

    def __init__(self, driver: Driver, state: StreamState) -> None:
        self._driver = driver
        self._state = state
        self._closed = False
        self._failure: tuple[StreamCode, Processed, str] | None = None
        self._failed_in_line = False
        self._tell_input: Callable[[], None] | None = None
        self._tell_doubt: Callable[[], object] | None = None
        self._tell_reset: Callable[[], None] | None = None
        self._tell_room: Callable[[], None] | None = None
        self.waits = not state.opened_here
        """The user of the session has not been given it yet; until then `on_broken` is put off."""
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
    def failure(self) -> StreamReset | None:
        """How it was broken; None if it was not."""
        return None if self._failure is None else StreamReset(*self._failure, in_line=self._failed_in_line)

    # --- heads ---

    def send_answer_nowait(self, head: bytes, data: bytes = b"", *, eof: bool = False) -> bool:
        """Answer with a head, once and before any bytes; for the side that accepted the stream.

        Queues the bytes behind it and, with `eof`, the end in one step; returns whether there is room for
        more. Raises StreamReset. At most QUEUE_HIGH_BYTES: more would have to wait, and that is ValueError.
        """
        if len(data) > QUEUE_HIGH_BYTES:
            raise ValueError(f"an answer of {len(data)} bytes at once; {QUEUE_HIGH_BYTES} may be")
        state = self._state
        if self._closed or self._failure is not None or state.sending is ENDED:
            self._check_sendable()
        self._driver.send_head(state, head, data, eof)
        return state.outgoing.size <= QUEUE_HIGH_BYTES

    def receive_head_nowait(self) -> bytes | None:
        """Return the head of the answer, None while it is not here; for the side that opened the stream.

        Raises StreamReset, also (PROTOCOL) when the answer begins or ends without a head.
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

    def when_input(self, tell: Callable[[], None], tell_doubt: Callable[[], object] | None = None) -> None:
        """Call `tell` once, when the answer's head, bytes or the end have come, or the stream is broken.

        The call comes when the core has handled the whole message, so it may use this stream, but must
        neither wait nor raise. `tell_doubt` is called at most once before, by the same rules, when the peer
        is in doubt and no head has come (PROTOCOL.md, "Liveness").
        """
        self._tell_input = tell
        if tell_doubt is not None:
            self._tell_doubt = tell_doubt

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

    def receive_nowait(self, max_bytes: int = RECEIVE_BYTES) -> bytes | None:
        """Return bytes that are here, b"" at the clean end, None while neither is here.

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

    def write(self, data: bytes, *, eof: bool = False) -> bool:
        """Queue bytes and, with `eof`, the end; return whether there is room for more.

        Raises StreamReset.
        """
        state = self._state
        if self._closed or self._failure is not None or state.sending is ENDED:
            self._check_sendable()
        self._driver.send_data(state, data, eof=eof)
        return state.outgoing.size <= QUEUE_HIGH_BYTES

    def when_room(self, tell: Callable[[], None]) -> None:
        """Call `tell` once, when there is room again; to be used when there is none.

        The call comes out of the middle of the core's work: it must neither wait nor raise, nor use any
        stream.
        """
        self._tell_room = tell
        self._state.drain_wanted = True

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
        """Abort both directions now; later calls raise StreamReset with the same code, and no callback comes.

        `in_line`: what was sent before still arrives, then the error. Does nothing to a stream that is over.
        """
        if self._closed or self._failure is not None:
            return
        self._failure = (code, processed, reason)
        self._driver.reset(self._state, code, processed, reason, in_line=in_line)

    def close_nowait(self) -> None:
        """Leave the stream; see the class."""
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

    def _leave(self) -> None:
        state = self._state
        if state.sending.at_rest and state.receiving.at_rest:
            if state.incoming.size:
                self._driver.connection.streams.discard_received(state)
            return
        # What we ended still arrives: the RESET, by which the peer stops, follows it.
        in_line = state.sending is ENDED
        self._driver.reset(state, StreamCode.CANCEL, Processed.MAYBE, "closed", in_line=in_line)

    # --- what the core calls (protocol.streams.StreamOwner) ---

    def on_data(self) -> None:
        if self._tell_input is not None:
            self._driver.due.append(self._tell_input)
            self._tell_input = None

    on_head = on_data

    def on_room(self) -> None:
        tell, self._tell_room = self._tell_room, None
        if tell is not None:
            tell()

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
        tell, self._tell_reset = self._tell_reset, None
        if tell is not None:
            tell()

    def on_doubt(self) -> None:
        tell = self._tell_doubt
        if tell is not None and self._failure is None and self._state.answer_head is None:
            self._tell_doubt = None
            self._driver.due.append(tell)
