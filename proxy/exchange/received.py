"""Waits for a client's bytes, and feeds them from the stream into the connection without I/O."""

from __future__ import annotations

import socket
from typing import Final

import trio

from proxy.exchange.http_server import ServerHTTP
from proxy.message.body import BODY_BYTES_MAX
from tunnel.net.tcp import TCPStream
from tunnel.net.tls import TLSStream

FULL_POLL_S: Final = 1.0
"""How often a client with a full buffer is looked at. Its end is behind bytes that are not read."""
# Linux' tcpi_state, the first byte of struct tcp_info, after a reset and after the peer's FIN.
_ENDED_STATES: Final = frozenset({7, 8})


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
        """Read what has arrived, and return whether the client has ended. No task may be receiving.

        `wait_end` notices an end only when its task runs. Bytes are kept as there.
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
        return http.ended or (http.full and self._has_left())

    async def wait_end(self) -> None:
        """Return once the client sends no more. Earlier bytes are kept, until the buffer is full.

        With a full buffer, that is noticed within FULL_POLL_S, as far as the kernel has room for the client's
        other bytes. The call ends with a checkpoint, so a task that was cancelled meanwhile does not see the
        end. A cancelled call loses nothing.
        """
        http = self.http
        while not (http.ended or http.full):
            await self.receive()
        while not (http.ended or self._has_left()):  # noqa: ASYNC110 - the kernel wakes only readers
            await trio.sleep(FULL_POLL_S)
        await trio.lowlevel.checkpoint()

    def _has_left(self) -> bool:
        """Return whether the kernel has the client's end already, though earlier bytes are unread."""
        stream: object = self.stream
        while isinstance(stream, TLSStream):
            stream = stream.transport_stream
        option = getattr(socket, "TCP_INFO", None)
        if option is None or not isinstance(stream, TCPStream):
            return False
        try:
            info = stream.socket.getsockopt(socket.IPPROTO_TCP, option, 1)
        except OSError:
            # It is closed, or no socket of TCP.
            return False
        return info[0] in _ENDED_STATES
