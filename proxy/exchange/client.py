"""The client's side of one HTTP/1.1 connection, over any trio stream: the Outbound of one exchange at a time.

An answer is held to the same strictness as a request: what could be read in two ways is broken, not repaired,
because somebody behind the API server (a pod behind `services/proxy`) may have written it. A connection is
used again only when an exchange ended cleanly on both sides; one that asked for an upgrade never is, whatever
the answer was (a refused upgrade whose connection lives on is CVE-2018-1002105).
"""

from __future__ import annotations

import enum
from typing import Final

import trio

from proxy.exchange.http_client import ClientHTTP
from proxy.exchange.http_connection import CROWDED_BYTES_MAX
from proxy.exchange.http_state import DONE, SWITCHED
from proxy.exchange.ports import PassOn
from proxy.exchange.wire import RawStream, held_bytes
from proxy.message.body import BODY_BYTES_MAX
from proxy.message.failure import Failure, OutboundBroken
from proxy.message.head import RequestHead, ResponseHead
from tunnel.net.connect import TLSStream
from tunnel.net.fairness import SMALL_PIECE_BYTES, fairness
from tunnel.net.readiness import Watch


class _Link(enum.Enum):
    """What can be done with the stream."""

    OPEN = "open"
    SENDING = "sending"
    """A send is under way, or has left something over. One that was cancelled leaves it so."""
    LOST = "lost"
    """It is broken, or cut from here."""


_OPEN: Final = _Link.OPEN
_SENDING: Final = _Link.SENDING
_LOST: Final = _Link.LOST


