"""One end of a tunnel session without its I/O: one feed, one drain, and what the owner may do in between.

    events = connection.receive_message(message, now)    the feed: whole frames in, events out
    message = connection.data_to_send(limit, now)        the drain: one message of frames, b"" when quiet
    connection.tick(now)                                 PING and ACK that are due, by next_deadline()

In between the owner opens streams, queues bytes, takes bytes, resets. None of that waits or raises for a
reason that the peer gave: a stream that the peer broke swallows what is still queued for it, and an event
has said so. `take_events()` holds what did not come from the feed (room in a queue, evictions).

If everything goes well, a frame costs one dictionary lookup, one state and one credit check. The rest of
this file is about all that may go otherwise. Where the fault is the stream's alone, `_fault` resets it;
where the peer cannot be understood any more, RemoteProtocolError ends the session, and a last GOAWAY says
why.

`now` is any clock that never goes back, in seconds. The only wall clock is `wall_offset_s`, handed in.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable

from tunnel.protocol import events, frames
from tunnel.protocol.control import CONTROL_RESETS_MAX, ControlQueue
from tunnel.protocol.errors import (
    CloseCode,
    FlowControlError,
    IllegalTransition,
    LocalProtocolError,
    Processed,
    RemoteProtocolError,
    StreamCode,
)
from tunnel.protocol.frames import Hello, Welcome
from tunnel.protocol.ledger import ReceivedLedger, SentLedger
from tunnel.protocol.liveness import PINGS_PER_S, Liveness, RateLimit
from tunnel.protocol.memory import Holder, Level, Memory
from tunnel.protocol.schedule import QUANTUM_BYTES, Scheduler
from tunnel.protocol.state import Half, Step, after, at_rest
from tunnel.protocol.streams import Context, Farewell, HeadBuffer, StreamState
from tunnel.protocol.window import CREDIT_MAX, ReceiveWindow

CONTEXTS_MAX = 4096
LAST_STREAM_ID = 2**31 - 1
# The peer is told to open no more while it still has ids for what it opens until it hears of it.
IDS_LEFT_AT_GOAWAY = 2**16
# Where what waits in a stream's queue is short enough that its owner may fill it again.
QUEUE_LOW_BYTES = 64 * 1024
# PINGs whose answer is still waited for; a peer that answers none may be alive by its other bytes.
PINGS_KEPT = 16
# Less room than this at the end of a message is not worth a frame.
LEAST_ROOM_BYTES = 256


class Role(enum.Enum):
    """Who dialled. Not client and server: the WebSocket's client serves the requests here."""

    DIALER = "dialer"
    LISTENER = "listener"


class Phase(enum.Enum):
    GREETING = "greeting"
    OPEN = "open"
    CLOSED = "closed"


