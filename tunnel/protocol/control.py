"""What is sent before any stream's bytes: PONG, PING, ACK, GOAWAY, CONTEXT, WINDOW, immediate RESET.

A PING must never wait behind DATA, and neither must frames that release memory or let a peer go on. Nothing
here can grow without bound: only the last PINGS_ANSWERED_MAX PINGs are answered, WINDOWs are one a stream,
PING, ACK and GOAWAY are one, CONTEXTs are bounded by the live ones, RESETs by CONTROL_RESETS_MAX and
`peer_resets_max`.
"""

from __future__ import annotations

from collections import deque

import attrs

from tunnel.protocol import frames
from tunnel.protocol.ledger import SentLedger
from tunnel.protocol.streams import StreamState

# RESETs queued or not yet acknowledged. An honest peer acknowledges 64 frames at once, so that many are only
# outstanding towards one that opens streams and never listens.
CONTROL_RESETS_MAX = 65_536
# Of streams that the peer opened: so many for each that it may have open. All of them may have been refused,
# as many opened again and some cancelled before we receive that, with a loss of the transport in between.
# They cost the peer nothing and us 0.3 KiB each, so a peer that may open few has few of them.
RESETS_FOR_EACH_STREAM = 4
PEER_RESETS_LEAST = 1024
# PINGs that wait for an answer; older ones are not answered any more. An honest peer sends no PING while one
# is unanswered, and a peer that reads nothing could otherwise make us keep ten a second without end.
PINGS_ANSWERED_MAX = 16


def peer_resets_max(max_streams: int) -> int:
    """How many RESETs of its streams a peer that may have so many open may leave unacknowledged."""
    return max(PEER_RESETS_LEAST, RESETS_FOR_EACH_STREAM * max_streams)


@attrs.define(eq=False)
class ControlQueue:
    greeting: bytes = b""
    pongs: deque[int] = attrs.field(init=False, factory=lambda: deque(maxlen=PINGS_ANSWERED_MAX))
    ping: int = 0
    """The number of the one to send; they count from 1."""
    ack_due: bool = False
    goaway: bytes = b""
    contexts: deque[bytes] = attrs.field(init=False, factory=deque)
    windows: deque[StreamState] = attrs.field(init=False, factory=deque)
    resets: deque[tuple[int, bytes]] = attrs.field(init=False, factory=deque)

    def __bool__(self) -> bool:
        # It is read several times for each message, and a condition costs less than a value.
        if self.windows or self.ack_due or self.resets or self.contexts or self.pongs or self.ping:
            return True
        return bool(self.goaway or self.greeting)

    def forget_unsequenced(self) -> None:
        """Drop frames for a transport that is lost; sequenced frames wait for the next one."""
        self.greeting = b""
        self.pongs.clear()
        self.ping = 0
        self.ack_due = False
        self.goaway = b""

    def keep_goaway(self) -> None:
        """Drop everything else: the session is over."""
        goaway = self.goaway
        self.forget_unsequenced()
        self.goaway = goaway
        self.contexts.clear()
        self.windows.clear()
        self.resets.clear()

    def add_window(self, stream: StreamState, delta: int) -> None:
        if not stream.window_due:
            self.windows.append(stream)
        stream.window_due += delta

    def sequenced(
        self,
        room: int,
        ledger: SentLedger,
        parts: list[bytes | memoryview],
        unacknowledged_resets: dict[int, int],
    ) -> int:
        """Move CONTEXT, WINDOW and RESET frames to `parts` while they fit; returns the room that is left."""
        while self.contexts and room > 0:
            room -= _record(self.contexts.popleft(), ledger, parts)
        while self.windows and room > 0:
            stream = self.windows.popleft()
            # A stream that was RESET since then gets no WINDOW.
            if stream.window_due:
                delta, stream.window_due = stream.window_due, 0
                room -= _record(frames.window(stream.id, delta), ledger, parts)
        while self.resets and room > 0:
            stream_id, frame = self.resets.popleft()
            unacknowledged_resets[stream_id] = ledger.next_number
            room -= _record(frame, ledger, parts)
        return room


def _record(frame: bytes, ledger: SentLedger, parts: list[bytes | memoryview]) -> int:
    ledger.record(1, len(frame))
    parts.append(frame)
    return len(frame)
