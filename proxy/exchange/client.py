"""The client's side of one HTTP/1.1 connection, over any trio stream.

Answers are parsed as strictly as requests. An ambiguous answer is an error and is never repaired: its author
may be a server behind the API server (a pod behind `services/proxy`). A connection is reused only after an
exchange that ended cleanly on both sides. A connection with an upgrade request is never reused, regardless of
the answer: reuse after a refused upgrade is CVE-2018-1002105.
"""

from __future__ import annotations

import enum
from typing import Final

import trio

from proxy.exchange.http_client import ClientHTTP
from proxy.exchange.http_connection import CROWDED_BYTES_MAX
from proxy.exchange.wire import held_bytes
from proxy.message.body import BODY_BYTES_MAX
from proxy.message.failure import OutboundBroken
from proxy.message.head import RequestHead, ResponseHead
from tunnel.net.connect import TLSStream
from tunnel.net.fairness import SMALL_PIECE_BYTES, fairness
from tunnel.net.readiness import Watch
from tunnel.net.tls import RECEIVE_BYTES_MAX


class _Link(enum.Enum):
    """The state of the stream."""

    OPEN = "open"
    SENDING = "sending"
    """A send is in progress, or has left unsent bytes. A cancelled send leaves this state."""
    LOST = "lost"
    """The stream is broken, or this side has cut it."""


_OPEN: Final = _Link.OPEN
_SENDING: Final = _Link.SENDING
_LOST: Final = _Link.LOST


