"""The interface between a session and the connection that carries its messages, with an in-memory one for
tests.

A transport carries whole binary messages both ways, in order and without loss, until it ends. It knows
nothing of frames, streams or sessions; the session knows nothing of WebSocket, TLS or sockets. One task
sends and one task receives: the session's writer and reader. While the writer does not send, another task may
begin a message without a wait (`send_nowait`); where that is not all out, the writer has to `finish` it.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence

import trio

from tunnel.protocol.frames import MESSAGE_BYTES_MAX

__all__ = ["MESSAGE_BYTES_MAX", "MemoryTransport", "Transport", "TransportClosed", "memory_transport_pair"]

# Enough for a writer and a reader to overlap, and few enough that backpressure shows in tests as on a socket.
MEMORY_MESSAGES_MAX = 16


class TransportClosed(Exception):
    """The transport has ended: no message will ever come or go again.

    `code` is the WebSocket close code that the peer (or we) gave, or None when the connection ended without
    one, as it does when the network cuts it.
    """

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(f"{code}: {reason}" if code is not None else reason)
        self.code = code
        self.reason = reason


class Transport(abc.ABC):
    """Carries whole messages to and from one peer."""

    peer_name: str
    """The other end, for logs: an address or a URL, never a credential."""

    last_received_s: float = -math.inf
    """When any byte of a message came from the peer, on trio's clock; -inf when that is not known.

    A large message on a slow link takes long to become whole, and is a sign of life all the while. What a
    transport says beside its messages is none: something between may say it for a peer that is gone.
    """

    answer_headers: Sequence[tuple[bytes, bytes]] = ()
    """At the end that dialled: what the answer to the upgrade had beside the WebSocket's own headers."""

    _begun: bytes | None = None
    """A message of `send_nowait` of which nothing has been sent."""

    @abc.abstractmethod
    async def send(self, message: bytes) -> None:
        """Send one message of at most MESSAGE_BYTES_MAX; only one task sends.

        Raises TransportClosed once the transport has ended. A cancelled send leaves half a message behind,
        so it ends the transport: there is nothing to continue.
        """

    def send_nowait(self, message: bytes) -> bool:
        """Begin to send one message, of which goes out what can without a wait; whether that is all of it.

        Only while no task sends. If not all was sent, no other message is sent before `finish`, which also
        reports of the end of the transport: nothing is raised here. A transport that cannot do this leaves
        all of it to `finish`.
        """
        self._begun = message
        return False

    async def finish(self) -> None:
        """Send what `send_nowait` has left.

        Raises what `send` does; when cancelled, it leaves what a cancelled `send` does.
        """
        message, self._begun = self._begun, None
        assert message is not None, "nothing was begun"
        await self.send(message)

    @abc.abstractmethod
    async def receive(self) -> bytes:
        """Return the next whole message; only one task receives.

        Raises TransportClosed at the end. When cancelled, no message is lost.
        """

    @abc.abstractmethod
    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """End the transport and tell the peer why, within a short deadline of its own.

        A second call does nothing. A task that is blocked in `send` or `receive` gets TransportClosed. When
        cancelled, the connection is closed all the same, only without the farewell.
        """


def memory_transport_pair(
    *, messages_max: int = MEMORY_MESSAGES_MAX
) -> tuple[MemoryTransport, MemoryTransport]:
    """Return two transports that carry to each other; `messages_max` may be under way in each direction."""
    a_sends, b_receives = trio.open_memory_channel[bytes](messages_max)
    b_sends, a_receives = trio.open_memory_channel[bytes](messages_max)
    a = MemoryTransport("memory:a", a_sends, a_receives)
    b = MemoryTransport("memory:b", b_sends, b_receives)
    a._peer, b._peer = b, a
    return a, b


class MemoryTransport(Transport):
    """One end of a lossless pair in memory, which keeps every promise of Transport and can be cut."""

    _peer: MemoryTransport

    def __init__(
        self, peer_name: str, sends: trio.MemorySendChannel[bytes], receives: trio.MemoryReceiveChannel[bytes]
    ) -> None:
        self.peer_name = peer_name
        self._sends = sends
        self._receives = receives
        self._ending: TransportClosed | None = None

    async def send(self, message: bytes) -> None:
        assert len(message) <= MESSAGE_BYTES_MAX, (
            f"{len(message)} bytes exceed a message of {MESSAGE_BYTES_MAX}"
        )
        try:
            await self._sends.send(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise self._closed() from None
        except trio.Cancelled:
            # A socket would hold half of the message now; the twin must not be kinder than the real thing.
            self.cut("a send was cancelled")
            raise

    def send_nowait(self, message: bytes) -> bool:
        try:
            self._sends.send_nowait(message)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            return super().send_nowait(message)
        return True

    async def receive(self) -> bytes:
        try:
            message = await self._receives.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise self._closed() from None
        self.last_received_s = trio.current_time()
        return message

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        self._end(code, reason)
        # What was sent before still arrives, as it does before a Close frame.
        if self._peer._ending is None:
            # Cancelled, there is no Close frame; the twin must not be kinder than the real thing.
            cancelled = trio.current_effective_deadline() == -math.inf
            self._peer._ending = TransportClosed(*((None, "it was cut") if cancelled else (code, reason)))
        await trio.lowlevel.checkpoint()

    def cut(self, reason: str = "the connection was cut") -> None:
        """End both directions at once, as a lost network does: what was under way is gone."""
        self._end(None, reason)
        self._peer._end(None, reason)

    def _end(self, code: int | None, reason: str) -> None:
        if self._ending is None:
            self._ending = TransportClosed(code, reason)
        self._sends.close()
        self._receives.close()

    def _closed(self) -> TransportClosed:
        assert self._ending is not None
        # A fresh exception each time: raising one object in two tasks would tangle their tracebacks.
        return TransportClosed(self._ending.code, self._ending.reason)
