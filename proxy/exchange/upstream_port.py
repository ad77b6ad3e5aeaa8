"""A connection to a server as the upstream's port of an exchange. A clean connection is kept afterwards.

A request uses a kept connection, if there is one. Otherwise a task dials (`dial`), and nothing else here
waits. A connection that has carried an upgrade request is never reused, regardless of the answer.

The request's head is sent together with the first bytes of its body, if they have arrived. Otherwise it is
sent alone, when the exchange resumes this port. A server that stops taking the body has not failed: its
answer may still come.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from proxy.exchange.client import ClientConnection
from proxy.exchange.engine import OVER, SHARE_BYTES, Exchange
from proxy.exchange.http_state import DONE
from proxy.exchange.pool import Connections
from proxy.message.failure import Failure, OutboundBroken
from proxy.message.head import RequestHead, ResponseHead

# A read of at least this size is followed by another read at once, up to the port's share.
MORE_BYTES = 32 * 1024


class UpstreamPort:
    """The answering side of one request (a Port)."""

    __slots__ = (
        "_answered",
        "_connections",
        "_delivering",
        "_dialling",
        "_ended",
        "_head",
        "_head_on",
        "_long",
        "_on_401",
        "_paused",
        "_rewrite",
        "_write_failed",
        "bytes_dropped",
        "bytes_passed",
        "connection",
        "exchange",
        "may_be_seen",
        "reused",
    )

    def __init__(
        self,
        connections: Connections,
        head: RequestHead,
        *,
        long: bool,
        on_401: Failure | None = None,
        rewrite: Callable[[ResponseHead], ResponseHead] | None = None,
        head_on: Callable[[ClientConnection], RequestHead] | None = None,
    ) -> None:
        """`head` is the request's head. `long`: the answer takes hours, so no state is kept for a next one.

        `on_401`: the failure that a 401 stands for when the proxy's own credential was refused. Such a 401
        is not passed to the client. `rewrite` returns the client's head for the server's. If it raises
        OutboundBroken, the exchange fails, and no byte of the answer is passed on. `head_on` returns the head
        for a connection, to be sent instead of `head`; its method, body and upgrade are the same.
        """
        self.exchange: Exchange = OVER
        # Of the answer, or of a raw stream; and the client's raw bytes that the server takes no more.
        self.bytes_passed = self.bytes_dropped = 0
        self.connection: ClientConnection | None = None
        """The request's connection; None before, and after it was given back or cut."""
        self.reused = False
        """The connection was used before, so the server may have closed it already."""
        self.may_be_seen = False
        """Some of the request was sent. Stays True when the connection is cut."""
        self._connections = connections
        # Dropped when the answer begins: the head contains a credential, and a watch lasts for hours.
        self._head: RequestHead | None = head
        self._long = long
        self._on_401 = on_401
        self._head_on = head_on
        self._rewrite = rewrite
        self._paused = True
        # A delivery is in progress, in an outer call.
        self._delivering = False
        self._answered = False
        # The server takes no more of the request; its answer may still come.
        self._write_failed = False
        # The request's last byte was written.
        self._ended = False
        self._dialling: trio.CancelScope | None = None

    # -- before the exchange starts

    def take_kept(self) -> bool:
        """Take a kept connection. False: there is none, and a task has to `dial`."""
        self.connection = self._connections.acquire_watched(self._take_head)
        self.reused = self.connection is not None
        return self.reused

    async def dial(self, *, fresh: bool = False) -> bool:
        """Get a connection: a kept one may do, unless `fresh`. False: the exchange has ended meanwhile.

        Raises OutboundBroken. A cancelled call leaves nothing behind.
        """
        connection: ClientConnection | None = None
        with trio.CancelScope() as self._dialling:
            connection, self.reused = await self._connections.acquire(fresh=fresh)
        self._dialling = None
        if connection is None:
            return False
        if self.exchange.over:
            # The dial may succeed at the moment when its wait is cancelled.
            connection.cut_nowait()
            return False
        self.connection = connection
        self._connections.watch(connection, self._take_head)
        return True

    @property
    def held_bytes(self) -> int:
        """The memory that the connection uses; 0 without a connection."""
        return self.connection.held_bytes if self.connection is not None else 0

    # -- calls from the exchange

    @property
    def half_closes(self) -> bool:
        """See Port. The connection is TLS."""
        return False

    def head(self, head: ResponseHead, data: bytes, end: bool) -> bool:
        """See Port."""
        raise AssertionError("an upstream is sent no answer")

    def write(self, data: bytes, end: bool) -> bool:
        """See Port."""
        self._ended = end
        connection = self.connection
        if self._write_failed or connection is None:
            return self._ignore(data)
        if self.exchange.spliced:
            return self._send(connection, data)
        if self.may_be_seen:
            return self._send(connection, connection.http.send_body(data, end=end))
        return self._begin(connection, data)

    def _begin(self, connection: ClientConnection, data: bytes) -> bool:
        """Send the head together with the body's first bytes."""
        head = self._head
        assert head is not None, "the answer has not begun"
        try:
            if self._head_on is not None:
                head = self._head_on(connection)
            encoded = connection.http.send_request(head)
            if data or self._ended:
                encoded += connection.http.send_body(data, end=self._ended)
            self.may_be_seen = True
            sent = connection.send_nowait(encoded)
        except OutboundBroken as broken:
            # Earlier bytes from the server cannot answer a request that was not sent.
            self.exchange.broken(self, broken.failure)
            return False
        if sent and not self._ended:
            return True
        return self._sent(connection, sent)

    def _send(self, connection: ClientConnection, data: bytes) -> bool:
        try:
            sent = not data or connection.send_nowait(data)
        except OutboundBroken:
            # Bytes that the server sent before the break are still read: they explain it better.
            self._write_failed = True
            return self._ignore(data)
        return self._sent(connection, sent)

    def _sent(self, connection: ClientConnection, sent: bool) -> bool:
        if not sent:
            watch = connection.watch
            assert watch is not None, "the connection of an exchange is watched"
            watch.when_room(self._on_room)
        elif self._ended:
            self.exchange.flushed(self)
        return sent

    def _ignore(self, data: bytes) -> bool:
        """Refuse more of a body. Drop the bytes of a raw stream, so that the client's end is noticed."""
        if not self.exchange.spliced:
            return False
        self.bytes_dropped += len(data)
        if self._ended:
            self.exchange.flushed(self)
        return True

    def pause(self) -> None:
        """See Port."""
        self._paused = True
        if not self._delivering:
            self._listen()

    def resume(self) -> None:
        """See Port. Sends the request's head, unless it was sent together with the body."""
        self._paused = False
        connection = self.connection
        if connection is None or self._delivering:
            return
        if not self.may_be_seen and not self._begin(connection, b""):
            # The kernel has not taken the whole head, or the exchange is over.
            return
        if self._answered:
            self._take_body()
        elif not self.reused and connection.has_unread:
            self._take_head()
        elif connection.watch is not None and not connection.watch.listening:
            connection.watch.listen(True)

    def stop(self) -> None:
        """See Port."""
        self._paused = True

    def cut(self, failure: Failure, drop: bool) -> None:
        """See Port."""
        self.close()

    def close(self) -> None:
        """Cut the connection, unless it was given back. No callback follows. May be called again."""
        if self._dialling is not None:
            self._dialling.cancel()
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.cut_nowait()

    # -- calls from the connection

    def _on_room(self) -> None:
        """Send unsent bytes, since the kernel takes more."""
        connection = self.connection
        if connection is None:
            return
        try:
            if self._send_rest(connection):
                self.exchange.room(self)
                if self._ended:
                    self.exchange.flushed(self)
        except Exception as error:
            self.exchange.crash(error)

    def _send_rest(self, connection: ClientConnection) -> bool:
        """Send the unsent bytes; return whether there is room."""
        try:
            if connection.send_nowait(b""):
                return True
        except OutboundBroken:
            self._write_failed = True
            return self.exchange.spliced
        watch = connection.watch
        assert watch is not None, "the connection of an exchange is watched"
        watch.when_room(self._on_room)
        return False

    def _listen(self) -> None:
        """Watch the connection for input, unless the port is paused."""
        watch = self.connection.watch if self.connection is not None else None
        if watch is not None and watch.listening is self._paused:
            watch.listen(not self._paused)

    def _take_head(self) -> None:
        """Pass on the answer's head once it is complete, with the body bytes that have arrived."""
        connection = self.connection
        if connection is None or self._paused:
            self._listen()
            return
        self._delivering = True
        try:
            if connection.take_in_nowait() and (head := connection.http.receive_head()):
                self._answer(connection, head)
        except OutboundBroken as broken:
            self.exchange.broken(self, broken.failure)
        except Exception as error:
            self.exchange.crash(error)
        self._delivering = False
        if self.connection is not None:
            self._listen()

    def _answer(self, connection: ClientConnection, head: ResponseHead) -> None:
        if head.status == 401 and self._on_401 is not None:
            self.exchange.broken(self, self._on_401)
            return
        self._answered = True
        self._head = self._head_on = None
        if self._rewrite is not None:
            head = self._rewrite(head)
            self._rewrite = None
        if head.status == 101:
            self.exchange.answer_head(head)
            self._go_on(connection)
            self._connections.upgraded()
            return
        broken: OutboundBroken | None = None
        try:
            body = connection.http.receive_body() or b""
        except OutboundBroken as error:
            # The head is valid and is passed on before the failure.
            body, broken = b"", error
        self.bytes_passed += len(body)
        if connection.http.incoming is DONE:
            self.connection = None
            self._connections.release_watched(connection)
            self.exchange.answer_head(head, body, True)
            return
        if self._long:
            connection.http.forget_lines()
        self.exchange.answer_head(head, body)
        if broken is not None:
            self.exchange.broken(self, broken.failure)
        else:
            self._go_on(connection)

    def _go_on(self, connection: ClientConnection) -> None:
        """After the head, pass on the bytes that have arrived, and watch for more."""
        watch = connection.watch
        if watch is not None and not self.exchange.over:
            watch.call = self._take_body
            if (connection.http.held or connection.http.ended) and not self._paused:
                self._take_more(connection)

    def _take_body(self) -> None:
        """Pass on received bytes of the body, or of the raw stream, until the port is paused."""
        connection = self.connection
        if connection is None or self._paused:
            self._listen()
            return
        self._delivering = True
        try:
            self._take_more(connection)
        except OutboundBroken as broken:
            self.exchange.broken(self, broken.failure)
        except Exception as error:
            self.exchange.crash(error)
        self._delivering = False
        if self.connection is not None:
            self._listen()

    def _take_more(self, connection: ClientConnection) -> None:
        """Read and pass on, as long as each read brings at least MORE_BYTES, up to SHARE_BYTES.

        The socket reports the rest in the next pass. A client can be as fast as the server, so its port may
        never be full.
        """
        if self.exchange.spliced:
            self._take_raw(connection)
            return
        http = connection.http
        if (http.held or http.ended) and not self._pass_on(connection, http.receive_body()):
            return
        share = SHARE_BYTES
        while share > 0 and not (self._paused or self.exchange.over):
            piece = connection.take_in_body_nowait()
            if not self._pass_on(connection, piece) or piece is None or len(piece) < MORE_BYTES:
                return
            share -= len(piece)

    def _pass_on(self, connection: ClientConnection, piece: bytes | None) -> bool:
        """Pass on `piece` and the other received body bytes, until paused; return whether more may come."""
        http = connection.http
        while piece is not None:
            end = http.incoming is DONE
            if end:
                # The connection is given back before the client gets the end: its next request may reuse it.
                self.connection = None
                self._connections.release_watched(connection)
            self.bytes_passed += len(piece)
            self.exchange.data(self, piece, end)
            if end:
                return False
            if not (http.held or http.ended):
                return True
            if self._paused or self.exchange.over:
                return False
            piece = http.receive_body()
        return True

    def _take_raw(self, connection: ClientConnection) -> None:
        share = SHARE_BYTES
        while not (self._paused or self.exchange.over):
            piece = connection.take_in_raw_nowait()
            if piece is None:
                return
            end = connection.at_end
            self.bytes_passed += len(piece)
            self.exchange.data(self, piece, end)
            if end:
                # A watched connection reports its end again and again.
                self._paused = True
                return
            share -= len(piece)
            if (share <= 0 or len(piece) < MORE_BYTES) and not connection.has_unread:
                return
