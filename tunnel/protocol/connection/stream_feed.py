"""The feed's frames of streams: OPEN, HEAD, DATA, WINDOW and RESET.

If everything goes well, a frame costs one dictionary lookup, one state and one credit check. The rest of this
file is about all that may go otherwise. Where the fault is the stream's alone, `StreamTable.fault` resets it;
where the peer cannot be understood any more, RemoteProtocolError ends the session.
"""

from __future__ import annotations

from tunnel.protocol import frames
from tunnel.protocol.errors import (
    CloseCode,
    FlowControlError,
    IllegalTransition,
    Processed,
    RemoteProtocolError,
    StreamCode,
)
from tunnel.protocol.events import SessionOwner
from tunnel.protocol.frames import FIN
from tunnel.protocol.memory import Memory
from tunnel.protocol.schedule import Scheduler
from tunnel.protocol.session.credit import Credit
from tunnel.protocol.session.goaways import GoAways
from tunnel.protocol.session.status import Status
from tunnel.protocol.session.table import LAST_STREAM_ID, StreamTable
from tunnel.protocol.state import BROKEN, ENDED, FLOWING, FRESH, Step, after
from tunnel.protocol.streams import HeadBuffer, StreamState
from tunnel.protocol.window import CREDIT_MAX

__all__ = ["HEAD_BYTES_PER_FRAME", "IDS_LEFT_AT_GOAWAY", "MODEST_USERS_MAX", "StreamFeed"]

# The peer is asked to open no more while it still has ids for what it opens before that arrives.
IDS_LEFT_AT_GOAWAY = 2**16
# So many bytes of a head, once it is whole, count as one more of the frames that are taken in at once: its
# owner reads, rewrites and sends all of it in one step, which takes up to 10 ms for 1 MiB.
HEAD_BYTES_PER_FRAME = 1024
# While memory is short, a group with more streams and contexts than this gets no new streams; a controller
# has some tens of watches. If all groups were refused, a few agents that let their answers stand would keep
# all others out for as long as they like. At the limit the group that holds the most makes room.
MODEST_USERS_MAX = 64


