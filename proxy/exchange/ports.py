"""The two ends of one exchange, whatever carries it.

An exchange is one request and its answer. `Inbound` is where the request came from (the client at the hub;
at the relay the tunnel, or the hub's own connection), `Outbound` is where it goes (the tunnel, or an HTTPS
connection). `proxy.exchange.forward` joins one of each and knows nothing else of either.

Only a clean end may look like one: kubectl believes it. So each end has two ways to finish, `end` for an
answer that is whole and `cut` for everything else, and there is no third.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from proxy.message.failure import Failure
from proxy.message.head import ResponseHead

OnGone = Callable[[Failure], Awaitable[None]]
"""What is to be done when the side that asked is gone, with the reason."""


PassOn = Callable[[bytes], bool]
"""Passes a piece of an answer on, in the midst of everything: it neither waits nor raises. False: it is still
to be passed on, by whoever can wait."""


class ByteStream(Protocol):
    """Raw bytes both ways, after a 101. Each method raises trio.BrokenResourceError when the peer is lost."""

    @property
    def can_half_close(self) -> bool:
        """Whether the other direction may go on behind `send_eof`; over TLS it hardly ever does."""
        ...

    async def receive_some(self) -> bytes:
        """Return bytes as soon as there are any; b"" at a clean end. Cancelled: nothing is lost."""
        ...

    async def send_all(self, data: bytes) -> None:
        """Send all of it. Cancelled: nobody knows how much, so the stream can only be cut."""
        ...

    async def send_eof(self) -> None:
        """End our direction; what the peer still says can be received. Nothing can be sent behind it."""
        ...


class Inbound(Protocol):
    """The side that asked. Its methods raise InboundBroken.

    One task may be in `receive_body` while another sends. A cancelled receive loses nothing; after a
    cancelled send the only thing left to do is `cut`.
    """

    async def receive_body(self) -> bytes:
        """Return body bytes as they come, never kept back; b"" at the clean end, again and again."""
        ...

    async def send_head(self, head: ResponseHead, data: bytes = b"", *, end: bool = False) -> None:
        """Send the answer's head, in one write with the body bytes and the end that are already there.

        A whole answer (`end`) may drop a request's body that nobody has begun to receive.
        """
        ...

    async def send_body(self, data: bytes, *, end: bool = False) -> None:
        """Send body bytes at once, and the clean end with them when `end`."""
        ...

    def send_body_nowait(self, data: bytes) -> bool:
        """Send body bytes where that needs no wait. False: the next is send_body, with the same bytes.

        It sends what is left of them then, and says what is wrong: a failure of the connection is not raised.
        """
        ...

    async def end(self) -> None:
        """End the answer cleanly, or after `upgraded` the connection. May be called again."""
        ...

    def upgraded(self) -> ByteStream:
        """Return the raw stream, after a 101 was sent; bytes that had come before it are its first."""
        ...

    async def cut(self, failure: Failure) -> None:
        """End it so that it can never be taken for a clean end. Raises nothing; may be called again."""
        ...

    def watch(self, on_gone: OnGone, *, body_is_read: bool = False) -> None:
        """Have `on_gone` called, in a task of its own, once the other side is gone.

        With `body_is_read` somebody is in `receive_body`, who hears of it too. What comes meanwhile is kept,
        up to a bound.
        """
        ...

    async def unwatch(self) -> None:
        """End `watch`; on return `on_gone` does not run, and will not. Waits only if it was to be called."""
        ...


class Outbound(Protocol):
    """The side that answers; the request's head is already on its way. Its methods raise OutboundBroken.

    One task may send the body while another receives. A cancelled receive loses nothing.
    """

    async def send_body(self, data: bytes) -> None:
        """Send bytes of the request's body."""
        ...

    async def end_body(self) -> None:
        """Say that the request's body is whole."""
        ...

    async def receive_head(self) -> ResponseHead:
        """Return the final head, or the 101; other 1xx are dropped."""
        ...

    async def receive_body(self, pass_on: PassOn | None = None, /) -> bytes:
        """Return body bytes as they come; b"" at the clean end, again and again.

        What comes during the wait for them may be given to `pass_on`, and is only returned if that does not
        take it. The last of them is always returned where it is known for the last.
        """
        ...

    def receive_body_nowait(self) -> bytes | None:
        """Return body bytes that are already here, b"" at the clean end, None when there is a wait."""
        ...

    def upgraded(self) -> ByteStream:
        """Return the raw stream, after a 101 was received; bytes that came with it are its first."""
        ...

    async def abandon(self, failure: Failure | None = None) -> None:
        """Give the exchange up, from any task: whoever waits in it gets OutboundBroken. Raises nothing.

        Without a `failure` the client is gone. It never waits for the other side, cut off or not.
        """
        ...

    async def aclose(self) -> None:
        """Give a connection that is clean back to its pool, cut any other. May be called again."""
        ...
