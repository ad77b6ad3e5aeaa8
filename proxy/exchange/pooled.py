"""The answering side of one request, on a pooled connection."""

from __future__ import annotations

import logging

import trio

from proxy.exchange.client import ClientConnection
from proxy.exchange.pool import Connections, may_send_again
from proxy.exchange.ports import ByteStream, PassOn
from proxy.message.failure import Failure, OutboundBroken, Processed, StreamCode
from proxy.message.head import RequestHead, ResponseHead

_log = logging.getLogger("hawse")


class PooledOutbound:
    """A request and its answer (an Outbound). `start` sends the head. Always call `aclose` afterwards.

    A kept connection that the server had closed is replaced once. The request must be a safe one without a
    body, and no answer may have begun: such a request cannot have had an effect. An upgrade gets a separate
    connection, which is never reused.
    """

    __slots__ = ("_abandoned", "_acquiring", "_connections", "_head", "_resending", "_reused", "connection")

    def __init__(self, connections: Connections, head: RequestHead) -> None:
        self._connections = connections
        self._head = head
        self._reused = False
        self._abandoned = False
        # The scopes of the wait for a connection, and of the attempt on a second one.
        self._acquiring: trio.CancelScope | None = None
        self._resending: trio.CancelScope | None = None
        self.connection: ClientConnection | None = None
        """The connection of the request and its answer."""

    async def start(self, *, fresh: bool = False) -> None:
        """Send the head; raises OutboundBroken. When it fails or is cancelled, the connection is closed."""
        head = self._head
        # `fresh` is set for a second attempt: the first one was sent.
        processed = Processed.MAYBE if fresh else Processed.NO
        with trio.CancelScope() as self._acquiring:
            if self._abandoned:
                raise _given_up(processed)
            connection, self._reused = await self._connections.acquire(
                fresh=fresh or head.upgrade is not None
            )
            self.connection = connection
        if self._acquiring.cancelled_caught:
            raise _given_up(processed)
        try:
            # The dial may succeed at the moment of a cancellation. No request is sent then.
            if self._abandoned:
                raise _given_up(processed)
            await trio.lowlevel.checkpoint_if_cancelled()
            await connection.send_request(self._head_on(connection, head))
            return
        except OutboundBroken as error:
            broken = error
        except BaseException:
            # Even when cancelled, `_cut` closes before its first checkpoint.
            await self._cut()  # noqa: ASYNC102
            raise
        try:
            await self._cut()
            if not self._may_send_again(broken):
                raise broken
        finally:
            # The traceback refers to this frame. Without `del` that is a reference cycle.
            del broken
        await self._start_anew()

    async def send_again(self, head: RequestHead) -> None:
        """Send another head instead of the first, on another connection; raises OutboundBroken."""
        await self._cut()
        self._head = head
        await self._start_anew()

    async def receive_head(self) -> ResponseHead:
        """See Outbound."""
        try:
            return await self._current().receive_head()
        except OutboundBroken as error:
            if not self._may_send_again(error):
                raise
        _log.debug("the server had closed a kept connection; sending the request again")
        await self._cut()
        await self._start_anew()
        return await self._current().receive_head()

    async def send_body(self, data: bytes) -> None:
        """See Outbound."""
        await self._current().send_body(data)

    async def end_body(self) -> None:
        """See Outbound."""
        await self._current().end_body()

    async def receive_body(self, pass_on: PassOn | None = None, /) -> bytes:
        """See Outbound."""
        return await self._current().receive_body(pass_on)

    def receive_body_nowait(self) -> bytes | None:
        """See Outbound."""
        return self._current().receive_body_nowait()

    def upgraded(self) -> ByteStream:
        """See Outbound."""
        return self._current().upgraded()

    async def abandon(self, failure: Failure | None = None) -> None:
        """See Outbound. The request is not sent again."""
        self._abandoned = True
        for scope in (self._acquiring, self._resending):
            if scope is not None:
                scope.cancel()
        await self._cut()

    @property
    def held_bytes(self) -> int:
        """The memory that the connection uses; 0 without a connection."""
        return self.connection.held_bytes if self.connection is not None else 0

    async def aclose(self) -> None:
        """Give the connection back if it is clean; otherwise cut it. May be called again."""
        connection, self.connection = self.connection, None
        if connection is not None:
            await self._connections.release(connection, keep=self._head.upgrade is None)

    async def _start_anew(self) -> None:
        """Send the head on a new connection, unless the exchange is abandoned before the dial succeeds."""
        with trio.CancelScope() as self._resending:
            if not self._abandoned:
                await self.start(fresh=True)
                return
        raise _given_up(Processed.MAYBE)

    def _head_on(self, connection: ClientConnection, head: RequestHead) -> RequestHead:
        """The head to send on a connection. Method, body and upgrade are the same on all connections."""
        return head

    def _may_send_again(self, broken: OutboundBroken) -> bool:
        return self._reused and not self._abandoned and may_send_again(self._head, broken.failure)

    def _current(self) -> ClientConnection:
        if self.connection is None:
            raise OutboundBroken(
                Failure(StreamCode.UPSTREAM_RESET, Processed.MAYBE, "the connection is closed")
            )
        return self.connection

    async def _cut(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            # Before other tasks run: a watch that outlives its socket would watch the next socket instead.
            connection.end_watch()
            await trio.aclose_forcefully(connection.stream)


def _given_up(processed: Processed) -> OutboundBroken:
    return OutboundBroken(Failure(StreamCode.CANCEL, processed, "given up before it was sent"))
