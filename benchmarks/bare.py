"""One end of a tunnel as a process, to measure the memory of a stream without TLS and HTTP.

    python -m benchmarks.bare listen      prints `listening PORT`; after `open N` on stdin it opens N more
                                          streams, waits for their answers and prints `opened N`
    python -m benchmarks.bare dial PORT   answers each stream with a head, and sends nothing more on it

A task waits on each stream at either end. The session runs over a plain socket: a length before each message
takes the place of the WebSocket.
"""

from __future__ import annotations

import struct
import sys
import time
from typing import Final

import trio

from benchmarks.waiting import receive_head, wait_input
from tunnel import Role, Stream, Transport, TransportClosed, Welcome, open_session
from tunnel.websocket.transport import MESSAGE_BYTES_MAX

LENGTH: Final = struct.Struct(">I")
RECEIVE_BYTES: Final = 64 * 1024
# A hub's canonical head of a watch, and its answer.
REQUEST_HEAD: Final = (
    b"GET /api/v1/namespaces/work/pods?watch=true&allowWatchBookmarks=true&resourceVersion=4711 HTTP/1.1\r\n"
    b"host: kubernetes\r\naccept: application/json\r\nuser-agent: kubectl/v1.37.0\r\n"
    b"audit-id: 0199a1b20199a1b20199a1b20199a1b2\r\nx-forwarded-for: 10.0.0.9\r\n\r\n"
)
ANSWER_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncache-control: no-cache\r\n\r\n"


class SocketTransport(Transport):
    """Whole messages over a TCP stream."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.peer_name = "the other end"
        self._stream = stream
        self._received = bytearray()

    async def send(self, message: bytes) -> None:
        """See Transport."""
        try:
            await self._stream.send_all(LENGTH.pack(len(message)) + message)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise TransportClosed(None, "the socket was closed") from None

    async def receive(self) -> bytes:
        """See Transport."""
        (size,) = LENGTH.unpack(await self._take(LENGTH.size))
        if size > MESSAGE_BYTES_MAX:
            raise TransportClosed(None, f"a message of {size} bytes")
        return await self._take(size)

    async def _take(self, size: int) -> bytes:
        while len(self._received) < size:
            try:
                data = await self._stream.receive_some(RECEIVE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                raise TransportClosed(None, "the socket was closed")
            self._received += data
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """See Transport."""
        await self._stream.aclose()


async def listen() -> None:
    """Accept one dialer, and run the commands of stdin."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(f"listening {listeners[0].socket.getsockname()[1]}", flush=True)
    welcome = Welcome(session_id="s", boot_id="b", software="bench", server_time_ms=int(time.time() * 1000))
    async with (
        await listeners[0].accept() as stream,
        open_session(SocketTransport(stream), Role.LISTENER, answer_hello=lambda _: welcome) as session,
        trio.open_nursery() as nursery,
    ):
        context = session.add_context(1, b"who asks")
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            count = int(line.split()[1])
            answered = trio.Semaphore(0)
            for _ in range(count):
                opened = session.open_stream(REQUEST_HEAD, context=context, eof=True)
                nursery.start_soon(wait_on_answer, opened, answered)
            for _ in range(count):
                await answered.acquire()
            print(f"opened {count}", flush=True)
        nursery.cancel_scope.cancel()


async def wait_on_answer(stream: Stream, answered: trio.Semaphore) -> None:
    await receive_head(stream)
    answered.release()
    await wait_input(stream)


async def dial(port: int) -> None:
    """Serve the listener's streams, until it is gone."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with (
        open_session(SocketTransport(stream), Role.DIALER) as session,
        trio.open_nursery() as nursery,
    ):
        session.on_stream(lambda stream: nursery.start_soon(answer, stream))
        await session.wait_closed()
        nursery.cancel_scope.cancel()


async def answer(stream: Stream) -> None:
    stream.send_answer_nowait(ANSWER_HEAD)
    await trio.sleep_forever()


def main() -> None:
    if sys.argv[1] == "listen":
        trio.run(listen)
    else:
        trio.run(dial, int(sys.argv[2]))


if __name__ == "__main__":
    main()
