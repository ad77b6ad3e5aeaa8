"""The streams and contexts of the peer, on their way to the user of the session.

The user takes streams by `accept`, or sets a callback for them. A stream that waits when the session ends is
closed here. Every other stream is closed by its user.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from tunnel.driver import Driver
from tunnel.net.waker import Waker
from tunnel.protocol.errors import Processed, StreamCode
from tunnel.protocol.streams import Context
from tunnel.refusals import SessionClosed
from tunnel.stream import Stream

__all__ = ["Inbox"]


class Inbox:
    """The streams that wait to be accepted, `streams_max` at most, and the callbacks of the user."""

    def __init__(self, driver: Driver, streams_max: int) -> None:
        self._driver = driver
        self._streams_max = streams_max
        self._streams: deque[Stream] = deque()
        self._stream_callback: Callable[[Stream], None] | None = None
        self._context_callback: Callable[[Context], None] | None = None
        self._acceptor = Waker("another task is accepting on this session")
        self._ending: tuple[int | None, str] | None = None

    # --- for the user ---

    async def accept(self) -> Stream:
        """Wait for the next stream that the peer opens. One task accepts. Raises SessionClosed at the end.

        When cancelled no stream is lost.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._acceptor.check_free()
        waited = False
        try:
            while (stream := self.accept_nowait()) is None:
                waited = True
                await self._acceptor.park()
            return stream
        finally:
            if not waited:
                await trio.lowlevel.cancel_shielded_checkpoint()

    def accept_nowait(self) -> Stream | None:
        """Return the next stream that the peer has opened, None where accept would wait.

        Raises SessionClosed.
        """
        while self._streams:
            stream = self._streams.popleft()
            if not stream.broken:
                return stream
            # The peer has RESET it since, so neither it nor its bytes are of use.
            stream.close_nowait()
        if self._ending is not None:
            raise SessionClosed(*self._ending)
        return None

    def on_stream(self, call: Callable[[Stream], None] | None) -> None:
        """Call `call` for each stream that the peer opens, and now for those that wait to be accepted.

        That saves a task switch for each stream. The call delays every other stream: it may start a task for
        the stream, or reset it, and must neither wait nor raise. The end of the session is reported by
        `wait_closed` alone. None removes the callback.
        """
        self._stream_callback = call
        if call is not None:
            while self._streams and (stream := self.accept_nowait()) is not None:
                call(stream)

    def on_context(self, call: Callable[[Context], None]) -> None:
        """Call `call` for each context that the peer adds, and now for those that are live.

        The call comes before any stream that names the context. It delays every stream, so it must neither
        wait nor raise. The end of the session removes the callback.
        """
        if self._ending is None:
            self._context_callback = call
        for context in list(self._driver.connection.contexts.peers.values()):
            call(context)

    # --- for the session ---

    def put_stream(self, stream: Stream) -> None:
        """Hand a stream to the user, or queue it; beyond `streams_max` it is REFUSED."""
        stream.waits = False
        if self._stream_callback is not None:
            self._stream_callback(stream)
        elif len(self._streams) >= self._streams_max:
            stream.reset(
                StreamCode.REFUSED,
                processed=Processed.NO,
                reason=f"{self._streams_max} streams wait to be accepted",
            )
            stream.close_nowait()
        else:
            self._streams.append(stream)
            self._acceptor.unpark()

    def put_context(self, context: Context) -> None:
        if self._context_callback is not None:
            self._context_callback(context)

    def forget_contexts(self) -> None:
        """Remove the callback: it mostly refers to the session, and the cycle would outlive it."""
        self._context_callback = None

    def end(self, code: int | None, reason: str) -> None:
        """Close the streams that wait; the session has ended and has broken them."""
        self._ending = code, reason
        for stream in self._streams:
            stream.close_nowait()
        self._streams.clear()
        self._acceptor.unpark()