class ClientConnection:
    """A connection to a server. `send_request` begins an exchange, `end_exchange` ends one that went well.

    It owns the stream; `aclose` cuts it, in whatever it is.

    Where the stream is TLS over a socket of ours, an exchange can begin without a wait, and its answer be
    taken in when a `watch` says that there is something: the methods that end in `_nowait`. What they leave
    undone, and what they found broken, is for their twins.
    """

    __slots__ = (
        # The hub remembers by a connection what its relay was told there, for as long as there is one.
        "__weakref__",
        "_link",
        "_tls",
        "http",
        "idle_since",
        "stream",
        "watch",
    )

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.watch: Watch | None = None
        """Whose it is to watch the connection; it is ended before the connection is."""
        self.idle_since = 0.0
        """Whoever keeps it between exchanges says since when."""
        self.stream = stream
        self.http = ClientHTTP()
        """What was received and what it means, and the framing of what is sent."""
        self._tls = stream if isinstance(stream, TLSStream) else None
        self._link = _OPEN

    async def send_request(self, head: RequestHead) -> None:
        """Begin an exchange: send the head, and the end of the request when it has no body.

        Raises OutboundBroken. The API server may have seen the request as soon as this was called, unless its
        head is TOO_LARGE.
        """
        await self._write(self.http.send_request(head))

    async def send_body(self, data: bytes) -> None:
        """Send bytes of the request's body."""
        if data:
            await self._write(self.http.send_body(data))

    async def end_body(self) -> None:
        """Say that the request's body is whole."""
        if self.http.outgoing is not DONE:
            await self._write(self.http.send_body(b"", end=True))

    def send_nowait(self, data: bytes) -> bool:
        """Send what the kernel takes at once; False when that is not all, and then the rest is sent first.

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
        """Return the final head, or a 101 that was asked for; other 1xx are dropped.

        Raises OutboundBroken: UPSTREAM_RESET when the connection ends first, PROTOCOL for an answer that
        cannot be trusted.
        """
        while (head := self.http.receive_head()) is None:
            await self._receive()
        return head

    def take_in_nowait(self) -> bool:
        """Take in what has come on the connection; whether something has. Raises OutboundBroken.

        Its end counts as something, and shows when the next thing is asked for.
        """
        data = self._receive_nowait()
        if data is None:
            return False
        self.http.feed(data)
        return True

    def take_in_body_nowait(self) -> bytes | None:
        """Take in what has come on the connection, and return body bytes, b"" at their end, None for a wait.

        For whoever has left nothing of the body; there may be more than a piece of it now.
        """
        data = self._receive_nowait()
        return None if data is None else self.http.feed_body(data)

    def take_in_raw_nowait(self) -> bytes | None:
        """Return what has come behind a 101, b"" at the end, None when nothing has. Raises OutboundBroken."""
        http = self.http
        if http.held:
            return http.take_rest()
        return b"" if http.ended else self._receive_nowait()

    @property
    def at_end(self) -> bool:
        """Whether the server has ended the connection, and all that came before was received."""
        return self.http.ended and not self.http.held

    @property
    def has_unread(self) -> bool:
        """Whether something has come that does not show on the socket."""
        return self._tls is not None and self._tls.has_unread

    def _receive_nowait(self) -> bytes | None:
        """Return what has come on the connection, b"" at its end, None when nothing has."""
        stream = self._tls
        assert stream is not None, "only TLS can be received from without a wait"
        try:
            data = stream.receive_nowait()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise self._lost(f"the connection broke: {exc}") from exc
        if stream.ended:
            # Also where the end came with data: it is taken from the socket, which then need not tell again.
            self.http.ended = True
        return data

    async def receive_body(self, _: PassOn | None = None, /) -> bytes:
        """Return body bytes as they come; b"" at the clean end. Every piece is the caller's (see Outbound).

        Raises OutboundBroken when the connection ends, or breaks its framing, before that.
        """
        if self.http.crowded:
            # However many send such answers, one of them has its turn in a pass.
            await fairness().wait_alone()
        while (data := self.http.receive_body()) is None:
            await self._receive()
        return data

    def receive_body_nowait(self) -> bytes | None:
        """Return body bytes that are already here, b"" at the clean end, None when there is a wait.

        Raises what receive_body raises.
        """
        return self.http.receive_body()

    @property
    def held_bytes(self) -> int:
        """What it takes of memory: itself, and what is in hand for a server that does not take it now."""
        tls = self._tls
        return 0 if tls is None else held_bytes(tls, self.http, framed=self.http.sends_chunks)

    def upgraded(self) -> RawStream:
        """Return the raw stream after a 101; the bytes that came with it are its first."""
        http = self.http
        assert http.incoming is SWITCHED, "upgraded() without a 101"
        return RawStream(self.stream, http.take_rest(), ended=http.ended)

    async def abandon(self, failure: Failure | None = None) -> None:
        """Cut the connection under whoever waits in the exchange; does nothing between exchanges."""
        if not self.http.idle:
            self._link = _LOST
            await trio.aclose_forcefully(self.stream)

    def end_exchange(self) -> bool:
        """End the exchange, if nothing of it is left on either side; whether another one may follow.

        If not, the connection is good for nothing but to be cut.
        """
        tls = self._tls
        if self._link is not _OPEN or (tls is not None and tls.has_unread):
            return False
        return self.http.end_exchange()

    def end_watch(self) -> None:
        """Watch the connection no more, if it is watched."""
        if self.watch is not None:
            self.watch.end()
            self.watch = None

    def cut_nowait(self) -> None:
        """Cut the connection, whatever it is in."""
        self._link = _LOST
        self.end_watch()
        stream = self._tls
        assert stream is not None, "only TLS can be cut without a wait"
        stream.close_nowait()

    async def aclose(self) -> None:
        """Cut the connection, whatever it is in. May be called again."""
        self._link = _LOST
        await trio.aclose_forcefully(self.stream)

    async def _receive(self) -> None:
        """Receive something; when cancelled, nothing is lost. A server can answer hundreds at one moment."""
        http = self.http
        try:
            data = bytes(
                await self.stream.receive_some(CROWDED_BYTES_MAX if http.crowded else BODY_BYTES_MAX)
            )
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise self._lost(f"the connection broke: {exc}") from exc
        if not data:
            # All is here of an answer that ends with its connection.
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
