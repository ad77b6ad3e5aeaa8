"""Waits for a client's bytes, and feeds them from the stream into the connection without I/O."""

from __future__ import annotations

import trio

from proxy.exchange.http_server import ServerHTTP
from proxy.message.body import BODY_BYTES_MAX
from tunnel.net.tls import TLSStream


class Received:
    """Feeds a connection from its stream, while no task reads a body from it."""

    __slots__ = ("http", "stream")

    def __init__(self, stream: trio.abc.ReceiveStream, http: ServerHTTP) -> None:
        self.stream = stream
        self.http = http

    async def receive(self) -> bool:
        """Wait for more bytes; False at the end. A cancelled call loses nothing."""
        http = self.http
        if http.ended:
            return False
        try:
            data = await self.stream.receive_some(BODY_BYTES_MAX)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        if not data:
            http.ended = True
            return False
        http.feed(data)
        return True

    def poll_end(self) -> bool:
        """Read what has arrived, and return whether the client counts as gone. No task may be receiving.

        `wait_end` notices that only when its task runs. Bytes are kept as there.
        """
        http, stream = self.http, self.stream
        try:
            while isinstance(stream, TLSStream) and not (http.ended or http.full):
                data = stream.receive_nowait(BODY_BYTES_MAX)
                if data is None:
                    break
                if data:
                    http.feed(data)
                else:
                    http.ended = True
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            http.ended = True
        return http.ended or http.full

    async def wait_end(self) -> None:
        """Return once the client sends no more, or more than the buffer takes. Earlier bytes are kept.

        The end of a client with a full buffer lies behind bytes that are not read, so nothing would notice
        it: such a client counts as gone. No client has a reason to send so much before its answer. The call
        ends with a checkpoint, so a task that was cancelled meanwhile does not see the end. A cancelled call
        loses nothing.
        """
        http = self.http
        while not (http.ended or http.full):
            await self.receive()
        await trio.lowlevel.checkpoint()
