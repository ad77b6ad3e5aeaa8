"""A request whose body is kept until its answer begins, so that it can be sent once more.

A relay may refuse a request of which nothing has reached the API server. Then the hub sends it to another
relay, and the agent never hears of it; but only what it still has can it send again. Most bodies of kubectl
are small and come with their head.
"""

from __future__ import annotations

from proxy.exchange.ports import ByteStream, Inbound, OnGone
from proxy.message.failure import Failure
from proxy.message.head import ResponseHead
from tunnel.protocol.streams import SMALL_BYTES

# What is kept of one request. A larger body crosses once.
HELD_BYTES_MAX = 64 * 1024


class HeldBody:
    """The side that asked (an Inbound), which can be read from the beginning again while `whole`."""

    def __init__(self, inbound: Inbound) -> None:
        self.whole = True
        """Whether all that was read is still here."""
        self._inbound = inbound
        self._held: list[bytes] = []
        self._size = 0
        self._again: list[bytes] = []

    def rewind(self) -> None:
        """Begin again; only while it is `whole`."""
        assert self.whole, "a part of the body is gone"
        self._again = self._held[:]

    def _let_go(self) -> None:
        self.whole = False
        self._held.clear()

    async def receive_body(self) -> bytes:
        """See Inbound."""
        if self._again:
            return self._again.pop(0)
        data = await self._inbound.receive_body()
        if data and self.whole:
            self._size += len(data)
            held = self._held
            if self._size > HELD_BYTES_MAX:
                self._let_go()
            elif held and len(held[-1]) + len(data) <= SMALL_BYTES:
                # One that comes byte by byte would cost 40 bytes of Python object for each of them.
                held[-1] += data
            else:
                held.append(data)
        return data

    async def send_head(self, head: ResponseHead, data: bytes = b"", *, end: bool = False) -> None:
        """See Inbound. What is answered is not sent again."""
        self._let_go()
        await self._inbound.send_head(head, data, end=end)

    async def send_body(self, data: bytes, *, end: bool = False) -> None:
        """See Inbound."""
        await self._inbound.send_body(data, end=end)

    def send_body_nowait(self, data: bytes) -> bool:
        """See Inbound."""
        return self._inbound.send_body_nowait(data)

    async def end(self) -> None:
        """See Inbound."""
        await self._inbound.end()

    def upgraded(self) -> ByteStream:
        """See Inbound."""
        return self._inbound.upgraded()

    async def cut(self, failure: Failure) -> None:
        """See Inbound."""
        await self._inbound.cut(failure)

    def watch(self, on_gone: OnGone, *, body_is_read: bool = False) -> None:
        """See Inbound."""
        self._inbound.watch(on_gone, body_is_read=body_is_read)

    async def unwatch(self) -> None:
        """See Inbound."""
        await self._inbound.unwatch()
