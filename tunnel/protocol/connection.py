"""One end of a tunnel session without its I/O: one feed, one drain, and what the owner may do in between.

    connection.receive_message(message, now)             the feed: whole frames in, calls to the owners out
    message = connection.data_to_send(limit, now)        the drain: one message of frames, b"" when quiet
    connection.tick(now)                                 PING and ACK that are due, by next_deadline()

In between the owner opens streams, queues bytes, takes bytes, resets. None of that waits or raises for a
reason that the peer gave: a stream that the peer broke swallows what is still queued for it, and has reported
that to its owner (`tunnel.protocol.events`). What the owner may not do at that time is LocalProtocolError.

`now` is any clock that never goes back, in seconds. The only wall clock is `wall_offset_s`, handed in.
"""

from __future__ import annotations

import math
from typing import Final

import attrs

from tunnel.protocol import frames
from tunnel.protocol.control import ControlQueue
from tunnel.protocol.core import (
    CLOSED,
    CONTEXTS_MAX,
    DETACHED,
    GREETING,
    OPEN,
    OPEN_WAITS_S,
    Core,
    Phase,
    Role,
)
from tunnel.protocol.drain import Outbound
from tunnel.protocol.errors import (
    IllegalTransition,
    LocalProtocolError,
    Processed,
    RemoteProtocolError,
    StreamCode,
)
from tunnel.protocol.events import SessionOwner
from tunnel.protocol.feed import Inbound
from tunnel.protocol.frames import Hello, Resume, Welcome
from tunnel.protocol.liveness import PING_IDLE_S, Liveness
from tunnel.protocol.memory import Memory
from tunnel.protocol.schedule import OUT
from tunnel.protocol.state import BROKEN, ENDED, FLOWING, FRESH, Step, after
from tunnel.protocol.streams import Context, Farewell, StreamState

__all__ = ["Connection", "Phase", "Role"]


