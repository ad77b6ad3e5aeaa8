"""The drain: what waits becomes one message, control first, then the streams by the scheduler."""

from __future__ import annotations

from collections.abc import Callable

from tunnel.protocol import frames
from tunnel.protocol.congestion import Flight
from tunnel.protocol.control import ControlQueue
from tunnel.protocol.errors import CloseCode, RemoteProtocolError
from tunnel.protocol.frames import DATA, FIN, HEAD_PREFIX_BYTES, HEADER, HEADER_BYTES, OPEN_PREFIX_BYTES
from tunnel.protocol.ledger import LEDGER_LEAST_BYTES, ReceivedLedger, SentLedger
from tunnel.protocol.liveness import RoundTrips
from tunnel.protocol.memory import Memory
from tunnel.protocol.schedule import QUANTUM_BYTES, Scheduler
from tunnel.protocol.session.goaways import GoAways
from tunnel.protocol.session.status import DETACHED, OPEN, Status
from tunnel.protocol.session.table import LAST_STREAM_ID, StreamTable
from tunnel.protocol.state import FLOWING
from tunnel.protocol.streams import Farewell, StreamState

# A stream's queue is short enough for its owner to fill it again.
QUEUE_LOW_BYTES = 64 * 1024
# The most bytes of a stream in a frame, though the peer may accept more. A reader takes as much at once, so
# a piece is passed on as it came. Each frame costs both sides the same, and two of these make the largest
# message.
DATA_BYTES_MOST = 128 * 1024
# Less room than this at the end of a message is not worth a frame.
LEAST_ROOM_BYTES = 256


