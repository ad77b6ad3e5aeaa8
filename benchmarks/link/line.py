"""When bytes arrive that are put on a line now. Pure: the time is handed in.

A line is one direction of a link. A sender puts bytes on it one after the other at the line's rate, and each
is at the other end `delay_s` later. All connections of a link share its two lines.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

import attrs

# What may wait for the line, as in a router with a small buffer: 5 ms at 100 Mbit/s. It is the delay that the
# link itself adds to a byte behind a busy sender; the buffers of the sockets add at most as much again.
QUEUE_BYTES: Final = 64 * 1024


@attrs.define
class Line:
    """One direction."""

    bytes_per_s: float
    delay_s: float
    free_at: float = 0.0
    """When the last byte so far has been put on it."""

    def put(self, size: int, now: float) -> float:
        """Put bytes on the line; returns when the last of them arrives."""
        self.free_at = max(self.free_at, now) + size / self.bytes_per_s
        return self.free_at + self.delay_s

    def has_room_at(self) -> float:
        """When less than QUEUE_BYTES wait for the line."""
        return self.free_at - QUEUE_BYTES / self.bytes_per_s

    @property
    def held_bytes_max(self) -> int:
        """What one connection may have under way: a round trip's worth, and the queue.

        Only a receiver that does not read meets it: what has arrived waits here, as it would in the receive
        buffer of a kernel that sizes it to the link.
        """
        return int(self.bytes_per_s * 2 * self.delay_s) + QUEUE_BYTES


@attrs.define(eq=False)
class Flow:
    """One connection's bytes in one direction: read here, delivered later."""

    line: Line
    _under_way: deque[tuple[float, bytes]] = attrs.Factory(deque)
    _held_bytes: int = 0
    ended: bool = False
    """Nothing more comes from the source."""
    over: bool = False
    """Nothing more goes to the sink."""

    def wants_at(self) -> float:
        """From when on more can be read from the source; never, when something else must happen first."""
        if self.ended or self._held_bytes >= self.line.held_bytes_max:
            return math.inf
        return self.line.has_room_at()

    def put(self, data: bytes, now: float) -> None:
        """Send `data` on its way; b"" is the end, and takes as long."""
        if not data:
            self.ended = True
        self._under_way.append((self.line.put(len(data), now), data))
        self._held_bytes += len(data)

    def arrives_at(self) -> float:
        """When the next bytes arrive."""
        return self._under_way[0][0] if self._under_way else math.inf

    def take(self) -> bytes:
        """The bytes that arrive next; b"" for the end."""
        data = self._under_way.popleft()[1]
        self._held_bytes -= len(data)
        self.over = not data
        return data

    def put_back(self, data: bytes) -> None:
        """What the sink did not take of the bytes taken last; it has arrived."""
        self._under_way.appendleft((-math.inf, data))
        self._held_bytes += len(data)

    def abandon(self) -> None:
        """Drop the bytes under way: the receiver is gone."""
        self._under_way.clear()
        self.ended = self.over = True
