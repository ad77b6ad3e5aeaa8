"""One direction of a connection through the fault proxy: when its bytes move, how far. Pure, `now` is given.

Bytes are read from the source, wait, and are written to the sink once they have arrived. What decides when is
the road, which all connections of a link share in one direction, and the pipe's own state: it may be stalled
(nothing moves, and the kernel's buffers fill up to the sender, as in a network that swallows everything), or
be cut at an exact byte.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from typing import Final

import attrs

# What may wait for a slow road, as in a router with a small buffer; the buffers of the two sockets add to it.
QUEUE_S: Final = 0.005
QUEUE_BYTES_MIN: Final = 4 * 1024
# What one connection may have under way on a road without a rate. It bounds memory and nothing else.
HELD_BYTES_MAX: Final = 8 * 1024 * 1024
READ_BYTES_MAX: Final = 64 * 1024


class End(enum.Enum):
    """How a direction ends, or a connection is cut."""

    FIN = "fin"
    RST = "rst"


@attrs.define(eq=False)
class Road:
    """What all connections of a link share in one direction."""

    delay_s: float = 0.0
    bytes_per_s: float = math.inf
    piece_bytes: int = 0
    """Bytes are written in pieces of at most so many; 0: as they come."""
    buffer_s: float = 0.0
    """How long bytes may wait for a slow road where that is more, as in a router with a large buffer."""
    free_at: float = 0.0
    """When all that was put on it has left; it arrives `delay_s` later."""

    def put(self, size: int, now: float) -> float:
        """Put bytes on the road; returns when the last of them arrives."""
        self.free_at = max(self.free_at, now) + size / self.bytes_per_s
        return self.free_at + self.delay_s

    @property
    def turn_s(self) -> float:
        """What is read at once takes so long on a slow road."""
        return max(QUEUE_S, QUEUE_BYTES_MIN / self.bytes_per_s)

    @property
    def queue_s(self) -> float:
        return max(self.turn_s, self.buffer_s)

    def room_at(self) -> float:
        """From when on there is room in the queue."""
        return self.free_at - self.queue_s

    @property
    def held_bytes_max(self) -> int:
        """What one connection may have under way: a round trip's worth and the queue."""
        if self.bytes_per_s == math.inf:
            return HELD_BYTES_MAX
        return int(self.bytes_per_s * (2 * self.delay_s + self.queue_s)) + QUEUE_BYTES_MIN

    @property
    def read_bytes(self) -> int:
        """How much to read at once: what is read in one go arrives in one go."""
        if self.bytes_per_s == math.inf:
            return READ_BYTES_MAX
        return max(1, min(READ_BYTES_MAX, int(self.bytes_per_s * self.turn_s)))


@attrs.define(eq=False)
class Pipe:
    """One connection's bytes in one direction."""

    road: Road
    stalled: bool = False
    cut_at: float = math.inf
    """The connection is to be cut when so many bytes have passed."""
    passed: int = 0
    """Bytes that the sink has taken."""
    ended: bool = False
    """The source says no more."""
    over: bool = False
    """The sink has been told so."""
    _waiting: deque[tuple[float, bytes | End]] = attrs.Factory(deque)
    _held_bytes: int = 0

    def wants_at(self) -> float:
        """From when on more can be read from the source; never, when something else must happen first."""
        if self.ended or self.stalled or self._held_bytes >= self.road.held_bytes_max:
            return math.inf
        return self.road.room_at()

    def put(self, data: bytes, now: float) -> None:
        """Send what was read on its way."""
        self._waiting.append((self.road.put(len(data), now), data))
        self._held_bytes += len(data)

    def end(self, how: End, now: float) -> None:
        """The source has ended; its end comes behind its bytes."""
        self.ended = True
        self._waiting.append((self.road.put(0, now), how))

    def arrives_at(self) -> float:
        """When the next bytes, or the end, can be handed to the sink."""
        return math.inf if self.stalled or not self._waiting else self._waiting[0][0]

    def front(self) -> bytes | End:
        """What is next for the sink, as much as may go now."""
        what = self._waiting[0][1]
        if isinstance(what, End):
            return what
        limit = min(self.road.piece_bytes or len(what), self.cut_at - self.passed)
        return what[: int(limit)]

    def advance(self, size: int) -> None:
        """The sink took so many bytes of the front."""
        arrived_at, what = self._waiting.popleft()
        assert isinstance(what, bytes)
        self.passed += size
        self._held_bytes -= size
        if size < len(what):
            self._waiting.appendleft((arrived_at, what[size:]))

    def finish(self) -> None:
        """The sink has been told of the end, or is gone."""
        self._waiting.clear()
        self._held_bytes = 0
        self.ended = self.over = True

    @property
    def cut_is_due(self) -> bool:
        return self.passed >= self.cut_at
