"""A bounded byte buffer between the task that reads a connection and the consumer of one stream."""

from __future__ import annotations

import collections
from collections.abc import Awaitable, Callable

import trio

# A reader that waits for a consumer does not notice that its client hangs up; a periodic ping does.
PROBE_S = 5.0
# Enough for reading and consuming to overlap. A stalled consumer holds this and one more chunk.
INBOX_BYTES_MAX = 256 * 1024


class Inbox(trio.abc.ReceiveStream):
    """The received data of one stream. `feed` waits while it is full; after closing, further data is
    discarded.
    """

    def __init__(self, bytes_max: int = INBOX_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._chunks: collections.deque[bytes] = collections.deque()
        self._size = 0
        self._ended = False
        self._closed = False
        self._filled = trio.Event()
        self._drained = trio.Event()

    @property
    def ended(self) -> bool:
        """True once no more data will come."""
        return self._ended

    @property
    def full(self) -> bool:
        """True while `feed` would wait."""
        return self._size >= self._bytes_max and not self._closed

    async def feed(self, data: bytes) -> None:
        """Add a chunk; waits while full. If cancelled while it waits, nothing is added."""
        while self.full:
            await self._drained.wait()
        if data and not self._closed and not self._ended:
            self._chunks.append(data)
            self._size += len(data)
            self._wake_reader()

    async def feed_probing(self, data: bytes, probe: Callable[[], Awaitable[None]]) -> None:
        """Add a chunk; while it must wait, probe the client from time to time."""
        while self.full:
            with trio.move_on_after(PROBE_S):
                await self.feed(data)
                return
            await probe()
        await self.feed(data)

    def feed_eof(self) -> None:
        """Mark the end of the data."""
        self._ended = True
        self._wake_reader()

    def close(self) -> None:
        """Discard present and future data."""
        self._closed = True
        self._chunks.clear()
        self._size = 0
        self._wake_reader()
        self._wake_writer()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the next chunk, at most `max_bytes` of it; b"" at the end."""
        await trio.lowlevel.checkpoint()
        while not self._chunks and not self._ended and not self._closed:
            await self._filled.wait()
        if self._closed:
            raise trio.ClosedResourceError
        if not self._chunks:
            return b""
        chunk = self._chunks.popleft()
        if max_bytes is not None and len(chunk) > max_bytes:
            self._chunks.appendleft(chunk[max_bytes:])
            chunk = chunk[:max_bytes]
        self._size -= len(chunk)
        self._wake_writer()
        return chunk

    async def aclose(self) -> None:
        """Close it, as `close` does."""
        self.close()
        await trio.lowlevel.checkpoint()

    def _wake_reader(self) -> None:
        self._filled.set()
        self._filled = trio.Event()

    def _wake_writer(self) -> None:
        self._drained.set()
        self._drained = trio.Event()
