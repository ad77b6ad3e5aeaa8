"""The feed: whole frames in, calls to the owners out.

If everything goes well, a frame costs one dictionary lookup, one state and one credit check. The rest of
this file is about all that may go otherwise. Where the fault is the stream's alone, `Core.fault` resets it;
where the peer cannot be understood any more, RemoteProtocolError ends the session.
"""

from __future__ import annotations

from tunnel.protocol import frames
from tunnel.protocol.control import CONTROL_RESETS_MAX, peer_resets_max
from tunnel.protocol.core import DETACHED, GREETING, LAST_STREAM_ID, OPEN, Core, Role
from tunnel.protocol.errors import (
    CloseCode,
    FlowControlError,
    IllegalTransition,
    Processed,
    RemoteProtocolError,
    StreamCode,
)
from tunnel.protocol.events import GoAway
from tunnel.protocol.frames import DATA, FIN, HEADER_BYTES, UNSEQUENCED_FROM, Welcome
from tunnel.protocol.liveness import PINGS_PER_S, RateLimit
from tunnel.protocol.state import BROKEN, ENDED, FLOWING, FRESH, Step, after
from tunnel.protocol.streams import Context, HeadBuffer, StreamState
from tunnel.protocol.window import CREDIT_MAX

# The peer is told to open no more while it still has ids for what it opens until it hears of it.
IDS_LEFT_AT_GOAWAY = 2**16
# So many bytes of a head, once it is whole, count for one more of the frames that are taken in at once: its
# owner reads, rewrites and sends on all of it in one step, which takes up to 10 ms for 1 MiB.
HEAD_BYTES_PER_FRAME = 1024
# While memory is short, who has more streams and contexts than that gets no other; a controller has some tens
# of watches. Refusing everybody, a few agents that let their answers stand would keep all others out for as
# long as they like. At the limit the group that holds the most makes room.
MODEST_USERS_MAX = 64