class ClientConnection:
    """A connection to a server. `send_request` begins an exchange, `end_exchange` ends one that went well.

    It owns the stream; `aclose` cuts it in any state.

    The methods that end in `_nowait` need TLS over our own socket. They begin an exchange without a wait, and
    take its answer when a `watch` reports input. Their async counterparts finish incomplete work and raise
    the failures that they found.
    """

    __slots__ = (
        # The hub refers weakly to connections: it remembers what it has sent to the relay on each.
        "__weakref__",
        "_link",
        "_tls",
        "http",
        "idle_until",
        "stream",
        "watch",
    )

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.watch: Watch | None = None
        """Watches the connection. The watch is ended before the connection is closed."""
        self.idle_until = 0.0
        """The time until which the pool keeps the connection for reuse."""
        self.stream = stream
        self.http = ClientHTTP()
        """The received bytes, their parser, and the framing of sent bytes."""
        self._tls = stream if isinstance(stream, TLSStream) else None
        self._link = _OPEN

    async def send_request(self, head: RequestHead) -> None:
        """Begin an exchange: send the head, and the end of the request if it has no body.

        Raises OutboundBroken. The API server may have seen the request as soon as this is called, unless its
        head is TOO_LARGE.
        """
        await self._write(self.http.send_request(head))

    def send_nowait(self, data: bytes) -> bool:
        """Send without a wait. False: some bytes are unsent, and the next call sends them first.

        Raises OutboundBroken.
        """
        stream = self._tls
        assert stream is not None, "only TLS can be sent to without a wait"
        try:
            sent = stream.send_nowait(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise self._lost(f"the connection broke: {exc}") from exc
        if self._link is not _LOST:
            self._link = _OPEN if sent else _SENDING
        return sent

    async def receive_head(self) -> ResponseHead:
        """Return the final head or a requested 101. Other 1xx heads are dropped.

        Raises OutboundBroken: UPSTREAM_RESET when the connection ends first, PROTOCOL for a malformed answer.
        """
        while (head := self.http.receive_head()) is None:
            await self._receive()
        return head

    def take_in_nowait(self) -> bool:
        """Feed received bytes; return whether there were any. Raises OutboundBroken.

        The connection's end counts, and shows in the next call that reads.
        """
        data = self._receive_nowait()
        if data is None:
            return False
        self.http.feed(data)
        return True

    def take_in_body_nowait(self) -> bytes | None:
        """Feed received bytes, and return body bytes, b"" at their end, None if that needs a wait.

        Call it only when `receive_body` has returned all buffered body bytes. More than one piece may be
        buffered afterwards.
        """
        data = self._receive_nowait()
        return None if data is None else self.http.feed_body(data)

    def take_in_raw_nowait(self) -> bytes | None:
        """Return bytes after a 101, b"" at the end, None if none have arrived. Raises OutboundBroken."""
        http = self.http
        if http.held:
            return http.take_rest()
        return b"" if http.ended else self._receive_nowait()

    @property
    def at_end(self) -> bool:
        """Whether the server has ended the connection, and all earlier bytes were taken."""
        return self.http.ended and not self.http.held

    @property
    def has_unread(self) -> bool:
        """Whether there is input that the socket does not report."""
        return self._tls is not None and self._tls.has_unread

    def _receive_nowait(self) -> bytes | None:
        """Return received bytes, b"" at the end, None if none have arrived.

        Parsing 128 KiB of tiny chunks takes 14 ms, so fewer bytes are read of a body that has them.
        """
        stream = self._tls
        assert stream is not None, "only TLS can be received from without a wait"
        try:
            data = stream.receive_nowait(CROWDED_BYTES_MAX if self.http.crowded else RECEIVE_BYTES_MAX)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise self._lost(f"the connection broke: {exc}") from exc
        if stream.ended:
            # The end may come together with data. It is then read already, and the socket may not report it.
            self.http.ended = True
        return data

    async def receive_body(self) -> bytes:
        """Return body bytes as they arrive; b"" at the clean end.

        Raises OutboundBroken when the connection ends, or breaks its framing, before that.
        """
        if self.http.crowded:
            # Each loop pass parses only one such answer in the process.
            await fairness().wait_alone()
        while (data := self.http.receive_body()) is None:
            await self._receive()
        return data

    @property
    def held_bytes(self) -> int:
        """The memory that it uses, with the bytes that the server has not taken yet."""
        tls = self._tls
        return 0 if tls is None else held_bytes(tls, self.http, framed=self.http.sends_chunks)

    def end_exchange(self) -> bool:
        """End the exchange if both sides are complete; return whether another one may follow.

        If not, the connection can only be cut.
        """
        tls = self._tls
        if self._link is not _OPEN or (tls is not None and tls.has_unread):
            return False
        return self.http.end_exchange()

    def end_watch(self) -> None:
        """Stop watching the connection, if it is watched."""
        if self.watch is not None:
            self.watch.end()
            self.watch = None

    def cut_nowait(self) -> None:
        """Cut the connection in any state, without a wait."""
        self._link = _LOST
        self.end_watch()
        stream = self._tls
        assert stream is not None, "only TLS can be cut without a wait"
        stream.close_nowait()

    async def aclose(self) -> None:
        """Cut the connection in any state. May be called again."""
        self._link = _LOST
        await trio.aclose_forcefully(self.stream)

    async def _receive(self) -> None:
        """Receive bytes and feed them. A cancelled call loses nothing.

        A server can answer hundreds of requests at once, so tasks with small pieces wait for `fairness`.
        """
        http = self.http
        try:
            data = bytes(
                await self.stream.receive_some(CROWDED_BYTES_MAX if http.crowded else BODY_BYTES_MAX)
            )
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise self._lost(f"the connection broke: {exc}") from exc
        if not data:
            # This completes an answer that ends with its connection.
            http.ended = True
        http.feed(data)
        if len(data) <= SMALL_PIECE_BYTES and not (common := fairness()).admits():
            await common.wait()

    async def _write(self, data: bytes) -> None:
        if self._link is not _OPEN or self.http.fault is not None:
            raise self._lost("the connection broke before")
        self._link = _SENDING
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise self._lost(f"the connection broke: {exc}") from exc
        if self._link is _SENDING:
            self._link = _OPEN

    def _lost(self, reason: str) -> OutboundBroken:
        self._link = _LOST
        return self.http.lost(reason)
