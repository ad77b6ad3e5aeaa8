"""The streams and contexts of the peer, on their way to the user of the session.

The user sets a callback for each. A stream that waits for the callback when the session ends is closed here.
Every other stream is closed by its user.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from tunnel.driver import Driver
from tunnel.protocol.errors import Processed, StreamCode
from tunnel.protocol.streams import Context
from tunnel.stream import Stream

__all__ = ["Inbox"]


class Inbox:
    """The streams that wait for the user's callback, `streams_max` at most, and the callbacks."""

    def __init__(self, driver: Driver, streams_max: int) -> None:
        self._driver = driver
        self._streams_max = streams_max
        self._streams: deque[Stream] = deque()
        self._stream_callback: Callable[[Stream], None] | None = None
        self._context_callback: Callable[[Context], None] | None = None
        self._ended = False

    # --- for the user ---

    def on_stream(self, call: Callable[[Stream], None] | None) -> None:
        """Call `call` for each stream that the peer opens, and now for those that wait.

        The call delays every other stream: it may start a task for the stream, or reset it, and must neither
        wait nor raise. The end of the session is reported by `wait_closed` alone. None removes the callback,
        and later streams wait again.
        """
        self._stream_callback = call
        while self._streams and self._stream_callback is not None:
            stream = self._streams.popleft()
            if stream.broken:
                # The peer has RESET it since, so neither it nor its bytes are of use.
                stream.close_nowait()
            else:
                self._stream_callback(stream)

    def on_context(self, call: Callable[[Context], None]) -> None:
        """Call `call` for each context that the peer adds, and now for those that are live.

        The call comes before any stream that names the context. It delays every stream, so it must neither
        wait nor raise. The end of the session removes the callback.
        """
        if not self._ended:
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

    def put_context(self, context: Context) -> None:
        if self._context_callback is not None:
            self._context_callback(context)

    def forget_contexts(self) -> None:
        """Remove the callback: it mostly refers to the session, and the cycle would outlive it."""
        self._context_callback = None

    def end(self) -> None:
        """Close the streams that wait; the session has ended and has broken them."""
        self._ended = True
        for stream in self._streams:
            stream.close_nowait()
        self._streams.clear()
