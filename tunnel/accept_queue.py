"""The streams that the peer of a session has opened, until a task accepts them.

Whoever is given a stream closes it; those that nobody has taken when the session ends are closed here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from tunnel.net.waker import ParkingSpot
from tunnel.refusals import SessionClosed
from tunnel.stream import Stream

__all__ = ["AcceptQueue"]


class AcceptQueue:
    """Streams that wait to be accepted, `streams_max` at most."""

    def __init__(self, streams_max: int) -> None:
        self.streams_max = streams_max
        self._streams: deque[Stream] = deque()
        self._acceptor = ParkingSpot("another task is accepting on this session")
        self._ending: tuple[int | None, str] | None = None

    @property
    def full(self) -> bool:
        return len(self._streams) >= self.streams_max

    def put(self, stream: Stream) -> None:
        self._streams.append(stream)
        self._acceptor.unpark()

    async def accept(self) -> Stream:
        """Wait for the next stream. Raises SessionClosed at the end. When cancelled no stream is lost."""
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
        """Return the next stream, None where accept would wait. Raises SessionClosed."""
        while self._streams:
            stream = self._streams.popleft()
            if not stream.broken:
                return stream
            # One that the peer has RESET since is nobody's business any more, and what it brought nobody's.
            stream.close_nowait()
        if self._ending is not None:
            raise SessionClosed(*self._ending)
        return None

    def hand_over(self, call: Callable[[Stream], None]) -> None:
        """Give `call` each stream that waits."""
        while self._streams and (stream := self.accept_nowait()) is not None:
            call(stream)

    def end(self, code: int | None, reason: str) -> None:
        """The session has ended, and told its streams."""
        self._ending = code, reason
        for stream in self._streams:
            stream.close_nowait()
        self._streams.clear()
        self._acceptor.unpark()