class Connection(Core):
    """The protocol of one session, as its owner uses it."""

    def __init__(
        self,
        role: Role,
        *,
        owner: SessionOwner,
        now: float,
        memory: Memory | None = None,
        wall_offset_s: float = 0.0,
        ping_s: float = PING_IDLE_S,
    ) -> None:
        super().__init__(
            role=role,
            owner=owner,
            memory=memory if memory is not None else Memory(limit_bytes=128 * 1024 * 1024),
            wall_offset_s=wall_offset_s,
            liveness=Liveness(ping_s, received_at=now),
        )
        self._inbound = Inbound(self)
        self.data_to_send: Final = Outbound(self).message
        """The drain, called with a limit and `now`: one message of what waits, control first, then the
        streams in turn; b"" when nothing does.

        It has `limit` bytes at most, passed by one control frame if need be. Only control goes beyond a full
        ledger.
        """

    # --- greeting ---

    def say_hello(self, hello: Hello) -> None:
        """The dialer's first word; everything else waits for the answer."""
        assert self.role is Role.DIALER
        assert self.phase is GREETING
        self.local = hello
        self.control.greeting = frames.hello(hello)

    def say_welcome(self, welcome: Welcome, peer: Hello) -> None:
        """The listener's answer to `peer`; the session is open with it."""
        assert self.role is Role.LISTENER
        assert self.phase is GREETING
        self.local = welcome
        self.control.greeting = frames.welcome(welcome)
        self.settle(peer)

    @property
    def rtt_s(self) -> float | None:
        """The least round trip seen."""
        return self.round_trips.least_s

    # --- what the owner asks ---

    @property
    def may_open(self) -> bool:
        if self.told_to_go or self.opened_here >= self.peer.max_streams:
            return False
        return self.phase is OPEN or self.phase is DETACHED

    def too_late_to_open(self, now: float) -> bool:
        """Whether the transport is away for so long already that an OPEN would not wait for it."""
        return now - self.detached_at >= OPEN_WAITS_S

    @property
    def unacknowledged_bytes(self) -> int:
        return self.sent.unacknowledged_bytes

    @property
    def message_bytes(self) -> int:
        """What `data_to_send` should be limited to, by what the link has carried so far."""
        return self.flight.message_bytes

    @property
    def wants_to_send(self) -> bool:
        """Whether the drain may have something. It can be wrong to the safe side only."""
        ring, sent = self.scheduler.ring, self.sent
        if (ring.new or ring.old) and not sent.full:
            return True
        return bool(self.control or sent.replaying)

    @property
    def tells_clock(self) -> bool:
        """Whether what is sent next says `wall_offset_s`."""
        return bool(self.control.pongs or self.control.ping)

    @property
    def has_unsent(self) -> bool:
        """Whether anything waits, be it for its turn or for an acknowledgement; but not for credit."""
        ring = self.scheduler.ring
        if ring.new or ring.old:
            return True
        return bool(self.control or self.sent.replaying)

    # --- time ---

    def next_deadline(self) -> float:
        """When tick() should be called, or the peer be given up (`liveness.dead_at`) or doubted."""
        if self.phase is not OPEN:
            if self.phase is not DETACHED:
                return math.inf
            expires_at = min(self.liveness.received_at + self.resume_ttl_s, self.doubt_at)
            return min(expires_at, self.detached_at + OPEN_WAITS_S) if self.unsent else expires_at
        deadline = min(self.liveness.ping_at(busy=self.stream_count > 0), self.liveness.dead_at)
        # Nearly always every PING is answered.
        if self.liveness.unanswered_since < math.inf:
            deadline = min(deadline, self.doubt_at)
        ack_at = self.received.due_at
        # An ACK that waits for the transport is nothing that a clock could help.
        return deadline if ack_at is None or self.control.ack_due else min(deadline, ack_at)

    @property
    def doubt_at(self) -> float:
        """When the streams that were opened here should be told that the peer is in doubt (`doubt`)."""
        return self.liveness.doubt_at(attached=self.phase is OPEN) if self.opened_here else math.inf

    def doubt(self) -> None:
        """Tell the streams that were opened here that the peer is in doubt."""
        self.liveness.doubted = True
        for stream in [*self.unsent, *self.streams.values()]:
            if stream.opened_here and stream.owner is not None:
                stream.owner.on_doubt()

    def tick(self, now: float) -> None:
        """Queue the PING and the ACK that are due; detached, end what has waited long enough."""
        if self.phase is not OPEN:
            if self.phase is DETACHED:
                self._expire(now)
            return
        if now >= self.liveness.ping_at(busy=self.stream_count > 0):
            self.ping(now)
        if self.received.due(now):
            self.control.ack_due = True

    def _expire(self, now: float) -> None:
        if now >= self.liveness.received_at + self.resume_ttl_s:
            self.close(StreamCode.DETACH_EXPIRED, f"the tunnel was away for {self.resume_ttl_s:.0f} s")
        elif now >= self.detached_at + OPEN_WAITS_S:
            for stream in list(self.unsent):
                self.break_stream(
                    stream, StreamCode.REFUSED, Processed.NO, "the tunnel is away", in_line=False
                )

    def ping(self, now: float) -> None:
        number = self.round_trips.next()
        if number is not None:
            self.control.ping = number
        self.liveness.pinged(now)

    # --- resumption ---

    @property
    def resumable(self) -> bool:
        return self.resume_ttl_s > 0 and self.phase in (OPEN, DETACHED)

    def forgo_resumption(self) -> None:
        """Let no other transport follow this one. Not while detached: the streams wait for one."""
        assert self.phase is not DETACHED
        self.resume_ttl_s = 0.0

    def detach(self, now: float) -> None:
        """The transport is lost, and nothing more may be fed that came by it. Nothing is broken: what owners
        say from now on waits for the next one, until `next_deadline`."""
        assert self.resumable
        if self.phase is DETACHED:
            return
        self.phase = DETACHED
        self.detached_at = now
        self.control.forget_unsequenced()
        self.round_trips.restart()

    def hello_again(self) -> Hello:
        """The dialer's first word on a new transport. It is not sent through the drain."""
        assert self.phase is DETACHED
        assert isinstance(self.local, Hello)
        assert isinstance(self.peer, Welcome)
        self.attempt += 1
        resume = Resume(
            self.peer.session_id,
            self.received.said(self.detached_at),
            self.sent.acknowledged,
            self.sent.next_number,
            self.attempt,
        )
        return attrs.evolve(self.local, resume=resume)

    def is_outdated(self, resume: Resume) -> bool:
        """Whether the listener has gone on with a later HELLO of the dialer than this one."""
        return 0 < resume.attempt <= self.attempt

    def may_attach(self, resume: Resume) -> bool:
        """Whether the listener still has what the dialer lacks, and the dialer what the listener lacks."""
        return (
            self.resumable
            and self.sent.may_rewind(resume.last_rx)
            and resume.first_tx <= self.received.count <= resume.next_tx
        )

    def attach_listener(self, resume: Resume, now: float) -> None:
        """Go on over a new transport, whose HELLO `may_attach`: WELCOME, and then what the dialer lacks."""
        assert isinstance(self.local, Welcome)
        welcome = attrs.evolve(
            self.local,
            resumed=True,
            last_rx=self.received.said(now),
            next_tx=self.sent.next_number,
            server_time_ms=self.wall_ms(now),
        )
        self.attempt = resume.attempt
        self.attach(resume.last_rx, resume.next_tx, now)
        self.control.greeting = frames.welcome(welcome)

    # --- contexts ---

    def add_context(self, group: int, payload: bytes) -> Context:
        """Announce a context; its index names it in open_stream. The frame leaves before any OPEN."""
        self.check_open()
        if not 1 <= len(payload) <= frames.CONTEXT_BYTES_MAX:
            raise LocalProtocolError(
                f"a context of {len(payload)} bytes; 1 to {frames.CONTEXT_BYTES_MAX} may be sent"
            )
        if not 0 <= group < 2**32:
            raise LocalProtocolError(f"group {group} is not a u32")
        if len(self.contexts) >= CONTEXTS_MAX:
            raise LocalProtocolError(f"{CONTEXTS_MAX} contexts are live already")
        context = Context(self.next_context, group, payload, share=self.scheduler.enter(group))
        self.next_context += 1
        self.contexts[context.index] = context
        self.memory.charge(len(payload))
        self.control.contexts.append(frames.context(context.index, group, payload))
        return context

    def retire_context(self, index: int) -> None:
        """Open nothing under it again. Streams that are open keep it; OPENs still queued go out before."""
        context = self.contexts.get(index)
        if context is None:
            raise LocalProtocolError(f"context {index} is not live")
        context.retiring = True
        self.retire_if_unused(context)

    # --- streams ---

    def open_stream(self, head: bytes, context_index: int, eof: bool, now: float) -> StreamState:
        """Queue an OPEN. With `eof` nothing follows the head."""
        if not self.may_open:
            self.check_open()
            raise LocalProtocolError("the peer takes no more streams now")
        context = self.contexts.get(context_index)
        if context is None or context.retiring:
            raise LocalProtocolError(f"context {context_index} is not live")
        if len(head) > frames.HEAD_BYTES_MAX:
            raise _too_long(head)
        sending = ENDED if eof else FLOWING
        stream = self.new_stream(context, head, sending, FRESH, now, True)
        stream.head_waits = True
        stream.fin_waits = eof
        context.queued += 1
        self.opened_here += 1
        self.unsent[stream] = None
        self.scheduler.activate(context.share, stream)
        if self.memory.charge(len(head)):
            self.memory.relieve()
        return stream

    def send_head(self, stream: StreamState, head: bytes, eof: bool, data: bytes = b"") -> None:
        """Answer with a head: once, before any data, and only on a stream that the peer opened.

        With `data` and `eof` it is the whole answer in one step.
        """
        if stream.sending is not FRESH:
            if stream.sending is BROKEN:
                return
            if stream.opened_here:
                raise LocalProtocolError("the opener's head is in its OPEN")
            self._step_local(stream, Step.HEAD)
        size = len(head)
        if size > frames.HEAD_BYTES_MAX:
            raise _too_long(head)
        stream.sending = ENDED if eof else FLOWING
        stream.answer_head = head
        stream.head_waits = True
        stream.fin_waits = eof
        stream.head_bytes += size
        if data:
            stream.queue(data)
        full = self.memory.charge(size + len(data))
        if stream.place is OUT:
            # A head that waits needs no credit.
            self.scheduler.activate(stream.context.share, stream)
        if full:
            self.memory.relieve()

    def send_data(self, stream: StreamState, data: bytes, *, eof: bool = False) -> None:
        """Queue bytes and, with `eof`, the end. How many may wait is the owner's business: see
        `StreamState.drain_wanted`."""
        if stream.sending is not FLOWING:
            # No bytes are no DATA, so the head may still come.
            if stream.sending is BROKEN or (stream.sending is FRESH and not (data or eof)):
                return
            self._step_local(stream, Step.DATA if data else Step.FIN)
        full = False
        if data:
            stream.queue(data)
            full = self.memory.charge(len(data))
        if eof:
            stream.sending = ENDED
            stream.fin_waits = True
        if stream.place is OUT and (data or eof):
            self.activate(stream)
        if full:
            self.memory.relieve()

    def send_eof(self, stream: StreamState) -> None:
        if stream.sending is BROKEN:
            return
        self._step_local(stream, Step.FIN)
        stream.fin_waits = True
        self.activate(stream)

    def take(self, stream: StreamState, limit: int, now: float) -> bytes:
        """Take at most `limit` of the received bytes, which grants them to the peer again; b"": none yet."""
        data = stream.incoming.take(limit)
        count = len(data)
        if count:
            stream.moved_at = now
            due = stream.window.consume(count)
            self.memory.release(count)
            if not stream.receiving.at_rest:
                if due:
                    self.grant(stream, now)
            elif stream in self.lingering:
                self.forget_if_done(stream)
        return data

    def take_rest(self, stream: StreamState) -> bytes:
        """Take all that was received, of a peer that has said its end: there is nothing to grant it again."""
        data = stream.incoming.take_all()
        stream.window.held = 0
        if stream in self.lingering:
            del self.lingering[stream]
            self._forget(stream, len(data))
        else:
            self.memory.release(len(data))
        return data

    def discard_received(self, stream: StreamState) -> None:
        """Drop what was received and not taken, and grant none of it: nobody reads this stream any more."""
        self.drop_incoming(stream)
        if stream in self.lingering:
            self.forget_if_done(stream)

    def reset(
        self,
        stream: StreamState,
        code: StreamCode,
        processed: Processed,
        reason: str,
        *,
        in_line: bool = False,
    ) -> None:
        """Close both halves; a stream that is over already stays as it is.

        `in_line`: what is queued goes out before the RESET; otherwise it is dropped. What was received and
        not taken is dropped either way.
        """
        if self.is_over(stream):
            self.discard_received(stream)
            return
        stream.sending = after(stream.sending, Step.RESET)
        stream.receiving = after(stream.receiving, Step.RESET)
        self.drop_incoming(stream)
        stream.partial_head = None
        if in_line:
            stream.farewell = Farewell(code, processed, reason)
            if stream.receiving is BROKEN and stream.id:
                self.grant(stream, stream.moved_at)
            self.activate(stream)
            return
        stream.window_due = 0
        self.drop_outgoing(stream)
        if stream.id:
            self.queue_reset(stream.id, code, processed, reason)
        self.close_stream(stream)

    # --- the session's end ---

    def reject(self, code: int, reason: str, retry_after_ms: int = 0) -> None:
        """Refuse the peer in the greeting: a GOAWAY that says why is all it will get."""
        self.control = ControlQueue(goaway=frames.goaway(0, code, 0, retry_after_ms, reason))
        self.phase = CLOSED

    # --- the feed ---

    def receive_message(self, message: bytes, now: float, frames_max: int = frames.MESSAGE_BYTES_MAX) -> None:
        """Take one message of whole frames. RemoteProtocolError is the end, and the only thing it raises.

        Of more than `frames_max` frames, for some of which a long head counts, the rest is `unread` behind
        it: the next message, or nothing if the transport is lost before. What was taken is counted as any
        message is.
        """
        self.unread = b""
        if self.failure is not None:
            raise self.failure
        if self.phase is CLOSED:
            return
        self.liveness.received(now)
        try:
            self._inbound.receive(message, now, frames_max)
        except RemoteProtocolError as error:
            self.fail(error)
            raise
        if self.received.due(now):
            self.control.ack_due = True
        memory = self.memory
        if memory.full:
            memory.relieve()

    def _step_local(self, stream: StreamState, step: Step) -> None:
        try:
            stream.sending = after(stream.sending, step)
        except IllegalTransition as exc:
            raise LocalProtocolError(f"stream {stream.id}: {exc}") from exc


def _too_long(head: bytes) -> LocalProtocolError:
    return LocalProtocolError(f"a head of {len(head)} bytes exceeds {frames.HEAD_BYTES_MAX}")
