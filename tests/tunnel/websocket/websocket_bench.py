"""Two ends of a WebSocket, and what its tests send over it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio

from tunnel.websocket.transport import MESSAGE_BYTES_MAX, Transport, TransportClosed
from tunnel.websocket.upgrade import accept_websocket, dial_websocket

MESSAGES = [
    b"",
    b"x",
    bytes(range(256)) * 10,
    bytes(125),
    bytes(126),
    bytes(65_536),
    bytes(MESSAGE_BYTES_MAX),
]


async def read_head(stream: trio.abc.ReceiveStream) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        data = await stream.receive_some(1)
        assert data, head
        head += data
    return head


@asynccontextmanager
async def accepted(stream: trio.abc.Stream) -> AsyncIterator[Transport]:
    head = await read_head(stream)
    async with accept_websocket(stream, request_head=head, leftover=b"") as transport:
        yield transport


def dialled(stream: trio.abc.Stream) -> AbstractAsyncContextManager[Transport]:
    return dial_websocket(stream, host="hub.test", target="/v1/tunnel")


@asynccontextmanager
async def websocket_pair(
    near: trio.abc.Stream, far: trio.abc.Stream
) -> AsyncIterator[tuple[Transport, Transport]]:
    """Yield (client, server), each in a task of its own, as they are in two processes."""
    done = trio.Event()
    opened, servers = trio.open_memory_channel[Transport](1)

    async def answer() -> None:
        async with accepted(far) as server:
            opened.send_nowait(server)
            await done.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        async with dialled(near) as client:
            yield client, await servers.receive()
            done.set()


async def expect_closed(call: Callable[[], Awaitable[object]]) -> TransportClosed:
    with pytest.raises(TransportClosed) as caught:
        await call()
    return caught.value
