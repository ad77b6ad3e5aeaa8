"""Waits of a task on a stream of the tunnel, which itself has callbacks alone."""

from __future__ import annotations

from tunnel import Stream
from tunnel.net.waker import Waker


async def wait_input(stream: Stream) -> None:
    """Wait for the next input: the answer's head, bytes or the end, or that the stream is broken."""
    waker = Waker("one task waits for input")
    stream.when_input(waker.unpark)
    await waker.park()


async def send(stream: Stream, data: bytes) -> None:
    """Queue bytes, and wait until there is room for more."""
    if not stream.write(data):
        waker = Waker("one task waits for room")
        stream.when_room(waker.unpark)
        await waker.park()


async def receive_head(stream: Stream) -> bytes:
    """Wait for the answer's head."""
    while (head := stream.receive_head_nowait()) is None:
        await wait_input(stream)
    return head


async def receive_body(stream: Stream) -> int:
    """Receive up to the clean end; return how many bytes came."""
    size = 0
    while (data := stream.receive_nowait()) != b"":
        if data is None:
            await wait_input(stream)
        else:
            size += len(data)
    return size
