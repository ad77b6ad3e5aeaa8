"""The two ends of one exchange, independent of the transport.

An exchange is one request and its answer. `Inbound` is the source of the request: at the hub the client, at
the relay the tunnel or the hub's own connection. `Outbound` is its destination: the tunnel, or an HTTPS
connection. `proxy.exchange.forward` joins one of each and depends on nothing else of either.

A cut must never look like a clean end, because kubectl trusts a clean end. So there are only two ways to
finish: `end` for a complete answer, and `cut` for everything else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from proxy.message.failure import Failure
from proxy.message.head import ResponseHead

OnGone = Callable[[Failure], Awaitable[None]]
"""Called with the reason when the requesting side is gone."""


PassOn = Callable[[bytes], bool]
"""Passes a piece of an answer on. It is called from callbacks, so it neither waits nor raises. False: the
piece was not passed on, and the caller's task has to do it."""


class ByteStream(Protocol):
    """Raw bytes both ways, after a 101. Each method raises trio.BrokenResourceError when the peer is lost."""

    @property
    def can_half_close(self) -> bool:
        """Whether the other direction may continue after `send_eof`; over TLS it hardly ever does."""
        ...

    async def receive_some(self) -> bytes:
        """Return bytes as soon as any arrive; b"" at a clean end. A cancelled call loses nothing."""
        ...

    async def send_all(self, data: bytes) -> None:
        """Send all of it. A cancelled call has sent an unknown part, so the stream can only be cut."""
        ...

    async def send_eof(self) -> None:
        """End our direction. The peer's bytes can still be received. Nothing can be sent afterwards."""
        ...


class Inbound(Protocol):
    """The requesting side. Its methods raise InboundBroken.

    One task may be in `receive_body` while another sends. A cancelled receive loses nothing. After a
    cancelled send, only `cut` is allowed.
    """

    async def receive_body(self) -> bytes:
        """Return body bytes as they arrive, without delay; b"" at the clean end, on each further call."""
        ...

    async def send_head(self, head: ResponseHead, data: bytes = b"", *, end: bool = False) -> None:
        """Send the answer's head, in one write with the body bytes and the end that have arrived.

        A complete answer (`end`) may drop a request's body of which nothing was received yet.
        """
        ...

    async def send_body(self, data: bytes, *, end: bool = False) -> None:
        """Send body bytes at once, and with `end` the clean end."""
        ...

    def send_body_nowait(self, data: bytes) -> bool:
        """Send body bytes if that needs no wait. False: call `send_body` next, with the same bytes.

        `send_body` then sends the rest of them. It also raises the connection's failure; this method does
        not.
        """
        ...

    async def end(self) -> None:
        """End the answer cleanly, or after `upgraded` the connection. May be called again."""
        ...

    def upgraded(self) -> ByteStream:
        """Return the raw stream after a 101 was sent. It begins with bytes that arrived before the 101."""
        ...

    async def cut(self, failure: Failure) -> None:
        """End it in a way that is never taken for a clean end. Raises nothing; may be called again."""
        ...

    def watch(self, on_gone: OnGone, *, body_is_read: bool = False) -> None:
        """Call `on_gone`, in a separate task, once the other side is gone.

        With `body_is_read` a task is in `receive_body`, which fails as well. Bytes that arrive meanwhile are
        kept, up to a bound.
        """
        ...

    async def unwatch(self) -> None:
        """End `watch`. After the return, `on_gone` does not run. Waits only for a call that is due."""
        ...


class Outbound(Protocol):
    """The answering side. The request's head is already sent. Its methods raise OutboundBroken.

    One task may send the body while another receives. A cancelled receive loses nothing.
    """

    async def send_body(self, data: bytes) -> None:
        """Send bytes of the request's body."""
        ...

    async def end_body(self) -> None:
        """Send the clean end of the request's body."""
        ...

    async def receive_head(self) -> ResponseHead:
        """Return the final head or the 101. Other 1xx heads are dropped."""
        ...

    async def receive_body(self, pass_on: PassOn | None = None, /) -> bytes:
        """Return body bytes as they arrive; b"" at the clean end, on each further call.

        Bytes that arrive during the wait may be given to `pass_on`. They are returned only if it refuses
        them. The last piece is always returned, if it is known to be the last.
        """
        ...

    def receive_body_nowait(self) -> bytes | None:
        """Return received body bytes, b"" at the clean end, None if that needs a wait."""
        ...

    def upgraded(self) -> ByteStream:
        """Return the raw stream after a 101 was received. It begins with bytes that came with the 101."""
        ...

    async def abandon(self, failure: Failure | None = None) -> None:
        """Abort the exchange, from any task. Waiting methods raise OutboundBroken; this one raises nothing.

        Without a `failure` the client is gone. It never waits for the peer, even an unreachable one.
        """
        ...

    async def aclose(self) -> None:
        """Give a clean connection back to its pool; cut any other. May be called again."""
        ...