class Drain:
    """What goes to the peer."""

    def __init__(
        self,
        status: Status,
        memory: Memory,
        control: ControlQueue,
        scheduler: Scheduler[StreamState],
        sent: SentLedger,
        received: ReceivedLedger,
        round_trips: RoundTrips,
        table: StreamTable,
        goaways: GoAways,
        fail: Callable[[RemoteProtocolError], None],
    ) -> None:
        self.flight = Flight()
        """How much may be under way on this transport."""
        self._status = status
        self._memory = memory
        self._control = control
        self._scheduler = scheduler
        self._sent = sent
        self._received = received
        self._round_trips = round_trips
        self._table = table
        self._goaways = goaways
        self._fail = fail
        self._unsequenced_bytes = 0
        """At the start of a message that has control in it."""
        self._freed_bytes = 0
        """Bytes that streams have released since the message was begun: memory gets one release for all."""
        self._bulk_waits = False
        """The message before ended early for the sake of small frames in it."""

    def message(self, limit: int, now: float) -> bytes:
        """See `Connection.data_to_send`."""
        assert limit >= LEAST_ROOM_BYTES
        sent, status, control = self._sent, self._status, self._control
        if status.phase is DETACHED:
            return b""
        groups, has_control = self._scheduler.ring, bool(control)
        if not (has_control or groups.new or groups.old or sent.replaying):
            # Nothing waits, which is frequent: every message is followed by a call for the next one.
            return b""
        received = self._received
        if (
            received.due_at is not None
            and now >= received.along_at
            and status.phase is OPEN
            and sent.unacknowledged_bytes < sent.limit_bytes
        ):
            control.ack_due = has_control = True
        parts: list[bytes | memoryview] = []
        room, unsequenced = limit, 0
        before = sent.unacknowledged_bytes
        if before > LEDGER_LEAST_BYTES and sent.keeping:
            sent.squeeze()
        if has_control:
            room = self._send_control(limit, parts, now)
            unsequenced = self._unsequenced_bytes
        if sent.replaying:
            self._replay(room, parts)
        elif status.phase is OPEN:
            self._freed_bytes = 0
            self._send_streams(room, parts, now)
            if self._freed_bytes:
                self._memory.release(self._freed_bytes)
        message = b"".join(parts)
        if sent.unacknowledged_bytes != before:
            sent.keep(message, unsequenced, before)
            if not self.flight.round_until:
                self.flight.begin_round(sent.next_number, sent.unacknowledged_bytes, now)
        return message

    def _replay(self, room: int, parts: list[bytes | memoryview]) -> None:
        """The frames that the peer of a new transport lacks, before new ones."""
        sent = self._sent
        while sent.replaying and room >= LEAST_ROOM_BYTES:
            frames_again = sent.next_replayed(room)
            room -= len(frames_again)
            parts.append(frames_again)

    def _send_streams(self, room: int, parts: list[bytes | memoryview], now: float) -> None:
        """Frames of the streams that are next, within `room` bytes."""
        groups, sent, under_way = self._scheduler.ring, self._sent, self.flight.limit_bytes
        full = sent.limit_bytes
        # Four frames make a message, but on slow links a frame is a quantum at least. All of a message
        # arrives with its end, so shorter frames would be of no use, and each frame costs both sides the
        # same.
        scale = max(1, room // (4 * QUANTUM_BYTES))
        turn = QUANTUM_BYTES * scale + HEADER_BYTES
        has_small = False
        group = groups.turn()
        while group is not None and room >= LEAST_ROOM_BYTES and sent.unacknowledged_bytes < full:
            flows, stream = group.flows, group.next
            # No other stream waits, so no share has to be kept.
            alone = len(groups) == len(flows) == 1
            # The group stays at the front until its deficit is used up, so only its streams are asked.
            while (
                stream is not None
                and group.deficit > 0
                and room >= LEAST_ROOM_BYTES
                and sent.unacknowledged_bytes < full
            ):
                if sent.unacknowledged_bytes >= under_way and stream.outgoing.size > QUANTUM_BYTES:
                    # Small streams go all the same: for their sake large ones wait here, and not on the link.
                    self.flight.full()
                    return
                if stream.outgoing.size < QUANTUM_BYTES:
                    has_small = True
                elif has_small and not self._bulk_waits:
                    # A message is delivered when it is whole, so a small answer would wait until all behind
                    # it is masked, encrypted and received. Not twice in a row, or bulk could starve.
                    self._bulk_waits = True
                    return
                else:
                    has_small = self._bulk_waits = False
                if alone:
                    used = self._send_stream(stream, room, parts, now)
                else:
                    used = self._send_stream(stream, min(room, turn), parts, now)
                    share = used // scale
                    stream.deficit -= share
                    group.deficit -= share
                assert used > 0
                room -= used
                stream = flows.turn()
            group = groups.turn()

    def _send_control(self, room: int, parts: list[bytes | memoryview], now: float) -> int:
        control = self._control
        if control.greeting:
            parts.append(control.greeting)
            control.greeting = b""
        if self._status.phase is OPEN:
            quiet = not (len(self._scheduler.ring) or control.pongs or self._sent.replaying)
            while control.pongs:
                parts.append(
                    frames.ping(
                        control.pongs.popleft(),
                        self._received.said(now),
                        self._status.wall_ms(now),
                        answer=True,
                    )
                )
            if control.ping:
                opaque, control.ping = control.ping, 0
                self._round_trips.sent(now, quiet=quiet)
                parts.append(
                    frames.ping(opaque, self._received.said(now), self._status.wall_ms(now), answer=False)
                )
            if control.ack_due:
                control.ack_due = False
                if self._received.due_at is not None:
                    parts.append(frames.ack(self._received.said(now)))
        if control.goaway:
            parts.append(control.goaway)
            control.goaway = b""
        self._unsequenced_bytes = sum(map(len, parts))
        room -= self._unsequenced_bytes
        if self._sent.replaying:
            return room
        room = control.sequenced(room, self._sent, parts, self._table.resets.unacknowledged)
        if self._sent.exhausted:
            self._fail(RemoteProtocolError("the peer acknowledges nothing", CloseCode.LIMITS))
        return room

    def _send_stream(
        self, stream: StreamState, budget: int, parts: list[bytes | memoryview], now: float
    ) -> int:
        """Frames of one stream, within `budget` bytes; returns what they used."""
        used = numbered = 0
        if stream.head_waits:
            stream.head_waits = False
            numbered = 1
            if stream.opened_here:
                used = self._send_open(stream, budget, parts)
            else:
                used = self._send_answer_head(stream, budget, parts)
        outgoing = stream.outgoing
        waiting = outgoing.size
        if waiting:
            room = budget - used - HEADER_BYTES
            count = min(waiting, stream.send_credit, DATA_BYTES_MOST, self._status.peer.max_frame, room)
            if count > 0:
                flags = 0
                if count == waiting and stream.fin_waits:
                    stream.fin_waits = False
                    flags = FIN
                parts.append(HEADER.pack(DATA, flags, 0, stream.id, count))
                self._freed_bytes += outgoing.move(count, parts)
                numbered += 1
                used += HEADER_BYTES + count
                stream.send_credit -= count
                stream.bytes_sent += count
                if stream.drain_wanted and waiting - count <= QUEUE_LOW_BYTES:
                    stream.drain_wanted = False
                    if stream.owner is not None:
                        stream.owner.on_room()
        elif stream.fin_waits:
            stream.fin_waits = False
            parts.append(HEADER.pack(DATA, FIN, 0, stream.id, 0))
            numbered += 1
            used += HEADER_BYTES
        self._sent.record(numbered, used)
        if stream.farewell is not None and not (outgoing.size or stream.fin_waits):
            used += self._send_farewell(stream, stream.farewell, parts)
        stream.moved_at = now
        # In this order, since most frames are of streams that go on.
        if stream.sending is not FLOWING and stream.receiving.at_rest and stream.all_said:
            self._table.close(stream)
        return used

    def _send_open(self, stream: StreamState, budget: int, parts: list[bytes | memoryview]) -> int:
        table = self._table
        stream_id = stream.id = table.next_id
        table.next_id = stream_id + 2
        if table.next_id > LAST_STREAM_ID:
            self._goaways.opens_no_more = True
        del table.unsent[stream]
        table.by_id[stream_id] = stream
        context = stream.context
        context.queued -= 1
        if context.retiring:
            table.contexts.retire_if_unused(context)
        # Only the acceptor needs it from now on.
        head, stream.head = stream.head, b""
        part, flags = self._first_part(stream, head, budget, OPEN_PREFIX_BYTES)
        parts += (frames.open_prefix(stream_id, context.index, len(head), len(part), flags), part)
        return OPEN_PREFIX_BYTES + len(part)

    def _send_answer_head(self, stream: StreamState, budget: int, parts: list[bytes | memoryview]) -> int:
        head = stream.answer_head
        assert head is not None
        part, flags = self._first_part(stream, head, budget, HEAD_PREFIX_BYTES)
        parts += (frames.head_prefix(stream.id, len(head), len(part), flags), part)
        return HEAD_PREFIX_BYTES + len(part)

    def _first_part(
        self, stream: StreamState, head: bytes, budget: int, prefix_bytes: int
    ) -> tuple[bytes, int]:
        """The part of a head that fits into its own frame, and the flags; the rest is the first DATA."""
        room = min(budget, self._status.peer.max_frame + HEADER_BYTES) - prefix_bytes
        if len(head) > room:
            rest = head[room:]
            stream.queue_first(rest)
            stream.bytes_sent -= len(rest)
            self._memory.charge(len(rest))
            return head[:room], 0
        if stream.fin_waits and not stream.outgoing.size:
            stream.fin_waits = False
            return head, FIN
        return head, 0

    def _send_farewell(self, stream: StreamState, farewell: Farewell, parts: list[bytes | memoryview]) -> int:
        stream.farewell = None
        self._table.resets.expect(stream.id, self._sent.next_number)
        frame = frames.reset(stream.id, farewell.code, farewell.processed, farewell.reason, in_line=True)
        self._sent.record(1, len(frame))
        parts.append(frame)
        return len(frame)
