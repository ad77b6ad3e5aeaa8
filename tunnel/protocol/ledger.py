"""The numbers of the sequenced frames, in both directions (PROTOCOL.md, "Sequence numbers", "Resumption").

Frames of types below 0x10 are numbered implicitly: the first one a session sends is 0, and no byte of the
number is on the wire. What the peer has not acknowledged yet is bounded, and the bound is the connection's
window: when it is full the writer stops taking DATA, OPEN and HEAD. It is never an error: a slow link is
not a broken one.

What may have to be sent again is kept as the messages that it left in, by reference: the unsequenced frames
stand first in a message, so its sequenced ones are a suffix. No frame is copied, and no list of frames is
kept. An acknowledgement frees whole messages, because a peer counts nearly every message when it has all of
it. A peer that was cut off within a replay, or within a message of very many frames, may need part of a
message; then its frames are located.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TypeAlias

import attrs

from tunnel.protocol.errors import RemoteProtocolError
from tunnel.protocol.frames import HEADER, HEADER_BYTES
from tunnel.protocol.memory import Memory

# About 560 Mbit/s at 120 ms of round trip.
LEDGER_BYTES_MAX = 8 * 1024 * 1024
# RESET, WINDOW and CONTEXT may go this far beyond it: they are what lets a full session move again.
LEDGER_RESERVE_BYTES = 1024 * 1024
# A ledger may take this share of the free memory: otherwise sixty-four detached tunnels would hold all of it.
LEDGER_SHARE = 8
# A kept message's own objects. Without it, a peer that acknowledges nothing could make us keep half a million
# messages of one WINDOW each, ten times what is counted.
KEPT_MESSAGE_BYTES = 160
# Where messages are not kept, so many of them are numbered apart; beyond that small ones are joined, for the
# same reason.
NUMBERS_MAX = 1024
# Most kept bytes are acknowledged before they come to this, and are not worth two calls a message.
CHARGED_IN_BYTES = 16 * 1024

ACK_EVERY_FRAMES = 64
ACK_EVERY_BYTES = 256 * 1024
# For so little that the peer waits for no ACK. Nearly always something is sent before, and the ACK goes
# along.
ACK_AFTER_S = 1.0
# Not with every message: where there are many, one in so long is enough.
ACK_ALONG_S = 0.050
# On a slow link all of these would be late: a sender's bytes under way are bounded by what the link holds,
# so a sender that fills the link waits for our ACK.
ACK_SOON_BYTES = 16 * 1024
ACK_SOON_S = 0.010

# The least limit, however short memory is: a peer with so much under way is acknowledged at once, by bytes
# or by frames, and does not wait for ACK_AFTER_S.
LEDGER_LEAST_BYTES = ACK_EVERY_BYTES + 16 * 1024
assert ACK_EVERY_FRAMES * KEPT_MESSAGE_BYTES <= LEDGER_LEAST_BYTES - ACK_EVERY_BYTES

# The number behind its last frame, what it counts, the message, and where in it the sequenced frames begin. A
# tuple, since one is made for every message.
_Kept: TypeAlias = tuple[int, int, bytes, int]


@attrs.define
class SentLedger:
    """The frames that we sent and the peer has not acknowledged."""

    memory: Memory = attrs.Factory(lambda: Memory(2**62))
    """Is charged for what is kept."""
    acknowledged: int = 0
    next_number: int = 0
    unacknowledged_bytes: int = 0
    limit_bytes: int = LEDGER_BYTES_MAX
    """Where DATA, OPEN and HEAD stop; lower while memory is short, and then as it was at the last message."""
    keeping: bool = False
    """The messages are kept; otherwise only their numbers."""
    charged_bytes: int = attrs.field(init=False, default=0)
    """What memory is charged for: what is kept, give or take CHARGED_IN_BYTES."""
    replayed_frames: int = attrs.field(init=False, default=0)
    """How many have been sent again in all."""
    replaying: deque[_Kept] = attrs.field(init=False, factory=deque)
    """What is still to be sent again, the first from `_replay_offset` on."""
    _replay_offset: int = attrs.field(init=False, default=0)
    _replay_number: int = attrs.field(init=False, default=0)
    _kept: deque[_Kept] = attrs.field(init=False, factory=deque)
    _kept_from: int = attrs.field(init=False, default=0)
    """The number of the first frame in `_kept`."""
    _beyond_bytes: int = attrs.field(init=False, default=0)
    """Bytes that were sent while the ledger was full, since the peer last acknowledged something."""

    @property
    def full(self) -> bool:
        return self.unacknowledged_bytes >= self.limit_bytes

    @property
    def exhausted(self) -> bool:
        """Even the reserve is used up: the peer takes without ever acknowledging."""
        return self._beyond_bytes >= LEDGER_RESERVE_BYTES

    @property
    def kept_bytes(self) -> int:
        return self.unacknowledged_bytes if self.keeping else 0

    @property
    def sent_number(self) -> int:
        """The number of the frame that leaves next."""
        return self._replay_number if self.replaying else self.next_number

    # --- frames that leave for the first time ---

    def record(self, count: int, size: int) -> None:
        """Number `count` frames, `size` bytes in all, that are put into the message in the making.

        This is the one place that numbers.
        """
        self.next_number += count
        self.unacknowledged_bytes += size

    def keep(self, message: bytes, unsequenced_bytes: int, before_bytes: int) -> None:
        """Take note of the message that is made: what was recorded is all of it behind `unsequenced_bytes`.

        `before_bytes` is what was not acknowledged before it.
        """
        cost = len(message)
        # A sequenced frame that left past `record` would shift the number of every frame behind it.
        assert before_bytes + cost == self.unacknowledged_bytes + unsequenced_bytes, "a frame has no number"
        if before_bytes >= self.limit_bytes:
            self._beyond_bytes += cost
        if not self.keeping:
            cost -= unsequenced_bytes
            if len(self._kept) >= NUMBERS_MAX and self._kept[-1][1] < CHARGED_IN_BYTES:
                cost += self._kept.pop()[1]
            self._kept.append((self.next_number, cost, b"", 0))
            return
        cost += KEPT_MESSAGE_BYTES
        self._kept.append((self.next_number, cost, message, unsequenced_bytes))
        self.unacknowledged_bytes = cost = before_bytes + cost
        if cost - self.charged_bytes > CHARGED_IN_BYTES:
            self._charge()

    def _charge(self) -> None:
        difference = self.kept_bytes - self.charged_bytes
        self.charged_bytes += difference
        if difference > 0:
            self.memory.charge(difference)
        else:
            self.memory.release(-difference)

    def squeeze(self) -> None:
        """Adapt the limit to the memory that is left; what is kept already stays."""
        share = self.memory.headroom_bytes // LEDGER_SHARE
        self.limit_bytes = max(LEDGER_LEAST_BYTES, min(LEDGER_BYTES_MAX, share))

    # --- what the peer says ---

    def acknowledge(self, count: int) -> None:
        """The peer has received `count` frames in all; an older count changes nothing.

        Raises RemoteProtocolError for more than were sent.
        """
        if count <= self.acknowledged:
            return
        if count > self.next_number or (self.replaying and count > self._replay_number):
            raise RemoteProtocolError(f"{count} frames acknowledged, {self.sent_number} sent")
        self.acknowledged = count
        self._beyond_bytes = 0
        kept, left, until = self._kept, self.unacknowledged_bytes, self._kept_from
        while kept and kept[0][0] <= count:
            until, cost, _, _ = kept.popleft()
            left -= cost
        self._kept_from = until
        self.unacknowledged_bytes = left
        # All of it comes back when nothing is kept, so that an account without a session stands at 0.
        charged = self.charged_bytes
        if charged and (charged - left > CHARGED_IN_BYTES or not left):
            self._charge()

    # --- after a loss ---

    def may_rewind(self, received: int) -> bool:
        """Whether the peer can have received so many frames, and what it lacks is still here."""
        return self.keeping and self.acknowledged <= received <= self.next_number

    def rewind(self, received: int) -> None:
        """Send everything again that the peer lacks, which has received `received` frames in all."""
        assert self.may_rewind(received)
        # Frames that the last replay had not reached may have been received before it.
        self.replaying.clear()
        self.acknowledge(received)
        self.replaying.extend(self._kept)
        self._replay_number = received
        if self.replaying:
            _, _, message, offset = self.replaying[0]
            self._replay_offset = _skip(message, offset, received - self._kept_from)

    def next_replayed(self, room: int) -> bytes | memoryview:
        """The next frames to send again, at most `room` bytes of them, but one at least."""
        end, _, message, _ = self.replaying[0]
        start, number = self._replay_offset, self._replay_number
        if len(message) - start <= room:
            position, self._replay_number = len(message), end
        else:
            # It does not fit, so it is cut between frames.
            position = _skip(message, start, 1)
            self._replay_number += 1
            while (following := _skip(message, position, 1)) - start <= room:
                position = following
                self._replay_number += 1
        self.replayed_frames += self._replay_number - number
        self._replay_offset = position
        if position == len(message):
            self.replaying.popleft()
            if self.replaying:
                self._replay_offset = self.replaying[0][3]
        return message if position - start == len(message) else memoryview(message)[start:position]

    def clear(self) -> None:
        """Forget what is kept; the session is over."""
        self.keeping = False
        self._charge()
        self._kept.clear()
        self.replaying.clear()


def _skip(message: bytes, position: int, count: int) -> int:
    """Where the frame begins that is `count` further on, or where the message ends."""
    while count and position < len(message):
        position += HEADER_BYTES + int(HEADER.unpack_from(message, position)[4])
        count -= 1
    return position


@attrs.define
class ReceivedLedger:
    """The frames that we received, and when to acknowledge them."""

    count: int = 0
    acknowledged: int = 0
    unacknowledged_bytes: int = 0
    due_at: float | None = None
    along_at: float = attrs.field(init=False, default=-math.inf)
    """From then on the count goes along with other frames, which saves a message of its own."""
    _soon_at: float = attrs.field(init=False, default=-math.inf)

    def record(self, frames: int, size: int, now: float) -> None:
        self.count += frames
        self.unacknowledged_bytes += size
        if self.due_at is None:
            self.due_at = now + ACK_AFTER_S
        if self.unacknowledged_bytes >= ACK_SOON_BYTES:
            self.due_at = self._soon_at

    def due(self, now: float) -> bool:
        return self.due_at is not None and (
            self.count - self.acknowledged >= ACK_EVERY_FRAMES
            or self.unacknowledged_bytes >= ACK_EVERY_BYTES
            or now >= self.due_at
        )

    def said(self, now: float) -> int:
        """Return the count for an ACK, PING or PONG; from now on the peer knows it."""
        self._soon_at, self.along_at = now + ACK_SOON_S, now + ACK_ALONG_S
        self.acknowledged = self.count
        self.unacknowledged_bytes = 0
        self.due_at = None
        return self.count
