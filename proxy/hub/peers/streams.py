"""A stream of a link for tasks that wait: the byte stream of trio over `tunnel.Stream`."""

from __future__ import annotations

import trio

from tunnel import Stream
from tunnel.net.waker import Waker
from tunnel.stream import RECEIVE_BYTES


class PeerStream(trio.abc.HalfCloseableStream):
    """Bytes both ways over one stream of a link. One task receives, and one sends.

    Raises StreamReset (a trio.BrokenResourceError) once the stream is broken. TLS can run over it.
    """

    def __init__(self, raw: Stream) -> None:
        self.raw = raw
        self._reader = Waker("another task receives from this stream")
        self._sender = Waker("another task sends on this stream")
        raw.on_reset(self._wake_all)

    async def receive_head(self) -> bytes:
        """Wait for the head of the answer; for the side that opened the stream."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while (head := self.raw.receive_head_nowait()) is None:
            await self._wait_for_input()
        return head

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return bytes, or b"" at the clean end."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while (data := self.raw.receive_nowait(max_bytes or RECEIVE_BYTES)) is None:
            await self._wait_for_input()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return data

    async def _wait_for_input(self) -> None:
        self._reader.check_free()
        self.raw.when_input(self._reader.unpark)
        await self._reader.park()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Queue bytes, and wait until the queue is short again."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._sender.check_free()
        rest = memoryview(data)
        while rest:
            piece, rest = rest[:RECEIVE_BYTES], rest[RECEIVE_BYTES:]
            if not self.raw.write(bytes(piece)):
                await self._wait_for_room()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        """See trio.abc.SendStream."""
        await trio.lowlevel.checkpoint()
        # Queues nothing, and tells whether there is room.
        if not self.raw.write(b""):
            await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        self.raw.when_room(self._sender.unpark)
        await self._sender.park()
        # Queues nothing, and raises if the stream is broken.
        self.raw.write(b"")

    async def send_eof(self) -> None:
        """End our bytes; they still arrive, and the end behind them."""
        await trio.lowlevel.checkpoint()
        self.raw.write(b"", eof=True)

    async def aclose(self) -> None:
        """Leave the stream: RESET, unless it has ended in both directions."""
        self.raw.close_nowait()
        self._wake_all()
        await trio.lowlevel.checkpoint()

    def _wake_all(self) -> None:
        self._reader.unpark()
        self._sender.unpark()
