"""The answering side of one request, on a connection that is kept for the next one when it stays clean."""

from __future__ import annotations

import trio

from proxy.connections import Connections
from proxy.exchange import ByteStream, Failure, OutboundBroken, Processed, StreamCode
from proxy.head import RequestHead, ResponseHead
from proxy.http import ClientConnection

_SAFE_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS"})


class PooledOutbound:
    """A request and its answer (an Outbound). `start` sends the head; `aclose` it whatever happens.

    A kept connection that the server had closed meanwhile is replaced once, if the request is a safe one
    without a body and nothing of an answer came: it cannot have had an effect. An upgrade gets a connection
    of its own, which is never used again.
    """

    def __init__(self, connections: Connections, head: RequestHead) -> None:
        self._connections = connections
        self._head = head
        self._stream: trio.abc.Stream | None = None
        self._connection: ClientConnection | None = None
        self._reused = False
        self._abandoned = False

    async def start(self, *, fresh: bool = False) -> None:
        """Send the head; raises OutboundBroken. When it fails or is cancelled, the connection is closed."""
        self._stream, self._connection, self._reused = await self._connections.acquire(
            fresh=fresh or self._head.upgrade is not None
        )
        try:
            await self._connection.send_request(self._head)
            return
        except OutboundBroken as error:
            broken = error
        except BaseException:
            # Cancelled, it closes before its first checkpoint.
            await self._cut()  # noqa: ASYNC102
            raise
        await self._cut()
        if not self._may_send_again():
            raise broken
        await self.start(fresh=True)

    async def send_again(self, head: RequestHead) -> None:
        """Send another head in place of the first, on another connection; raises OutboundBroken."""
        await self._cut()
        self._head = head
        await self.start(fresh=True)

    async def receive_head(self) -> ResponseHead:
        """See Outbound."""
        try:
            return await self._current().receive_head()
        except OutboundBroken as error:
            lost = error.failure.code is StreamCode.UPSTREAM_RESET
            if not (lost and self._may_send_again()) or self._current().answered:
                raise
        await self._cut()
        await self.start(fresh=True)
        return await self._current().receive_head()

    async def send_body(self, data: bytes) -> None:
        """See Outbound."""
        await self._current().send_body(data)

    async def end_body(self) -> None:
        """See Outbound."""
        await self._current().end_body()

    async def receive_body(self) -> bytes:
        """See Outbound."""
        return await self._current().receive_body()

    def receive_body_nowait(self) -> bytes | None:
        """See Outbound."""
        return self._current().receive_body_nowait()

    def upgraded(self) -> ByteStream:
        """See Outbound."""
        return self._current().upgraded()

    async def abandon(self, failure: Failure | None = None) -> None:
        """See Outbound. The request is not sent again."""
        self._abandoned = True
        await self._cut()

    async def aclose(self) -> None:
        """See Outbound."""
        stream, connection = self._stream, self._connection
        self._stream = self._connection = None
        if stream is not None and connection is not None:
            await self._connections.release(stream, connection, keep=self._head.upgrade is None)

    def _may_send_again(self) -> bool:
        head = self._head
        return self._reused and not self._abandoned and head.body_length == 0 and head.method in _SAFE_METHODS

    def _current(self) -> ClientConnection:
        if self._connection is None:
            raise OutboundBroken(
                Failure(StreamCode.UPSTREAM_RESET, Processed.MAYBE, "the connection is closed")
            )
        return self._connection

    async def _cut(self) -> None:
        stream, self._stream, self._connection = self._stream, None, None
        if stream is not None:
            await trio.aclose_forcefully(stream)