class Connection:
    """The protocol of one session; owns its streams' states, contexts, credit, numbers and counted memory."""

    def __init__(
        self, role: Role, *, now: float, memory: Memory | None = None, wall_offset_s: float = 0.0
    ) -> None:
        self.role = role
        self.phase = Phase.GREETING
        self.memory = memory if memory is not None else Memory(limit_bytes=128 * 1024 * 1024)
        self.memory.join(self)
        self.wall_offset_s = wall_offset_s
        self.rtt_s: float | None = None
        self.peer_clock_offset_ms: int | None = None
        self.liveness = Liveness(received_at=now)
        self.going_away = False
        """We said GOAWAY: what the peer opens from then on is refused."""
        self.told_to_go = False
        """The peer said GOAWAY, or our ids are used up: we open nothing more."""
        self.on_eviction: Callable[[], None] = _nobody_cares
        """Called when a stream was evicted, which another session's need may bring about at any moment."""

        self._events: list[events.Event] = []
        self._failure: RemoteProtocolError | None = None
        self._local: Hello | Welcome = Hello()
        self._max_frame_out = frames.MAX_FRAME_BYTES
        self._credit_out = 0
        self._streams_max_out = 0
        self._streams_max_in = frames.STREAMS_MAX
        self._window_in = 0
        self._next_id = 1 if role is Role.DIALER else 2
        self._peer_parity = 0 if role is Role.DIALER else 1
        self._peer_last_id = 0
        self._goaway_last_id = 0
        self._next_context = 1
        self._peer_last_context = 0

        self._control = ControlQueue()
        self._scheduler: Scheduler[StreamState] = Scheduler()
        self._sent = SentLedger()
        self._received = ReceivedLedger()
        self._pings: dict[int, tuple[float, bool]] = {}
        self._next_ping = 1
        self._ping_rate = RateLimit(PINGS_PER_S)

        self._streams: dict[int, StreamState] = {}
        self._unsent: dict[StreamState, None] = {}
        self._lingering: dict[StreamState, None] = {}
        """Ended in both directions, but what was received is not taken yet."""
        self._opened_here = 0
        self._opened_there = 0
        self._unacknowledged_resets: dict[int, int] = {}
        """Streams that we RESET, with the number of that frame: until the peer has it, DATA may come late."""
        self._contexts: dict[int, Context] = {}
        self._peer_contexts: dict[int, Context] = {}
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

    # --- greeting ---

    def say_hello(self, hello: Hello) -> None:
        """The dialer's first word; everything else waits for the answer."""
        assert self.role is Role.DIALER
        assert self.phase is Phase.GREETING
        self._local = hello
        self._control.greeting = frames.hello(hello)

    def say_welcome(self, welcome: Welcome, peer: Hello) -> None:
        """The listener's answer to `peer`; the session is open with it."""
        assert self.role is Role.LISTENER
        assert self.phase is Phase.GREETING
        self._local = welcome
        self._control.greeting = frames.welcome(welcome)
        self._settle(peer)

    def _settle(self, peer: Hello | Welcome) -> None:
        self.phase = Phase.OPEN
        self._max_frame_out = min(peer.max_frame, frames.MAX_FRAME_LIMIT_BYTES)
        self._credit_out = peer.initial_window
        self._streams_max_out = peer.max_streams
        self._streams_max_in = self._local.max_streams
        self._window_in = self._local.initial_window

    # --- what the owner asks ---

    @property
    def stream_count(self) -> int:
        return len(self._streams) + len(self._unsent)

    @property
    def may_open(self) -> bool:
        return self.phase is Phase.OPEN and not self.told_to_go and self._opened_here < self._streams_max_out

    @property
    def unacknowledged_bytes(self) -> int:
        return self._sent.unacknowledged_bytes

    @property
    def contexts(self) -> dict[int, Context]:
        """The contexts that we announced, by index."""
        return self._contexts

    @property
    def peer_contexts(self) -> dict[int, Context]:
        return self._peer_contexts

    @property
    def wants_to_send(self) -> bool:
        """Whether the drain may have something. It can be wrong to the safe side only."""
        return bool(self._control) or (len(self._scheduler.ring) > 0 and not self._sent.full)

    def take_events(self) -> list[events.Event]:
        taken, self._events = self._events, []
        return taken

    # --- time ---

    def next_deadline(self) -> float:
        """When tick() should be called, or the peer be given up (`liveness.dead_at`)."""
        if self.phase is not Phase.OPEN:
            return math.inf
        deadline = min(self.liveness.ping_at(busy=self.stream_count > 0), self.liveness.dead_at)
        ack_at = self._received.due_at
        # An ACK that waits for the transport is nothing that a clock could help.
        return deadline if ack_at is None or self._control.ack_due else min(deadline, ack_at)

    def tick(self, now: float) -> None:
        """Queue the PING and the ACK that are due."""
        if self.phase is not Phase.OPEN:
            return
        if now >= self.liveness.ping_at(busy=self.stream_count > 0):
            self.ping(now)
        if self._received.due(now):
            self._control.ack_due = True

    def ping(self, now: float) -> None:
        self._control.pings.append(self._next_ping)
        self._next_ping += 1
        self.liveness.pinged(now)

    # --- contexts ---

    def add_context(self, group: int, payload: bytes) -> Context:
        """Announce a context; its index names it in open_stream. The frame leaves before any OPEN."""
        self._check_open()
        if not 1 <= len(payload) <= frames.CONTEXT_BYTES_MAX:
            raise LocalProtocolError(
                f"a context of {len(payload)} bytes; 1 to {frames.CONTEXT_BYTES_MAX} may be sent"
            )
        if not 0 <= group < 2**32:
            raise LocalProtocolError(f"group {group} is not a u32")
        if len(self._contexts) >= CONTEXTS_MAX:
            raise LocalProtocolError(f"{CONTEXTS_MAX} contexts are live already")
        context = Context(self._next_context, group, payload, share=self._scheduler.enter(group))
        self._next_context += 1
        self._contexts[context.index] = context
        self.memory.charge(len(payload))
        self._control.contexts.append(frames.context(context.index, group, payload))
        return context

    def retire_context(self, index: int) -> None:
        """Open nothing under it again. Streams that are open keep it; OPENs still queued go out before."""
        context = self._contexts.get(index)
        if context is None:
            raise LocalProtocolError(f"context {index} is not live")
        context.retiring = True
        self._retire_if_unused(context)

    def _retire_if_unused(self, context: Context) -> None:
        if context.retiring and not context.queued and self._contexts.pop(context.index, None) is not None:
            self._control.contexts.append(frames.context(context.index, context.group, b""))
            self._release_context(context)

    def _release_context(self, context: Context) -> None:
        self.memory.release(len(context.payload))
        self._scheduler.leave(context.share)

    # --- streams: what the owner does ---

    def open_stream(self, head: bytes, context_index: int, *, eof: bool, now: float) -> StreamState:
        """Queue an OPEN. With `eof` nothing follows the head."""
        self._check_open()
        if not self.may_open:
            raise LocalProtocolError("the peer takes no more streams now")
        context = self._contexts.get(context_index)
        if context is None or context.retiring:
            raise LocalProtocolError(f"context {context_index} is not live")
        _check_head(head)
        sending = Half.ENDED if eof else Half.FLOWING
        stream = self._new_stream(context, head, sending, Half.FRESH, now, opened_here=True)
        stream.announced = stream.open_waits = True
        stream.fin_waits = eof
        context.queued += 1
        self._opened_here += 1
        self._unsent[stream] = None
        self._scheduler.activate(context.share, stream)
        self._check_memory()
        return stream

    def send_head(self, stream: StreamState, head: bytes, *, eof: bool, now: float) -> None:
        """Answer with a head: once, before any data, and only on a stream that the peer opened."""
        if stream.sending is Half.BROKEN:
            return
        _check_head(head)
        if stream.opened_here:
            raise LocalProtocolError("the opener's head is in its OPEN")
        self._step_local(stream, Step.HEAD)
        stream.answer_head = head
        stream.head_waits = True
        self._charge_head(stream, len(head))
        if eof:
            self._step_local(stream, Step.FIN)
            stream.fin_waits = True
        self._activate(stream)
        self._check_memory()

    def send_data(self, stream: StreamState, data: bytes, now: float) -> None:
        """Queue bytes. How many may wait is the owner's business: see `StreamState.drain_wanted`."""
        if stream.sending is not Half.FLOWING:
            # No bytes are no DATA, so the head may still come.
            if stream.sending is Half.BROKEN or (stream.sending is Half.FRESH and not data):
                return
            self._step_local(stream, Step.DATA)
        if not data:
            return
        stream.outgoing.append(data)
        self.memory.charge(len(data))
        self._activate(stream)
        self._check_memory()

    def send_eof(self, stream: StreamState, now: float) -> None:
        if stream.sending is Half.BROKEN:
            return
        self._step_local(stream, Step.FIN)
        stream.fin_waits = True
        self._activate(stream)

    def take(self, stream: StreamState, limit: int, now: float) -> bytes:
        """Bytes that were received, at most `limit`; what is taken is granted to the peer again. b"": none
        here."""
        data = stream.incoming.take(limit)
        if data:
            stream.moved_at = now
            stream.window.consume(len(data))
            self.memory.release(len(data))
            if not at_rest(stream.receiving):
                self._grant(stream, now)
            elif stream in self._lingering:
                self._forget_if_done(stream)
        return data

    def discard_received(self, stream: StreamState) -> None:
        """Drop what was received and not taken, without granting it again; for a stream that nobody reads
        now."""
        self._drop_incoming(stream)
        if stream in self._lingering:
            self._forget_if_done(stream)

    def reset(
        self,
        stream: StreamState,
        code: StreamCode,
        processed: Processed,
        reason: str,
        *,
        in_line: bool = False,
    ) -> None:
        """Close both halves. `in_line`: after what is queued, which still arrives; otherwise the queue is
        dropped.

        What was received and not taken is dropped either way. A stream that is over already stays as it is.
        """
        if self._is_over(stream):
            self.discard_received(stream)
            return
        stream.sending = after(stream.sending, Step.RESET)
        stream.receiving = after(stream.receiving, Step.RESET)
        self._drop_incoming(stream)
        stream.partial_head = None
        if in_line:
            stream.farewell = Farewell(code, processed, reason)
            if stream.receiving is Half.BROKEN and stream.id:
                self._grant(stream, stream.moved_at)
            self._activate(stream)
            return
        stream.window_due = 0
        self._drop_outgoing(stream)
        if stream.id:
            self._queue_reset(stream.id, code, processed, reason)
        self._close(stream)

    # --- the session's end ---

    def go_away(self, code: int, drain_ms: int, retry_after_ms: int, reason: str) -> None:
        """Tell the peer to open no more streams here; those that are open go on."""
        self._check_open()
        if not self.going_away:
            self._refuse_from(self._peer_last_id)
        self._control.goaway = frames.goaway(self._goaway_last_id, code, drain_ms, retry_after_ms, reason)

    def _refuse_from(self, last_id: int) -> None:
        self.going_away = True
        self._goaway_last_id = last_id

    def reject(self, code: int, reason: str, retry_after_ms: int) -> None:
        """Refuse the peer in the greeting: a GOAWAY that says why is all it will get."""
        self._control = ControlQueue(goaway=frames.goaway(0, code, 0, retry_after_ms, reason))
        self.phase = Phase.CLOSED

    def close(self, code: StreamCode, reason: str) -> None:
        """The transport is gone: break every stream, give every byte back. What was received may still be
        taken.

        An OPEN that was never sent was surely not processed; of the others nobody can tell.
        """
        self.phase = Phase.CLOSED
        for stream in [*self._unsent, *self._streams.values()]:
            processed = Processed.MAYBE if stream.id else Processed.NO
            self._break(stream, code, processed, reason, in_line=True)
        for context in [*self._contexts.values(), *self._peer_contexts.values()]:
            self._release_context(context)
        self._contexts.clear()
        self._peer_contexts.clear()
        self._control = ControlQueue(goaway=self._control.goaway)
        self.memory.leave(self)

    def _fail(self, error: RemoteProtocolError) -> None:
        self._failure = error
        if self.phase is Phase.OPEN:
            self.go_away(error.close_code, 0, 0, str(error))
        self._control = ControlQueue(goaway=self._control.goaway)
        self.phase = Phase.CLOSED

    # --- the feed ---

    def receive_message(self, message: bytes, now: float) -> list[events.Event]:
        """Take one message of whole frames. RemoteProtocolError is the end, and the only thing it raises."""
        if self._failure is not None:
            raise self._failure
        if self.phase is Phase.CLOSED:
            return []
        self.liveness.received(now)
        try:
            self._receive_frames(message, now)
        except RemoteProtocolError as error:
            self._fail(error)
            raise
        if self._received.due(now):
            self._control.ack_due = True
        self._check_memory()
        return self.take_events()

    def _receive_frames(self, message: bytes, now: float) -> None:
        if len(message) > frames.MESSAGE_BYTES_MAX:
            raise RemoteProtocolError(f"a message of {len(message)} bytes exceeds {frames.MESSAGE_BYTES_MAX}")
        position, end, sequenced = 0, len(message), 0
        unpack = frames.HEADER.unpack_from
        while position < end:
            start = position + frames.HEADER_BYTES
            if start > end:
                raise RemoteProtocolError(f"{end - position} bytes at the end of a message are no frame")
            frame_type, flags, reserved, stream_id, length = unpack(message, position)
            if length > self._local.max_frame:
                raise RemoteProtocolError(f"a frame of {length} bytes exceeds {self._local.max_frame}")
            position = start + length
            if position > end:
                raise RemoteProtocolError(f"a frame of {length} bytes is cut at {end - start}")
            if reserved:
                raise RemoteProtocolError(f"the reserved bytes of a header are {reserved}")
            payload = message[start:position]
            if self.phase is not Phase.OPEN:
                self._greet(frame_type, stream_id, payload, now)
                continue
            if frame_type < frames.UNSEQUENCED_FROM:
                sequenced += 1
            if frame_type == frames.DATA:
                self._on_data(stream_id, flags, payload, now)
            elif frame_type in self._handlers:
                if stream_id == 0:
                    raise RemoteProtocolError(f"frame type {frame_type} on stream 0")
                self._handlers[frame_type](stream_id, flags, payload, now)
            elif frame_type in self._session_handlers:
                if stream_id != 0:
                    raise RemoteProtocolError(f"frame type {frame_type} on stream {stream_id}")
                self._session_handlers[frame_type](flags, payload, now)
            elif frame_type in (frames.HELLO, frames.WELCOME):
                raise RemoteProtocolError("a second greeting")
            elif flags & frames.CRITICAL:
                raise RemoteProtocolError(f"frame type {frame_type} is critical and unknown")
        if sequenced:
            self._received.record(sequenced, len(message), now)
        if len(self._unacknowledged_resets) > CONTROL_RESETS_MAX:
            raise RemoteProtocolError("too many refused streams without an acknowledgement", CloseCode.LIMITS)

    def _greet(self, frame_type: int, stream_id: int, payload: bytes, now: float) -> None:
        expected = frames.HELLO if self.role is Role.LISTENER else frames.WELCOME
        if self.role is Role.DIALER and frame_type == frames.GOAWAY:
            # The listener refuses us. The phase stays: no session comes of it.
            self._on_goaway(0, payload, now)
            return
        if frame_type != expected or stream_id != 0:
            raise RemoteProtocolError(f"frame type {frame_type} before the greeting")
        if len(payload) > frames.GREETING_BYTES_MAX:
            raise RemoteProtocolError(
                f"a greeting of {len(payload)} bytes exceeds {frames.GREETING_BYTES_MAX}"
            )
        if self.role is Role.LISTENER:
            hello = frames.decode_hello(payload)
            if not set(hello.versions) & set(frames.VERSIONS):
                raise RemoteProtocolError(f"no common version: the peer speaks {hello.versions}")
            if any(isinstance(event, events.HelloReceived) for event in self._events):
                raise RemoteProtocolError("a second greeting")
            self._events.append(events.HelloReceived(hello))
        else:
            welcome = frames.decode_welcome(payload)
            if welcome.version not in frames.VERSIONS:
                raise RemoteProtocolError(f"the peer chose version {welcome.version}, which was not offered")
            self._settle(welcome)
            if welcome.server_time_ms:
                self.peer_clock_offset_ms = welcome.server_time_ms - self._wall_ms(now)
            self._events.append(events.WelcomeReceived(welcome))

    def _on_data(self, stream_id: int, flags: int, payload: bytes, now: float) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            self._check_late(stream_id, "DATA")
            return
        if stream.receiving is Half.BROKEN:
            self._swallow(stream, len(payload), now)
            return
        if stream.receiving is not Half.FLOWING and not self._step_remote(stream, Step.DATA):
            return
        if payload:
            count = len(payload)
            try:
                stream.window.receive(count)
            except FlowControlError as exc:
                self._fault(stream, StreamCode.FLOW_CONTROL, f"stream {stream_id}: {exc}")
                return
            stream.bytes_received += count
            stream.moved_at = now
            if stream.partial_head is not None:
                payload = self._continue_head(stream, payload, now)
            if payload:
                stream.incoming.append(payload)
                self.memory.charge(len(payload))
        if flags & frames.FIN:
            if stream.partial_head is not None:
                self._fault(stream, StreamCode.PROTOCOL, f"stream {stream_id}: ended within its head")
                return
            stream.receiving = Half.ENDED
            stream.window_due = 0
        elif not payload:
            return
        if stream.announced:
            self._events.append(events.DataReceived(stream))
        if stream.receiving is Half.ENDED:
            self._close_if_done(stream)

    def _swallow(self, stream: StreamState, count: int, now: float) -> None:
        """Drop DATA of a stream whose RESET waits in line, and grant it again.

        If both sides reset in line, each with more queued than it has credit for, they would else wait for
        each other for ever.
        """
        try:
            stream.window.receive(count)
        except FlowControlError as exc:
            self._fault(stream, StreamCode.FLOW_CONTROL, f"stream {stream.id}: {exc}")
            return
        stream.window.consume(count)
        self._grant(stream, now)

    def _on_open(self, stream_id: int, flags: int, payload: bytes, now: float) -> None:
        index, head_length, part = frames.decode_open(payload)
        if stream_id % 2 != self._peer_parity or stream_id > LAST_STREAM_ID:
            raise RemoteProtocolError(f"stream id {stream_id} is not the peer's to open")
        if stream_id <= self._peer_last_id:
            raise RemoteProtocolError(f"stream id {stream_id} after {self._peer_last_id}")
        if len(part) > head_length:
            raise RemoteProtocolError(f"OPEN carries {len(part)} bytes of a head of {head_length}")
        self._peer_last_id = stream_id
        refusal = self._refusal(stream_id, index, head_length)
        if refusal is not None:
            self._queue_reset(stream_id, refusal[0], Processed.NO, refusal[1])
            return
        whole = len(part) == head_length
        if flags & frames.FIN and not whole:
            self._queue_reset(stream_id, StreamCode.PROTOCOL, Processed.NO, "ended within its head")
            return
        context = self._peer_contexts[index]
        receiving = Half.ENDED if flags & frames.FIN else Half.FLOWING
        stream = self._new_stream(
            context, part if whole else b"", Half.FRESH, receiving, now, opened_here=False
        )
        stream.id = stream_id
        self._streams[stream_id] = stream
        self._opened_there += 1
        if whole:
            self._announce(stream)
        else:
            self._begin_head(stream, head_length, part)
        if stream_id > LAST_STREAM_ID - IDS_LEFT_AT_GOAWAY and not self.going_away:
            self._refuse_from(LAST_STREAM_ID)
            self.go_away(CloseCode.DRAINING, 0, 0, "stream ids are used up")

    def _refusal(self, stream_id: int, index: int, head_length: int) -> tuple[StreamCode, str] | None:
        if self.going_away and stream_id > self._goaway_last_id:
            return StreamCode.REFUSED, "going away"
        if index not in self._peer_contexts:
            return StreamCode.UNAUTHENTICATED, f"context {index} is not live"
        if head_length > frames.HEAD_BYTES_MAX:
            return StreamCode.TOO_LARGE, f"a head of {head_length} bytes exceeds {frames.HEAD_BYTES_MAX}"
        if self._opened_there >= self._streams_max_in:
            return StreamCode.REFUSED, f"{self._opened_there} streams are open"
        if self.memory.level() >= Level.SQUEEZED:
            return StreamCode.REFUSED, "memory is short"
        return None

    def _on_head(self, stream_id: int, flags: int, payload: bytes, now: float) -> None:
        head_length, part = frames.decode_head(payload)
        if len(part) > head_length:
            raise RemoteProtocolError(f"HEAD carries {len(part)} bytes of a head of {head_length}")
        stream = self._streams.get(stream_id)
        if stream is None:
            self._check_late(stream_id, "HEAD")
            return
        if stream.receiving is Half.BROKEN:
            return
        if not self._step_remote(stream, Step.HEAD):
            return
        if head_length > frames.HEAD_BYTES_MAX:
            self._fault(
                stream, StreamCode.TOO_LARGE, f"a head of {head_length} bytes exceeds {frames.HEAD_BYTES_MAX}"
            )
            return
        stream.moved_at = now
        if len(part) < head_length:
            if flags & frames.FIN:
                self._fault(stream, StreamCode.PROTOCOL, f"stream {stream_id}: ended within its head")
                return
            self._begin_head(stream, head_length, part)
            return
        stream.answer_head = part
        self._charge_head(stream, len(part))
        self._events.append(events.HeadReceived(stream))
        if flags & frames.FIN:
            stream.receiving = Half.ENDED
            self._events.append(events.DataReceived(stream))
            self._close_if_done(stream)

    def _on_window(self, stream_id: int, flags: int, payload: bytes, now: float) -> None:
        delta = frames.decode_window(payload)
        stream = self._streams.get(stream_id)
        if stream is None:
            # The peer took the last bytes of a stream that is over: it cannot know that yet.
            self._check_was_opened(stream_id, "WINDOW")
            return
        if stream.send_credit + delta > CREDIT_MAX:
            self._fault(stream, StreamCode.FLOW_CONTROL, f"stream {stream_id}: credit beyond {CREDIT_MAX}")
            return
        was_held_up = stream.send_credit <= 0
        stream.send_credit += delta
        if was_held_up and stream.outgoing.size:
            self._scheduler.activate(stream.context.share, stream, sparse=False)

    def _on_reset(self, stream_id: int, flags: int, payload: bytes, now: float) -> None:
        code, processed, reason = frames.decode_reset(payload)
        stream = self._streams.get(stream_id)
        if stream is None:
            self._check_was_opened(stream_id, "RESET")
            return
        self._break(stream, code, processed, reason, in_line=bool(flags & frames.IN_LINE))

    def _on_context(self, flags: int, payload: bytes, now: float) -> None:
        index, group, content = frames.decode_context(payload)
        if not content:
            context = self._peer_contexts.pop(index, None)
            if context is None:
                raise RemoteProtocolError(f"context {index} is retired but not live")
            self._release_context(context)
            self._events.append(events.ContextRetired(context))
            return
        if index <= self._peer_last_context:
            raise RemoteProtocolError(f"context {index} after {self._peer_last_context}")
        if len(self._peer_contexts) >= CONTEXTS_MAX:
            raise RemoteProtocolError(f"more than {CONTEXTS_MAX} live contexts", CloseCode.LIMITS)
        self._peer_last_context = index
        context = Context(index, group, content, share=self._scheduler.enter(group))
        self._peer_contexts[index] = context
        self.memory.charge(len(content))
        self._events.append(events.ContextAdded(context))

    def _on_ack(self, flags: int, payload: bytes, now: float) -> None:
        self._acknowledged(frames.decode_ack(payload))

    def _acknowledged(self, count: int) -> None:
        self._sent.acknowledge(count)
        resets = self._unacknowledged_resets
        while resets:
            stream_id = next(iter(resets))
            if resets[stream_id] >= count:
                break
            del resets[stream_id]

    def _on_ping(self, flags: int, payload: bytes, now: float) -> None:
        opaque, received, clock_ms = frames.decode_ping(payload)
        self._acknowledged(received)
        if not flags & frames.ACK_FLAG:
            if not self._ping_rate.allows(now):
                raise RemoteProtocolError(f"more than {PINGS_PER_S:.0f} PINGs a second", CloseCode.LIMITS)
            self._control.pongs.append(opaque)
            return
        sent = self._pings.pop(opaque, None)
        if sent is None:
            return
        sent_at, quiet = sent
        rtt_s = now - sent_at
        # A PING that shared its message with others measures the queue as well, so it counts only as long as
        # there is nothing better.
        if self.rtt_s is None or (quiet and rtt_s < self.rtt_s):
            self.rtt_s = rtt_s
        self.peer_clock_offset_ms = clock_ms + round(rtt_s * 500) - self._wall_ms(now)

    def _on_goaway(self, flags: int, payload: bytes, now: float) -> None:
        last_id, code, drain_ms, retry_after_ms, reason = frames.decode_goaway(payload)
        self.told_to_go = True
        # What was not sent yet would only be refused.
        for stream in list(self._unsent):
            self._break(stream, StreamCode.REFUSED, Processed.NO, "the peer is going away", in_line=False)
        self._events.append(events.GoAwayReceived(last_id, code, drain_ms, retry_after_ms, reason))

    # --- heads that came in parts ---

    def _begin_head(self, stream: StreamState, head_length: int, part: bytes) -> None:
        stream.partial_head = HeadBuffer(head_length - len(part), [part])
        self._charge_head(stream, len(part))

    def _continue_head(self, stream: StreamState, data: bytes, now: float) -> bytes:
        """Feed the head from DATA; returns what is not the head's. It is consumed at once: only the end
        waits."""
        partial = stream.partial_head
        assert partial is not None
        rest = partial.feed(data)
        taken = len(data) - len(rest)
        self._charge_head(stream, taken)
        stream.window.consume(taken)
        stream.bytes_received -= taken
        self._grant(stream, now)
        if partial.missing == 0:
            stream.partial_head = None
            head = b"".join(partial.parts)
            if stream.opened_here:
                stream.answer_head = head
                self._events.append(events.HeadReceived(stream))
            else:
                stream.head = head
                self._announce(stream)
        return rest

    def _announce(self, stream: StreamState) -> None:
        stream.announced = True
        self._events.append(events.StreamOpened(stream))

    # --- the drain ---

    def data_to_send(self, limit: int, now: float) -> bytes:
        """One message of at most about `limit` bytes: control first, then the streams in turn; b"" when
        quiet.

        Only control frames go beyond a full ledger, and `limit` is passed by one frame of them at most.
        """
        assert limit >= LEAST_ROOM_BYTES
        parts: list[bytes | memoryview] = []
        room = self._send_control(limit, parts, now) if self._control else limit
        if self.phase is Phase.OPEN:
            while room >= LEAST_ROOM_BYTES and not self._sent.full:
                turn = self._scheduler.turn()
                if turn is None:
                    break
                group, stream = turn
                alone = self._scheduler.alone(group)
                used = self._send_stream(stream, room if alone else min(room, QUANTUM_BYTES), parts, now)
                assert used > 0
                room -= used
                stream.deficit -= used
                group.deficit -= used
        return b"".join(parts)

    def _send_control(self, room: int, parts: list[bytes | memoryview], now: float) -> int:
        control = self._control
        if control.greeting:
            parts.append(control.greeting)
            control.greeting = b""
        if self.phase is Phase.GREETING:
            return 0
        if self.phase is Phase.OPEN:
            quiet = len(self._scheduler.ring) == 0 and not control.pongs
            while control.pongs:
                parts.append(
                    frames.ping(
                        control.pongs.popleft(), self._received.said(), self._wall_ms(now), answer=True
                    )
                )
            while control.pings:
                opaque = control.pings.popleft()
                self._pings[opaque] = (now, quiet)
                if len(self._pings) > PINGS_KEPT:
                    del self._pings[next(iter(self._pings))]
                parts.append(frames.ping(opaque, self._received.said(), self._wall_ms(now), answer=False))
            if control.ack_due:
                control.ack_due = False
                if self._received.due_at is not None:
                    parts.append(frames.ack(self._received.said()))
        if control.goaway:
            parts.append(control.goaway)
            control.goaway = b""
        room -= sum(map(len, parts))
        room = control.sequenced(room, self._sent, parts, self._unacknowledged_resets)
        if self._sent.exhausted:
            error = RemoteProtocolError("the peer acknowledges nothing", CloseCode.LIMITS)
            self._fail(error)
        return room

    def _send_stream(
        self, stream: StreamState, budget: int, parts: list[bytes | memoryview], now: float
    ) -> int:
        """Frames of one stream, within `budget` bytes; returns what they used."""
        used = 0
        if stream.open_waits:
            used = self._send_open(stream, budget, parts)
        elif stream.head_waits:
            used = self._send_answer_head(stream, budget, parts)
        waiting = stream.outgoing.size
        if waiting:
            count = min(waiting, stream.send_credit, self._max_frame_out, budget - used - frames.HEADER_BYTES)
            if count > 0:
                last = count == waiting and stream.fin_waits
                parts.append(frames.header(frames.DATA, frames.FIN if last else 0, stream.id, count))
                stream.outgoing.move(count, parts)
                self._sent.record(frames.HEADER_BYTES + count)
                used += frames.HEADER_BYTES + count
                stream.send_credit -= count
                stream.bytes_sent += count
                self.memory.release(count)
                if last:
                    stream.fin_waits = False
                if stream.drain_wanted and stream.outgoing.size <= QUEUE_LOW_BYTES:
                    stream.drain_wanted = False
                    self._events.append(events.SendQueueDrained(stream))
        elif stream.fin_waits:
            stream.fin_waits = False
            parts.append(frames.header(frames.DATA, frames.FIN, stream.id, 0))
            self._sent.record(frames.HEADER_BYTES)
            used += frames.HEADER_BYTES
        if stream.farewell is not None and not (stream.outgoing.size or stream.fin_waits):
            used += self._send_farewell(stream, stream.farewell, parts)
        stream.moved_at = now
        if stream.all_said:
            self._close_if_done(stream)
        return used

    def _send_open(self, stream: StreamState, budget: int, parts: list[bytes | memoryview]) -> int:
        stream.open_waits = False
        stream.id = self._next_id
        self._next_id += 2
        if self._next_id > LAST_STREAM_ID:
            self.told_to_go = True
        del self._unsent[stream]
        self._streams[stream.id] = stream
        context = stream.context
        context.queued -= 1
        if context.retiring:
            self._retire_if_unused(context)
        part, flags = self._first_part(stream, stream.head, budget - frames.HEADER_BYTES - 8, 8)
        parts.append(frames.open_prefix(stream.id, context.index, len(stream.head), len(part), flags))
        parts.append(part)
        size = frames.HEADER_BYTES + 8 + len(part)
        self._sent.record(size)
        return size

    def _send_answer_head(self, stream: StreamState, budget: int, parts: list[bytes | memoryview]) -> int:
        stream.head_waits = False
        head = stream.answer_head
        assert head is not None
        part, flags = self._first_part(stream, head, budget - frames.HEADER_BYTES - 4, 4)
        parts.append(frames.head_prefix(stream.id, len(head), len(part), flags))
        parts.append(part)
        size = frames.HEADER_BYTES + 4 + len(part)
        self._sent.record(size)
        return size

    def _first_part(
        self, stream: StreamState, head: bytes, room: int, prefix_bytes: int
    ) -> tuple[bytes, int]:
        """What of a head goes into its own frame, and the flags; the rest goes to the front of the DATA."""
        part = head[: min(room, self._max_frame_out - prefix_bytes)]
        if len(part) < len(head):
            rest = head[len(part) :]
            stream.outgoing.prepend(rest)
            stream.bytes_sent -= len(rest)
            self.memory.charge(len(rest))
        elif stream.fin_waits and not stream.outgoing.size:
            stream.fin_waits = False
            return part, frames.FIN
        return part, 0

    def _send_farewell(self, stream: StreamState, farewell: Farewell, parts: list[bytes | memoryview]) -> int:
        stream.farewell = None
        self._unacknowledged_resets[stream.id] = self._sent.next_number
        frame = frames.reset(stream.id, farewell.code, farewell.processed, farewell.reason, in_line=True)
        self._sent.record(len(frame))
        parts.append(frame)
        return len(frame)

    # --- a stream's life ---

    def _new_stream(
        self, context: Context, head: bytes, sending: Half, receiving: Half, now: float, *, opened_here: bool
    ) -> StreamState:
        context.share.users += 1
        stream = StreamState(
            context=context,
            opened_here=opened_here,
            head=head,
            sending=sending,
            receiving=receiving,
            window=ReceiveWindow.of_size(self._window_in, now),
            send_credit=self._credit_out,
            moved_at=now,
        )
        self._charge_head(stream, len(head))
        return stream

    def _activate(self, stream: StreamState) -> None:
        if stream.ready:
            self._scheduler.activate(stream.context.share, stream)

    def _grant(self, stream: StreamState, now: float) -> None:
        level = self.memory.level()
        delta = stream.window.grant(
            now,
            self.rtt_s,
            initial=self._window_in,
            may_grow=level is Level.FREE,
            squeezed=level >= Level.SQUEEZED,
        )
        if delta:
            self._control.add_window(stream, delta)

    def _step_local(self, stream: StreamState, step: Step) -> None:
        try:
            stream.sending = after(stream.sending, step)
        except IllegalTransition as exc:
            raise LocalProtocolError(f"stream {stream.id}: {exc}") from exc

    def _step_remote(self, stream: StreamState, step: Step) -> bool:
        try:
            stream.receiving = after(stream.receiving, step)
        except IllegalTransition as exc:
            code = StreamCode.STREAM_CLOSED if at_rest(stream.receiving) else StreamCode.PROTOCOL
            self._fault(stream, code, f"stream {stream.id}: {exc}")
            return False
        return True

    def _fault(self, stream: StreamState, code: StreamCode, reason: str) -> None:
        """The peer broke the rules of this stream alone: RESET it, and tell the owner."""
        processed = Processed.MAYBE if stream.announced else Processed.NO
        self._queue_reset(stream.id, code, processed, reason)
        self._break(stream, code, processed, reason, in_line=False)

    def _break(
        self, stream: StreamState, code: StreamCode, processed: Processed, reason: str, *, in_line: bool
    ) -> None:
        """The stream ends under its owner: drop what is queued, and say so with an event."""
        # After a RESET of our own the owner has turned away already; there is nobody to tell.
        told = stream.announced and not (stream.receiving is Half.BROKEN or stream.farewell is not None)
        stream.sending = after(stream.sending, Step.RESET)
        stream.receiving = after(stream.receiving, Step.RESET)
        stream.partial_head = None
        stream.window_due = 0
        self._drop_outgoing(stream)
        if not in_line:
            self._drop_incoming(stream)
        if told:
            self._events.append(events.StreamBroken(stream, code, processed, reason, in_line))
        self._close(stream)

    def _drop_outgoing(self, stream: StreamState) -> None:
        self.memory.release(stream.outgoing.clear())
        stream.head_waits = stream.fin_waits = False
        stream.farewell = None
        if stream.open_waits:
            stream.open_waits = False
            stream.context.queued -= 1
            self._retire_if_unused(stream.context)
            # It was never sent, so the ledger's bound on what is sent does not bound how many of it there
            # are.
            stream.context.share.flows.discard(stream)

    def _drop_incoming(self, stream: StreamState) -> None:
        dropped = stream.incoming.clear()
        stream.window.consume(dropped)
        self.memory.release(dropped)

    def _is_over(self, stream: StreamState) -> bool:
        return stream not in self._unsent and self._streams.get(stream.id) is not stream

    def _close_if_done(self, stream: StreamState) -> None:
        if at_rest(stream.receiving) and stream.all_said:
            self._close(stream)

    def _close(self, stream: StreamState) -> None:
        """The wire is done with it: free its place; what was received lingers until it is taken."""
        if stream.id:
            del self._streams[stream.id]
        else:
            del self._unsent[stream]
        if stream.opened_here:
            self._opened_here -= 1
        else:
            self._opened_there -= 1
        self._lingering[stream] = None
        self._forget_if_done(stream)

    def _forget_if_done(self, stream: StreamState) -> None:
        if stream.incoming.size == 0:
            del self._lingering[stream]
            self.memory.release(stream.head_bytes)
            stream.head_bytes = 0
            self._scheduler.leave(stream.context.share)

    def _charge_head(self, stream: StreamState, count: int) -> None:
        stream.head_bytes += count
        self.memory.charge(count)

    def _queue_reset(self, stream_id: int, code: StreamCode, processed: Processed, reason: str) -> None:
        # Nothing may come after it on this stream, whenever it is sent; until then the number is not known.
        self._unacknowledged_resets[stream_id] = 2**64
        self._control.resets.append(
            (stream_id, frames.reset(stream_id, code, processed, reason, in_line=False))
        )

    # --- faults of the session ---

    def _check_late(self, stream_id: int, what: str) -> None:
        """DATA or HEAD for a stream that is gone: late if we RESET it, or else a breach."""
        if stream_id in self._unacknowledged_resets:
            return
        self._check_was_opened(stream_id, what)
        raise RemoteProtocolError(f"{what} on stream {stream_id}, which is over")

    def _check_was_opened(self, stream_id: int, what: str) -> None:
        theirs = stream_id % 2 == self._peer_parity
        if stream_id == 0 or stream_id > (self._peer_last_id if theirs else self._next_id - 2):
            raise RemoteProtocolError(f"{what} on stream {stream_id}, which was never opened")

    def _check_open(self) -> None:
        if self.phase is not Phase.OPEN:
            raise LocalProtocolError(f"the session is {self.phase.value}")

    def _wall_ms(self, now: float) -> int:
        return max(0, round((now + self.wall_offset_s) * 1000))

    # --- memory ---

    def _check_memory(self) -> None:
        if self.memory.level() is Level.FULL:
            self.memory.relieve()

    def holders(self) -> Iterable[Holder]:
        return [*self._streams.values(), *self._unsent, *self._lingering]

    def evict(self, holder: Holder) -> None:
        assert isinstance(holder, StreamState)
        code, reason = StreamCode.OVERLOADED, "memory is full"
        processed = Processed.MAYBE if holder.id else Processed.NO
        if holder in self._lingering:
            self._drop_incoming(holder)
            self._events.append(events.StreamBroken(holder, code, processed, reason, in_line=False))
            self._forget_if_done(holder)
        elif not self._is_over(holder):
            if holder.id:
                self._queue_reset(holder.id, code, processed, reason)
            self._break(holder, code, processed, reason, in_line=False)
        self.on_eviction()


def _nobody_cares() -> None: ...


def _check_head(head: bytes) -> None:
    if len(head) > frames.HEAD_BYTES_MAX:
        raise LocalProtocolError(f"a head of {len(head)} bytes exceeds {frames.HEAD_BYTES_MAX}")
