"""The feed: whole frames in, calls to the owners out.

Frames of streams are handled by `StreamFeed`, those of the session here.
"""

from __future__ import annotations

from tunnel.net.ratelimit import TokenBucket
from tunnel.protocol import frames
from tunnel.protocol.connection.drain import Drain
from tunnel.protocol.connection.handshake import Handshake
from tunnel.protocol.connection.stream_feed import StreamFeed
from tunnel.protocol.control import ControlQueue
from tunnel.protocol.errors import CloseCode, Processed, RemoteProtocolError, StreamCode
from tunnel.protocol.events import GoAway, SessionOwner
from tunnel.protocol.frames import DATA, HEADER_BYTES, UNSEQUENCED_FROM
from tunnel.protocol.ledger import ReceivedLedger, SentLedger
from tunnel.protocol.liveness import PINGS_PER_S, RoundTrips
from tunnel.protocol.memory import Memory
from tunnel.protocol.session.contexts import Contexts
from tunnel.protocol.session.goaways import GoAways
from tunnel.protocol.session.status import OPEN, Status
from tunnel.protocol.session.table import StreamTable

__all__ = ["Feed"]


class Feed:
    """What comes from the peer, applied."""

    def __init__(
        self,
        status: Status,
        memory: Memory,
        control: ControlQueue,
        sent: SentLedger,
        received: ReceivedLedger,
        round_trips: RoundTrips,
        contexts: Contexts,
        table: StreamTable,
        goaways: GoAways,
        handshake: Handshake,
        drain: Drain,
        streams: StreamFeed,
        owner: SessionOwner,
    ) -> None:
        self.unread = b""
        """The rest of the last message, where that had more frames than were asked for."""
        self.frames_taken = 0
        """How many frames were taken of it, as `Connection.receive_message` counts them."""
        self._status = status
        self._memory = memory
        self._control = control
        self._sent = sent
        self._received = received
        self._round_trips = round_trips
        self._contexts = contexts
        self._table = table
        self._resets = table.resets
        self._goaways = goaways
        self._handshake = handshake
        self._drain = drain
        self._streams = streams
        self._owner = owner
        self._ping_rate = TokenBucket(PINGS_PER_S, PINGS_PER_S)
        self._handlers = {
            frames.OPEN: streams.on_open,
            frames.HEAD: streams.on_head,
            frames.WINDOW: streams.on_window,
            frames.RESET: streams.on_reset,
        }
        self._session_handlers = {
            frames.CONTEXT: self._on_context,
            frames.ACK: self._on_ack,
            frames.PING: self._on_ping,
            frames.GOAWAY: self._on_goaway,
        }

    def receive(self, message: bytes, now: float, frames_max: int) -> None:
        """See `Connection.receive_message`; what it raises is only noted there."""
        end = len(message)
        if end > frames.MESSAGE_BYTES_MAX:
            raise RemoteProtocolError(f"a message of {end} bytes exceeds {frames.MESSAGE_BYTES_MAX}")
        # All of it is held meanwhile, and one charge a message is less than one a frame.
        self._memory.charge(end)
        self._streams.kept_bytes = 0
        try:
            self._take_apart(message, end, now, frames_max)
        finally:
            self._memory.release(end - self._streams.kept_bytes)
        if self._resets.unacknowledged:
            self._resets.check(self._status.local.max_streams)

    def _take_apart(self, message: bytes, end: int, now: float, frames_max: int) -> None:
        status, streams, received = self._status, self._streams, self._received
        max_frame = status.local.max_frame
        position, sequenced = 0, 0
        unpack, handlers = frames.HEADER.unpack_from, self._handlers
        streams.head_frames = 0
        for taken in range(frames_max):
            if position == end or (streams.head_frames and taken + streams.head_frames >= frames_max):
                break
            start = position + HEADER_BYTES
            if start > end:
                raise RemoteProtocolError(f"{end - position} bytes at the end of a message are no frame")
            frame_type, flags, reserved, stream_id, length = unpack(message, position)
            if length > max_frame:
                raise RemoteProtocolError(f"a frame of {length} bytes exceeds {max_frame}")
            position = start + length
            if position > end:
                raise RemoteProtocolError(f"a frame of {length} bytes is cut at {end - start}")
            if reserved:
                raise RemoteProtocolError(f"the reserved bytes of a header are {reserved}")
            payload = message[start:position]
            if status.phase is not OPEN:
                self._handshake.receive(frame_type, stream_id, payload, now)
                continue
            if frame_type < UNSEQUENCED_FROM:
                sequenced += 1
            if frame_type == DATA:
                streams.on_data(stream_id, flags, payload, now)
            elif frame_type in handlers:
                if stream_id == 0:
                    raise RemoteProtocolError(f"frame type {frame_type} on stream 0")
                handlers[frame_type](stream_id, flags, payload, now)
            elif frame_type in self._session_handlers:
                if stream_id != 0:
                    raise RemoteProtocolError(f"frame type {frame_type} on stream {stream_id}")
                self._session_handlers[frame_type](flags, payload, now)
            elif frame_type in (frames.HELLO, frames.WELCOME):
                raise RemoteProtocolError("a second greeting")
            elif flags & frames.CRITICAL:
                raise RemoteProtocolError(f"frame type {frame_type} is critical and unknown")
        else:
            taken = frames_max
        self.frames_taken = taken + streams.head_frames
        if position < end:
            self.unread = message[position:]
        if sequenced:
            received.record(sequenced, position, now)
            resets = self._resets
            if resets.replayed_until and received.count >= resets.replayed_until:
                resets.replayed_until = 0
                # The peer frees whole messages only, and may have cut the last one where it did not fit: it
                # frees nothing of that until it has our word.
                self._control.ack_due = True

    # --- frames of the session ---

    def _on_context(self, flags: int, payload: bytes, now: float) -> None:
        context = self._contexts.receive(*frames.decode_context(payload))
        if context is not None:
            self._streams.kept_bytes += len(context.payload)
            self._owner.on_context(context)

    def _on_ack(self, flags: int, payload: bytes, now: float) -> None:
        self._acknowledged(frames.decode_ack(payload), now)

    def _acknowledged(self, count: int, now: float) -> None:
        sent, resets = self._sent, self._resets
        before = sent.unacknowledged_bytes
        sent.acknowledge(count)
        if sent.unacknowledged_bytes != before:
            self._drain.flight.acknowledged(count, before - sent.unacknowledged_bytes, now)
        # While frames are replayed, it has our RESETs, and what follows is from before it had.
        if resets.unacknowledged and self._received.count >= resets.replayed_until:
            resets.acknowledge(count)

    def _on_ping(self, flags: int, payload: bytes, now: float) -> None:
        # The clock in a PING is unsigned, so it is ignored.
        opaque, received, _ = frames.decode_ping(payload)
        self._acknowledged(received, now)
        if not flags & frames.ACK_FLAG:
            if not self._ping_rate.allows(now):
                raise RemoteProtocolError(f"more than {PINGS_PER_S:.0f} PINGs a second", CloseCode.LIMITS)
            self._control.pongs.append(opaque)
            return
        took_s = self._round_trips.answered(opaque, now)
        if took_s is not None:
            self._drain.flight.answered(took_s)

    def _on_goaway(self, flags: int, payload: bytes, now: float) -> None:
        goaway = GoAway(*frames.decode_goaway(payload))
        self._goaways.opens_no_more = True
        # What was not sent yet would only be refused.
        for stream in list(self._table.unsent):
            self._table.break_stream(
                stream, StreamCode.REFUSED, Processed.NO, "the peer is going away", in_line=False
            )
        self._owner.on_goaway(goaway)
