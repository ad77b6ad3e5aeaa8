"""What a client has sent and nobody has taken yet.

It may be the next head, or a part of one; while an answer is still to come it is what was sent early:
pipelined requests, or the first bytes of an upgraded stream. Which of them shows only later, so all of it
stands in one place until then, and the place is bounded.
"""

from __future__ import annotations

import trio

from proxy.message.body import BODY_BYTES_MAX
from proxy.message.strict import HeadScanner

# What a client sends while its answer is still to come. Beyond this nothing is read, so that a client that
# leaves then is noticed when the answer is sent.
EARLY_BYTES_MAX = 64 * 1024


class Received(HeadScanner):
    """The bytes, where more of them come from, and whether there will be more."""

    __slots__ = ("ended", "stream")

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        super().__init__()
        self.stream = stream
        self.ended = False
        """Nothing comes any more: the client has said all, or is gone. Who reads elsewhere sets it too."""

    @property
    def full(self) -> bool:
        """Whether no more is to be read before some of it is taken."""
        return len(self) >= EARLY_BYTES_MAX

    async def receive(self) -> bool:
        """Wait for more; False when there is nothing more to come. Cancelled, nothing is lost."""
        if self.ended:
            return False
        try:
            data = await self.stream.receive_some(BODY_BYTES_MAX)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        if not data:
            self.ended = True
            return False
        self.feed(data)
        return True

    async def wait_end(self) -> None:
        """Return once nothing comes any more. What comes before that is kept, until this is `full`.

        It ends by a checkpoint, so whoever was cancelled meanwhile does not hear of the end. Cancelled,
        nothing is lost.
        """
        while not (self.ended or self.full):
            await self.receive()
        if not self.ended:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
