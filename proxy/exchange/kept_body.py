"""The body of a request, kept while it may have to be sent again."""

from __future__ import annotations

import sys
from typing import ClassVar

from proxy.message.body import BODY_BYTES_MAX
from tunnel.protocol.streams import SMALL_BYTES

# Bytes that are kept of a body. Most bodies of kubectl are small; a larger one is sent once.
REPLAY_BYTES_MAX = 64 * 1024


class KeptBody:
    """The delivered pieces of a body, up to REPLAY_BYTES_MAX, and the pieces of a replay."""

    __slots__ = ("_again", "_bytes", "_kept")

    _bytes_max: ClassVar[int] = REPLAY_BYTES_MAX

    def __init__(self) -> None:
        # None once a piece is lost.
        self._kept: list[bytes] | None = []
        self._bytes = 0
        # The pieces of a replay that are still to be delivered.
        self._again: list[bytes] = []

    @property
    def whole(self) -> bool:
        """Whether all delivered pieces are kept."""
        return self._kept is not None

    @property
    def replays(self) -> bool:
        """Whether pieces of a replay are still to be delivered."""
        return bool(self._again)

    @property
    def held_bytes(self) -> int:
        """The memory that the pieces use."""
        kept = 0 if self._kept is None else self._bytes
        return kept + sum(map(len, self._again))

    def rewind(self) -> None:
        """Begin a replay; only while the body is `whole`."""
        assert self._kept is not None, "a part of the body is gone"
        # The last attempt may have ended before it had all of these pieces.
        self._again, self._kept, self._bytes = [*self._kept, *self._again], [], 0

    def next(self) -> bytes:
        """Return the next piece of the replay."""
        return self._again.pop(0)

    def keep(self, data: bytes) -> None:
        """Keep a delivered piece."""
        kept = self._kept
        if kept is None:
            return
        self._bytes += len(data)
        if self._bytes > self._bytes_max:
            self._kept = None
        elif kept and len(kept[-1]) + len(data) <= SMALL_BYTES:
            # Without this, a body that arrives byte by byte costs 40 bytes of Python object for each byte.
            kept[-1] += data
        elif data:
            kept.append(data)


class WholeBody(KeptBody):
    """A body that was read whole before the first attempt. Its reader bounds it, so all of it is kept."""

    __slots__ = ()

    _bytes_max = sys.maxsize

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._again = [data[at : at + BODY_BYTES_MAX] for at in range(0, len(data), BODY_BYTES_MAX)]