class StreamFeed:
    """The frames of streams, applied."""

    def __init__(
        self,
        status: Status,
        memory: Memory,
        scheduler: Scheduler[StreamState],
        table: StreamTable,
        credit: Credit,
        goaways: GoAways,
        owner: SessionOwner,
    ) -> None:
        self.kept_bytes = 0
        """What streams and contexts keep of the message that is taken apart."""
        self.head_frames = 0
        """How many frames the heads that have become whole in it count as."""
        self._status = status
        self._memory = memory
        self._scheduler = scheduler
        self._table = table
        self._credit = credit
        self._goaways = goaways
        self._owner = owner

    def on_data(self, stream_id: int, flags: int, payload: bytes, now: float) -> None:
        table = self._table
        stream = table.by_id.get(stream_id)
        if stream is None:
            self._check_late(stream_id, "DATA")
            return
        if stream.receiving is not FLOWING:
            if stream.receiving is BROKEN:
                self._swallow(stream, len(payload), now)
                return
            if not self._step_remote(stream, Step.DATA):
                return
        if payload:
            count = len(payload)
            try:
                stream.window.receive(count)
            except FlowControlError as exc:
                table.fault(stream, StreamCode.FLOW_CONTROL, f"stream {stream_id}: {exc}")
                return
            stream.bytes_received += count
            stream.moved_at = now
            if stream.partial_head is not None:
                payload = self._continue_head(stream, payload, now)
                count = len(payload)
            if count:
                stream.hold(payload)
                self.kept_bytes += count
        if flags & FIN:
            if stream.partial_head is not None:
                table.fault(stream, StreamCode.PROTOCOL, f"stream {stream_id}: ended within its head")
                return
            stream.receiving = ENDED
            stream.window_due = 0
        elif not payload:
            return
        if stream.owner is not None:
            stream.owner.on_data()
        if flags & FIN and stream.all_said:
            table.close(stream)

    def _swallow(self, stream: StreamState, count: int, now: float) -> None:
        """Drop DATA of a stream whose RESET waits in line, and grant it again.

        If both sides reset in line, each with more queued than it has credit for, they would else wait for
        each other for ever.
        """
        try:
            stream.window.receive(count)
        except FlowControlError as exc:
            self._table.fault(stream, StreamCode.FLOW_CONTROL, f"stream {stream.id}: {exc}")
            return
        stream.window.consume(count)
        self._credit.grant(stream, now)

    def on_open(self, stream_id: int, flags: int, payload: bytes, now: float) -> None:
        table = self._table
        index, head_length, part = frames.decode_open(payload)
        if stream_id % 2 != table.resets.peer_parity or stream_id > LAST_STREAM_ID:
            raise RemoteProtocolError(f"stream id {stream_id} is not the peer's to open")
        if stream_id <= table.peer_last_id:
            raise RemoteProtocolError(f"stream id {stream_id} after {table.peer_last_id}")
        size = len(part)
        if size > head_length:
            raise RemoteProtocolError(f"OPEN carries {size} bytes of a head of {head_length}")
        whole = size == head_length
        table.peer_last_id = stream_id
        refusal = self._refusal(stream_id, index, head_length)
        if refusal is not None:
            table.resets.send(stream_id, refusal[0], Processed.NO, refusal[1])
            return
        receiving = FLOWING
        if flags & FIN:
            if not whole:
                table.resets.send(stream_id, StreamCode.PROTOCOL, Processed.NO, "ended within its head")
                return
            receiving = ENDED
        stream = table.new(
            table.contexts.peers[index],
            part if whole else b"",
            FRESH,
            receiving,
            now,
            False,
        )
        stream.id = stream_id
        table.by_id[stream_id] = stream
        table.opened_there += 1
        if whole:
            self.kept_bytes += size
            if size >= HEAD_BYTES_PER_FRAME:
                self.head_frames += size // HEAD_BYTES_PER_FRAME
            self._owner.on_stream(stream)
        else:
            self._begin_head(stream, head_length, part)
        if stream_id > LAST_STREAM_ID - IDS_LEFT_AT_GOAWAY and not self._goaways.sent:
            self._goaways.send(LAST_STREAM_ID, CloseCode.DRAINING, 0, 0, "stream ids are used up")

    def _refusal(self, stream_id: int, index: int, head_length: int) -> tuple[StreamCode, str] | None:
        table, contexts = self._table, self._table.contexts
        if self._goaways.sent and stream_id > self._goaways.last_id:
            return StreamCode.REFUSED, "going away"
        if index not in contexts.peers:
            return StreamCode.UNAUTHENTICATED, f"context {index} is not live"
        if head_length > frames.HEAD_BYTES_MAX:
            return StreamCode.TOO_LARGE, f"a head of {head_length} bytes exceeds {frames.HEAD_BYTES_MAX}"
        if table.opened_there >= self._status.local.max_streams:
            return StreamCode.REFUSED, f"{table.opened_there} streams are open"
        if self._memory.short and contexts.peers[index].share.users > MODEST_USERS_MAX:
            return StreamCode.REFUSED, "memory is short"
        return None

    def on_head(self, stream_id: int, flags: int, payload: bytes, now: float) -> None:
        table = self._table
        head_length, part = frames.decode_head(payload)
        size = len(part)
        if size > head_length:
            raise RemoteProtocolError(f"HEAD carries {size} bytes of a head of {head_length}")
        stream = table.by_id.get(stream_id)
        if stream is None:
            self._check_late(stream_id, "HEAD")
            return
        if stream.receiving is FRESH:
            stream.receiving = FLOWING
        elif stream.receiving is BROKEN or not self._step_remote(stream, Step.HEAD):
            return
        if head_length > frames.HEAD_BYTES_MAX:
            table.fault(
                stream, StreamCode.TOO_LARGE, f"a head of {head_length} bytes exceeds {frames.HEAD_BYTES_MAX}"
            )
            return
        stream.moved_at = now
        if size < head_length:
            if flags & FIN:
                table.fault(stream, StreamCode.PROTOCOL, f"stream {stream_id}: ended within its head")
                return
            self._begin_head(stream, head_length, part)
            return
        stream.answer_head = part
        stream.head_bytes += size
        self.kept_bytes += size
        if size >= HEAD_BYTES_PER_FRAME:
            self.head_frames += size // HEAD_BYTES_PER_FRAME
        if flags & FIN:
            stream.receiving = ENDED
        owner = stream.owner
        if owner is not None:
            owner.on_head()
            if flags & FIN:
                owner.on_data()
        if flags & FIN and stream.all_said:
            table.close(stream)

    def on_window(self, stream_id: int, flags: int, payload: bytes, now: float) -> None:
        delta = frames.decode_window(payload)
        stream = self._table.by_id.get(stream_id)
        if stream is None:
            # The peer took the last bytes of a stream that is over: it cannot know that yet.
            self._check_was_opened(stream_id, "WINDOW")
            return
        if stream.send_credit + delta > CREDIT_MAX:
            self._table.fault(
                stream, StreamCode.FLOW_CONTROL, f"stream {stream_id}: credit beyond {CREDIT_MAX}"
            )
            return
        was_held_up = stream.send_credit <= 0
        stream.send_credit += delta
        if was_held_up and stream.outgoing.size:
            self._scheduler.activate(stream.context.share, stream, sparse=False)

    def on_reset(self, stream_id: int, flags: int, payload: bytes, now: float) -> None:
        code, processed, reason = frames.decode_reset(payload)
        stream = self._table.by_id.get(stream_id)
        if stream is None:
            self._check_was_opened(stream_id, "RESET")
            return
        self._table.break_stream(stream, code, processed, reason, in_line=bool(flags & frames.IN_LINE))

    # --- heads that came in parts ---

    def _begin_head(self, stream: StreamState, head_length: int, part: bytes) -> None:
        stream.partial_head = HeadBuffer(head_length - len(part), bytearray(part))
        self._keep_head(stream, len(part))

    def _continue_head(self, stream: StreamState, data: bytes, now: float) -> bytes:
        """Feed the head from DATA; returns what is not the head's. It is consumed at once: only the end
        waits."""
        partial = stream.partial_head
        assert partial is not None
        rest = partial.feed(data)
        taken = len(data) - len(rest)
        self._keep_head(stream, taken)
        stream.window.consume(taken)
        stream.bytes_received -= taken
        self._credit.grant(stream, now)
        if partial.missing == 0:
            stream.partial_head = None
            head = bytes(partial.received)
            self.head_frames += len(head) // HEAD_BYTES_PER_FRAME
            if stream.opened_here:
                stream.answer_head = head
                if stream.owner is not None:
                    stream.owner.on_head()
            else:
                stream.head = head
                self._owner.on_stream(stream)
        return rest

    def _keep_head(self, stream: StreamState, count: int) -> None:
        stream.head_bytes += count
        self.kept_bytes += count

    # --- faults ---

    def _step_remote(self, stream: StreamState, step: Step) -> bool:
        try:
            stream.receiving = after(stream.receiving, step)
        except IllegalTransition as exc:
            code = StreamCode.STREAM_CLOSED if stream.receiving.at_rest else StreamCode.PROTOCOL
            self._table.fault(stream, code, f"stream {stream.id}: {exc}")
            return False
        return True

    def _check_late(self, stream_id: int, what: str) -> None:
        """DATA or HEAD for a stream that is gone: late if we RESET it, or else a breach."""
        if stream_id in self._table.resets.unacknowledged:
            return
        self._check_was_opened(stream_id, what)
        raise RemoteProtocolError(f"{what} on stream {stream_id}, which is over")

    def _check_was_opened(self, stream_id: int, what: str) -> None:
        table = self._table
        theirs = stream_id % 2 == table.resets.peer_parity
        if stream_id == 0 or stream_id > (table.peer_last_id if theirs else table.next_id - 2):
            raise RemoteProtocolError(f"{what} on stream {stream_id}, which was never opened")