class Inbound:
    """What comes from the peer, applied to the core."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._kept_bytes = 0
        """What streams and contexts keep of the message that is taken apart."""
        self._head_frames = 0
        """What the heads that have become whole in it count for."""
        self._ping_rate = RateLimit(PINGS_PER_S, PINGS_PER_S)
        self._handlers = {
            frames.OPEN: self._on_open,
            frames.HEAD: self._on_head,
            frames.WINDOW: self._on_window,
            frames.RESET: self._on_reset,
        }
        self._session_handlers = {
            frames.CONTEXT: self._on_context,
            frames.ACK: self._on_ack,
            frames.PING: self._on_ping,
            frames.GOAWAY: self._on_goaway,
        }

    def receive(self, message: bytes, now: float, frames_max: int) -> None:
        """See `Connection.receive_message`; what it raises is only noted there."""
        core = self._core
        end = len(message)
        if end > frames.MESSAGE_BYTES_MAX:
            raise RemoteProtocolError(f"a message of {end} bytes exceeds {frames.MESSAGE_BYTES_MAX}")
        # All of it is held meanwhile, and one charge a message is less than one a frame.
        core.memory.charge(end)
        self._kept_bytes = 0
        try:
            self._take_apart(message, end, now, frames_max)
        finally:
            core.memory.release(end - self._kept_bytes)
        if core.unacknowledged_resets:
            self._check_resets()

    def _take_apart(self, message: bytes, end: int, now: float, frames_max: int) -> None:
        core = self._core
        max_frame = core.local.max_frame
        position, sequenced = 0, 0
        unpack, handlers = frames.HEADER.unpack_from, self._handlers
        self._head_frames = 0
        for taken in range(frames_max):
            if position == end or (self._head_frames and taken + self._head_frames >= frames_max):
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
            if core.phase is not OPEN:
                self._greet(frame_type, stream_id, payload, now)
                continue
            if frame_type < UNSEQUENCED_FROM:
                sequenced += 1
            if frame_type == DATA:
                self._on_data(stream_id, flags, payload, now)
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
        core.frames_taken = taken + self._head_frames
        if position < end:
            core.unread = message[position:]
        if sequenced:
            core.received.record(sequenced, position, now)
            if core.replayed_until and core.received.count >= core.replayed_until:
                core.replayed_until = 0
                # The peer frees whole messages only, and may have cut the last one where it did not fit: it
                # frees nothing of that until it has our word.
                core.control.ack_due = True

    def _greet(self, frame_type: int, stream_id: int, payload: bytes, now: float) -> None:
        assert self._core.phase is not DETACHED or self._core.role is Role.DIALER
        expected = frames.HELLO if self._core.role is Role.LISTENER else frames.WELCOME
        if frame_type == frames.GOAWAY and self._core.role is Role.DIALER and self._core.phase is GREETING:
            self._core.refusal = GoAway(*frames.decode_goaway(payload))
            return
        if frame_type != expected or stream_id != 0:
            raise RemoteProtocolError(f"frame type {frame_type} before the greeting")
        if len(payload) > frames.GREETING_BYTES_MAX:
            raise RemoteProtocolError(
                f"a greeting of {len(payload)} bytes exceeds {frames.GREETING_BYTES_MAX}"
            )
        if self._core.role is Role.LISTENER:
            hello = frames.decode_hello(payload)
            if not set(hello.versions) & set(frames.VERSIONS):
                raise RemoteProtocolError(f"no common version: the peer speaks none of {frames.VERSIONS}")
            if self._core.peer_hello is not None:
                raise RemoteProtocolError("a second greeting")
            self._core.peer_hello = hello
        elif self._core.phase is DETACHED:
            self._attach(frames.decode_welcome(payload), now)
        else:
            welcome = frames.decode_welcome(payload)
            if welcome.version not in frames.VERSIONS:
                raise RemoteProtocolError(f"the peer chose version {welcome.version}, which was not offered")
            self._core.settle(welcome)

    def _attach(self, welcome: Welcome, now: float) -> None:
        core = self._core
        assert isinstance(core.peer, Welcome)
        if not welcome.resumed or welcome.session_id != core.peer.session_id:
            raise RemoteProtocolError("the peer goes on with another session", CloseCode.RESUME_UNKNOWN)
        if not core.sent.may_rewind(welcome.last_rx):
            raise RemoteProtocolError(
                f"the peer has received {welcome.last_rx} frames, and {core.sent.acknowledged} to "
                f"{core.sent.next_number} are possible",
                CloseCode.RESUME_UNKNOWN,
            )
        if welcome.next_tx < core.received.count:
            raise RemoteProtocolError(
                f"the peer has sent {welcome.next_tx} frames, and {core.received.count} were received",
                CloseCode.RESUME_UNKNOWN,
            )
        core.attach(welcome.last_rx, welcome.next_tx, now)

    # --- frames of streams ---

    def _on_data(self, stream_id: int, flags: int, payload: bytes, now: float) -> None:
        core = self._core
        stream = core.streams.get(stream_id)
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
                core.fault(stream, StreamCode.FLOW_CONTROL, f"stream {stream_id}: {exc}")
                return
            stream.bytes_received += count
            stream.moved_at = now
            if stream.partial_head is not None:
                payload = self._continue_head(stream, payload, now)
                count = len(payload)
            if count:
                stream.hold(payload)
                self._kept_bytes += count
        if flags & FIN:
            if stream.partial_head is not None:
                core.fault(stream, StreamCode.PROTOCOL, f"stream {stream_id}: ended within its head")
                return
            stream.receiving = ENDED
            stream.window_due = 0
        elif not payload:
            return
        if stream.owner is not None:
            stream.owner.on_data()
        if flags & FIN and stream.all_said:
            core.close_stream(stream)

    def _swallow(self, stream: StreamState, count: int, now: float) -> None:
        """Drop DATA of a stream whose RESET waits in line, and grant it again.

        If both sides reset in line, each with more queued than it has credit for, they would else wait for
        each other for ever.
        """
        try:
            stream.window.receive(count)
        except FlowControlError as exc:
            self._core.fault(stream, StreamCode.FLOW_CONTROL, f"stream {stream.id}: {exc}")
            return
        stream.window.consume(count)
        self._core.grant(stream, now)

    def _on_open(self, stream_id: int, flags: int, payload: bytes, now: float) -> None:
        core = self._core
        index, head_length, part = frames.decode_open(payload)
        if stream_id % 2 != core.peer_parity or stream_id > LAST_STREAM_ID:
            raise RemoteProtocolError(f"stream id {stream_id} is not the peer's to open")
        if stream_id <= core.peer_last_id:
            raise RemoteProtocolError(f"stream id {stream_id} after {core.peer_last_id}")
        size = len(part)
        if size > head_length:
            raise RemoteProtocolError(f"OPEN carries {size} bytes of a head of {head_length}")
        whole = size == head_length
        core.peer_last_id = stream_id
        refusal = self._refusal(stream_id, index, head_length)
        if refusal is not None:
            core.queue_reset(stream_id, refusal[0], Processed.NO, refusal[1])
            return
        receiving = FLOWING
        if flags & FIN:
            if not whole:
                core.queue_reset(stream_id, StreamCode.PROTOCOL, Processed.NO, "ended within its head")
                return
            receiving = ENDED
        stream = core.new_stream(
            core.peer_contexts[index],
            part if whole else b"",
            FRESH,
            receiving,
            now,
            False,
        )
        stream.id = stream_id
        core.streams[stream_id] = stream
        core.opened_there += 1
        if whole:
            self._kept_bytes += size
            if size >= HEAD_BYTES_PER_FRAME:
                self._head_frames += size // HEAD_BYTES_PER_FRAME
            core.owner.on_stream(stream)
        else:
            self._begin_head(stream, head_length, part)
        if stream_id > LAST_STREAM_ID - IDS_LEFT_AT_GOAWAY and not core.going_away:
            core.refuse_from(LAST_STREAM_ID)
            core.go_away(CloseCode.DRAINING, 0, 0, "stream ids are used up")

    def _refusal(self, stream_id: int, index: int, head_length: int) -> tuple[StreamCode, str] | None:
        core = self._core
        if core.going_away and stream_id > core.goaway_last_id:
            return StreamCode.REFUSED, "going away"
        if index not in core.peer_contexts:
            return StreamCode.UNAUTHENTICATED, f"context {index} is not live"
        if head_length > frames.HEAD_BYTES_MAX:
            return StreamCode.TOO_LARGE, f"a head of {head_length} bytes exceeds {frames.HEAD_BYTES_MAX}"
        if core.opened_there >= core.local.max_streams:
            return StreamCode.REFUSED, f"{core.opened_there} streams are open"
        if core.memory.short and core.peer_contexts[index].share.users > MODEST_USERS_MAX:
            return StreamCode.REFUSED, "memory is short"
        return None

    def _on_head(self, stream_id: int, flags: int, payload: bytes, now: float) -> None:
        core = self._core
        head_length, part = frames.decode_head(payload)
        size = len(part)
        if size > head_length:
            raise RemoteProtocolError(f"HEAD carries {size} bytes of a head of {head_length}")
        stream = core.streams.get(stream_id)
        if stream is None:
            self._check_late(stream_id, "HEAD")
            return
        if stream.receiving is FRESH:
            stream.receiving = FLOWING
        elif stream.receiving is BROKEN or not self._step_remote(stream, Step.HEAD):
            return
        if head_length > frames.HEAD_BYTES_MAX:
            core.fault(
                stream, StreamCode.TOO_LARGE, f"a head of {head_length} bytes exceeds {frames.HEAD_BYTES_MAX}"
            )
            return
        stream.moved_at = now
        if size < head_length:
            if flags & FIN:
                core.fault(stream, StreamCode.PROTOCOL, f"stream {stream_id}: ended within its head")
                return
            self._begin_head(stream, head_length, part)
            return
        stream.answer_head = part
        stream.head_bytes += size
        self._kept_bytes += size
        if size >= HEAD_BYTES_PER_FRAME:
            self._head_frames += size // HEAD_BYTES_PER_FRAME
        if flags & FIN:
            stream.receiving = ENDED
        owner = stream.owner
        if owner is not None:
            owner.on_head()
            if flags & FIN:
                owner.on_data()
        if flags & FIN and stream.all_said:
            core.close_stream(stream)

    def _on_window(self, stream_id: int, flags: int, payload: bytes, now: float) -> None:
        delta = frames.decode_window(payload)
        stream = self._core.streams.get(stream_id)
        if stream is None:
            # The peer took the last bytes of a stream that is over: it cannot know that yet.
            self._check_was_opened(stream_id, "WINDOW")
            return
        if stream.send_credit + delta > CREDIT_MAX:
            self._core.fault(
                stream, StreamCode.FLOW_CONTROL, f"stream {stream_id}: credit beyond {CREDIT_MAX}"
            )
            return
        was_held_up = stream.send_credit <= 0
        stream.send_credit += delta
        if was_held_up and stream.outgoing.size:
            self._core.scheduler.activate(stream.context.share, stream, sparse=False)

    def _on_reset(self, stream_id: int, flags: int, payload: bytes, now: float) -> None:
        code, processed, reason = frames.decode_reset(payload)
        stream = self._core.streams.get(stream_id)
        if stream is None:
            self._check_was_opened(stream_id, "RESET")
            return
        self._core.break_stream(stream, code, processed, reason, in_line=bool(flags & frames.IN_LINE))

    # --- frames of the session ---

    def _on_context(self, flags: int, payload: bytes, now: float) -> None:
        index, group, content = frames.decode_context(payload)
        if not content:
            context = self._core.peer_contexts.pop(index, None)
            if context is None:
                raise RemoteProtocolError(f"context {index} is retired but not live")
            self._core.release_context(context)
            return
        if index <= self._core.peer_last_context:
            raise RemoteProtocolError(f"context {index} after {self._core.peer_last_context}")
        most = self._core.peer_contexts_max
        if len(self._core.peer_contexts) >= most:
            raise RemoteProtocolError(f"more than {most} live contexts", CloseCode.LIMITS)
        memory = self._core.memory
        if memory.full:
            memory.relieve()
            if memory.full:
                # Streams have given all that they had, and contexts give nothing back.
                raise RemoteProtocolError("no memory is left for a context", CloseCode.LIMITS)
        self._core.peer_last_context = index
        context = Context(index, group, content, share=self._core.scheduler.enter(group))
        self._core.peer_contexts[index] = context
        self._kept_bytes += len(content)
        self._core.owner.on_context(context)

    def _on_ack(self, flags: int, payload: bytes, now: float) -> None:
        self._acknowledged(frames.decode_ack(payload), now)

    def _acknowledged(self, count: int, now: float) -> None:
        core = self._core
        before = core.sent.unacknowledged_bytes
        core.sent.acknowledge(count)
        if core.sent.unacknowledged_bytes != before:
            core.flight.acknowledged(count, before - core.sent.unacknowledged_bytes, now)
        if core.received.count < core.replayed_until:
            # It has our RESET, and what follows is from before it had.
            return
        resets = core.unacknowledged_resets
        while resets:
            stream_id = next(iter(resets))
            if resets[stream_id] >= count:
                break
            del resets[stream_id]
            if stream_id % 2 == core.peer_parity:
                core.peer_resets -= 1

    def _on_ping(self, flags: int, payload: bytes, now: float) -> None:
        # The clock in a PING is unsigned, so it is ignored.
        opaque, received, _ = frames.decode_ping(payload)
        self._acknowledged(received, now)
        if not flags & frames.ACK_FLAG:
            if not self._ping_rate.allows(now):
                raise RemoteProtocolError(f"more than {PINGS_PER_S:.0f} PINGs a second", CloseCode.LIMITS)
            self._core.control.pongs.append(opaque)
            return
        took_s = self._core.round_trips.answered(opaque, now)
        if took_s is not None:
            self._core.flight.answered(took_s)

    def _on_goaway(self, flags: int, payload: bytes, now: float) -> None:
        goaway = GoAway(*frames.decode_goaway(payload))
        self._core.told_to_go = True
        # What was not sent yet would only be refused.
        for stream in list(self._core.unsent):
            self._core.break_stream(
                stream, StreamCode.REFUSED, Processed.NO, "the peer is going away", in_line=False
            )
        self._core.owner.on_goaway(goaway)

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
        self._core.grant(stream, now)
        if partial.missing == 0:
            stream.partial_head = None
            head = bytes(partial.received)
            self._head_frames += len(head) // HEAD_BYTES_PER_FRAME
            if stream.opened_here:
                stream.answer_head = head
                if stream.owner is not None:
                    stream.owner.on_head()
            else:
                stream.head = head
                self._core.owner.on_stream(stream)
        return rest

    def _keep_head(self, stream: StreamState, count: int) -> None:
        stream.head_bytes += count
        self._kept_bytes += count

    # --- faults ---

    def _check_resets(self) -> None:
        core = self._core
        count, of_peer = len(core.unacknowledged_resets), core.peer_resets
        if count > CONTROL_RESETS_MAX or of_peer > peer_resets_max(core.local.max_streams):
            raise RemoteProtocolError(
                f"{count} RESETs are not acknowledged, {of_peer} of them of streams of the peer",
                CloseCode.LIMITS,
            )

    def _step_remote(self, stream: StreamState, step: Step) -> bool:
        try:
            stream.receiving = after(stream.receiving, step)
        except IllegalTransition as exc:
            code = StreamCode.STREAM_CLOSED if stream.receiving.at_rest else StreamCode.PROTOCOL
            self._core.fault(stream, code, f"stream {stream.id}: {exc}")
            return False
        return True

    def _check_late(self, stream_id: int, what: str) -> None:
        """DATA or HEAD for a stream that is gone: late if we RESET it, or else a breach."""
        if stream_id in self._core.unacknowledged_resets:
            return
        self._check_was_opened(stream_id, what)
        raise RemoteProtocolError(f"{what} on stream {stream_id}, which is over")

    def _check_was_opened(self, stream_id: int, what: str) -> None:
        theirs = stream_id % 2 == self._core.peer_parity
        if stream_id == 0 or stream_id > (self._core.peer_last_id if theirs else self._core.next_id - 2):
            raise RemoteProtocolError(f"{what} on stream {stream_id}, which was never opened")
