"""What the feed and the drain of a connection share: its tables, and what may befall a stream.

A stream is in one of three tables. `unsent`: its OPEN waits in the queue, it has no id. `streams`: it is on
the wire. `lingering`: it is over on the wire, but what was received is not taken yet. Then it is forgotten,
and with it everything that it was charged for.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from typing import Final

import attrs

from tunnel.protocol import frames
from tunnel.protocol.congestion import Flight
from tunnel.protocol.control import ControlQueue
from tunnel.protocol.errors import (
    LocalProtocolError,
    Processed,
    RemoteProtocolError,
    StreamCode,
)
from tunnel.protocol.events import GoAway, SessionOwner
from tunnel.protocol.frames import Hello, Welcome
from tunnel.protocol.ledger import ReceivedLedger, SentLedger
from tunnel.protocol.liveness import Liveness, RoundTrips
from tunnel.protocol.memory import Holder, Level, Memory
from tunnel.protocol.schedule import OUT, Scheduler
from tunnel.protocol.state import ENDED, Half, Step, after
from tunnel.protocol.streams import Context, StreamState
from tunnel.protocol.window import NO_WINDOW, ReceiveWindow

CONTEXTS_MAX = 4096
LAST_STREAM_ID = 2**31 - 1
# A cut of 40 s is survived: found after 14 s at most, back within 7 s after the network is.
RESUME_TTL_S = 60.0
# How long an OPEN waits for the transport to come back; whoever asked for it has other ways.
OPEN_WAITS_S = 2.0
# Streams of a group that are over and wait for their turn all the same, beside as many as live.
LEFT_BEHIND_MAX = 8


class Role(enum.Enum):
    """Who dialled. Not client and server: the WebSocket's client serves the requests here."""

    DIALER = "dialer"
    LISTENER = "listener"


class Phase(enum.Enum):
    GREETING = "greeting"
    OPEN = "open"
    DETACHED = "detached"
    """The transport is lost and another may follow: owners go on as before, and all that they say waits."""
    CLOSED = "closed"


# Plain names for the hot path, as in `state`.
GREETING: Final = Phase.GREETING
OPEN: Final = Phase.OPEN
DETACHED: Final = Phase.DETACHED
CLOSED: Final = Phase.CLOSED


@attrs.define(eq=False, slots=False)
class Core:
    """The state of one end of a session."""

    role: Role
    owner: SessionOwner
    memory: Memory
    wall_offset_s: float
    """What to add to `now` for the wall clock."""
    liveness: Liveness

    phase: Phase = attrs.field(init=False, default=GREETING)
    failure: RemoteProtocolError | None = attrs.field(init=False, default=None)
    unread: bytes = attrs.field(init=False, default=b"")
    """What the feed has left of its last message, where that had more frames than were asked for."""
    frames_taken: int = attrs.field(init=False, default=0)
    """How many it has taken of it, as `receive_message` counts them."""
    peer_hello: Hello | None = attrs.field(init=False, default=None)
    """The dialer's, which a WELCOME answers."""
    refusal: GoAway | None = attrs.field(init=False, default=None)
    """The listener's GOAWAY in the greeting: it wants no session."""
    local: Hello | Welcome = attrs.field(init=False, factory=Hello)
    peer: Hello | Welcome = attrs.field(init=False, factory=Hello)
    resume_ttl_s: float = attrs.field(init=False, default=0.0)
    """How long the session outlives its transport, from the last byte received; 0: it does not."""
    detached_at: float = attrs.field(init=False, default=math.inf)
    """Not while a transport is there."""

    going_away: bool = attrs.field(init=False, default=False)
    """We said GOAWAY: what the peer opens from then on is refused."""
    goaway_last_id: int = attrs.field(init=False, default=0)
    goaway_retry_after_ms: int = attrs.field(init=False, default=0)
    last_goaway: bytes = attrs.field(init=False, default=b"")
    """Is said again on the next transport, as it has no number."""
    told_to_go: bool = attrs.field(init=False, default=False)
    """The peer said GOAWAY, or our ids are used up: we open nothing more."""

    control: ControlQueue = attrs.field(init=False, factory=ControlQueue)
    scheduler: Scheduler[StreamState] = attrs.field(init=False, factory=Scheduler)
    sent: SentLedger = attrs.field(init=False)
    flight: Flight = attrs.field(init=False, factory=Flight)
    attempt: int = attrs.field(init=False, default=0)
    """The dialer's last HELLO for this session; at the listener, the one that it has gone on with."""
    received: ReceivedLedger = attrs.field(init=False, factory=ReceivedLedger)
    round_trips: RoundTrips = attrs.field(init=False, factory=RoundTrips)

    streams: dict[int, StreamState] = attrs.field(init=False, factory=dict)
    unsent: dict[StreamState, None] = attrs.field(init=False, factory=dict)
    lingering: dict[StreamState, None] = attrs.field(init=False, factory=dict)
    next_id: int = attrs.field(init=False)
    peer_parity: int = attrs.field(init=False)
    peer_last_id: int = attrs.field(init=False, default=0)
    opened_here: int = attrs.field(init=False, default=0)
    opened_there: int = attrs.field(init=False, default=0)
    replayed_until: int = attrs.field(init=False, default=0)
    """What the peer sends below this number it had sent before the last attach, without knowing what it has
    heard since. 0: all of that has come."""
    unacknowledged_resets: dict[int, int] = attrs.field(init=False, factory=dict)
    """Streams that we RESET, with the number of that frame: until the peer has it, DATA may come late."""
    peer_resets: int = attrs.field(init=False, default=0)
    """How many of them the peer had opened."""
    contexts: dict[int, Context] = attrs.field(init=False, factory=dict)
    """Those that we announced, by index."""
    next_context: int = attrs.field(init=False, default=1)
    peer_contexts: dict[int, Context] = attrs.field(init=False, factory=dict)
    peer_contexts_max: int = attrs.field(init=False, default=CONTEXTS_MAX)
    """How many of them may be live: memory cannot be taken back from them."""
    peer_last_context: int = attrs.field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self.next_id = 1 if self.role is Role.DIALER else 2
        self.peer_parity = 1 - self.next_id % 2
        self.sent = SentLedger(self.memory)
        self.memory.join(self)

    # --- the session ---

    @property
    def stream_count(self) -> int:
        return len(self.streams) + len(self.unsent)

    def wall_ms(self, now: float) -> int:
        return max(0, round((now + self.wall_offset_s) * 1000))

    def settle(self, peer: Hello | Welcome) -> None:
        """Both sides have greeted; what the other can take is known."""
        self.phase = OPEN
        self.peer = peer
        welcome = peer if isinstance(peer, Welcome) else self.local
        assert isinstance(welcome, Welcome)
        if frames.RESUME in peer.features and frames.RESUME in self.local.features:
            self.resume_ttl_s = min(float(welcome.resume_ttl_s), RESUME_TTL_S)
            self.sent.keeping = self.resume_ttl_s > 0

    def attach(self, peer_has: int, peer_sent: int, now: float) -> None:
        """A new transport is there; of all before it the peer has received `peer_has` frames, and sent
        `peer_sent`."""
        assert self.phase is DETACHED
        self.phase = OPEN
        self.detached_at = math.inf
        self.replayed_until = peer_sent
        self.sent.rewind(peer_has)
        self.flight = self.flight.anew()
        self.liveness.restart(now)
        if self.going_away:
            self.control.goaway = self.last_goaway

    def check_open(self) -> None:
        if self.phase is not OPEN and self.phase is not DETACHED:
            raise LocalProtocolError(f"the session is {self.phase.value}")

    def refuse_from(self, last_id: int) -> None:
        self.going_away = True
        self.goaway_last_id = last_id

    def go_away(self, code: int, drain_ms: int, retry_after_ms: int, reason: str) -> None:
        """Tell the peer to open no more streams here; those that are open go on."""
        self.check_open()
        if not self.going_away:
            self.refuse_from(self.peer_last_id)
        # The peer goes by the last one, and the end of the session says another: what was asked for stands.
        retry_after_ms = self.goaway_retry_after_ms = max(self.goaway_retry_after_ms, retry_after_ms)
        self.last_goaway = frames.goaway(self.goaway_last_id, code, drain_ms, retry_after_ms, reason)
        self.control.goaway = self.last_goaway

    def fail(self, error: RemoteProtocolError) -> None:
        self.failure = error
        if self.phase is OPEN:
            self.go_away(error.close_code, 0, 0, str(error))
        elif self.phase is GREETING:
            self.control.goaway = frames.goaway(0, error.close_code, 0, 0, str(error))
        self.control = ControlQueue(goaway=self.control.goaway)
        self.phase = CLOSED

    # --- contexts ---

    def retire_if_unused(self, context: Context) -> None:
        if context.retiring and not context.queued and self.contexts.pop(context.index, None) is not None:
            waiting, index, group = self.control.contexts, context.index, context.group
            try:
                # One that has not left is not said at all: so what waits is bounded by what is live.
                waiting.remove(frames.context(index, group, context.payload))
            except ValueError:
                waiting.append(frames.context(index, group, b""))
            self.release_context(context)

    def release_context(self, context: Context) -> None:
        self.memory.release(len(context.payload))
        self.scheduler.leave(context.share)

    # --- a stream's life ---

    def new_stream(
        self, context: Context, head: bytes, sending: Half, receiving: Half, now: float, opened_here: bool
    ) -> StreamState:
        """A stream with one head; whoever makes it charges memory for that."""
        context.share.users += 1
        size = self.local.initial_window
        window = NO_WINDOW if receiving is ENDED else ReceiveWindow(size, size, 0, now)
        return StreamState(
            context, opened_here, head, sending, receiving, window, self.peer.initial_window, now
        )

    def activate(self, stream: StreamState) -> None:
        # What is in the ring already keeps its place there.
        if stream.place is OUT and stream.ready:
            self.scheduler.activate(stream.context.share, stream)

    def grant(self, stream: StreamState, now: float) -> None:
        if not stream.window.is_due:
            return
        level = self.memory.level()
        delta = stream.window.grant(
            now,
            self.round_trips.least_s,
            initial=self.local.initial_window,
            may_grow=level is Level.FREE,
            squeezed=level is Level.SQUEEZED,
        )
        if delta:
            self.control.add_window(stream, delta)

    def fault(self, stream: StreamState, code: StreamCode, reason: str) -> None:
        """The peer broke the rules of this stream alone: RESET it, and tell the owner."""
        processed = Processed.MAYBE if stream.announced else Processed.NO
        self.queue_reset(stream.id, code, processed, reason)
        self.break_stream(stream, code, processed, reason, in_line=False)

    def break_stream(
        self, stream: StreamState, code: StreamCode, processed: Processed, reason: str, *, in_line: bool
    ) -> None:
        """The stream ends under its owner: drop what is queued, and report it."""
        # The owner of a stream that waits to be RESET in line has reset it itself.
        owner = stream.owner if stream.farewell is None else None
        stream.sending = after(stream.sending, Step.RESET)
        stream.receiving = after(stream.receiving, Step.RESET)
        stream.partial_head = None
        stream.window_due = 0
        self.drop_outgoing(stream)
        if not in_line:
            self.drop_incoming(stream)
        if owner is not None:
            owner.on_broken(code, processed, reason, in_line=in_line)
        self.close_stream(stream)

    def drop_outgoing(self, stream: StreamState) -> None:
        self.memory.release(stream.outgoing.held_bytes)
        stream.outgoing.clear()
        never_sent = stream.head_waits and not stream.id
        stream.head_waits = stream.fin_waits = False
        stream.farewell = None
        if never_sent:
            stream.context.queued -= 1
            self.retire_if_unused(stream.context)
        share = stream.context.share
        if len(share.flows) > 2 * share.users + LEFT_BEHIND_MAX:
            # Nobody takes turns while the ledger is full, and nothing of these need have been sent: so their
            # number would have no bound.
            share.flows.sweep()

    def drop_incoming(self, stream: StreamState) -> None:
        dropped = stream.incoming.clear()
        stream.window.consume(dropped)
        self.memory.release(dropped)

    def is_over(self, stream: StreamState) -> bool:
        return stream not in self.unsent and self.streams.get(stream.id) is not stream

    def close_stream(self, stream: StreamState) -> None:
        """The wire is done with it: free its place; what was received lingers until it is taken."""
        if stream.id:
            del self.streams[stream.id]
        else:
            del self.unsent[stream]
        if stream.opened_here:
            self.opened_here -= 1
        else:
            self.opened_there -= 1
        if stream.incoming.size:
            self.lingering[stream] = None
        else:
            self._forget(stream)

    def forget_if_done(self, stream: StreamState) -> None:
        """Forget a stream that lingers, when all of it is taken."""
        if stream.incoming.size == 0:
            del self.lingering[stream]
            self._forget(stream)

    def _forget(self, stream: StreamState, taken: int = 0) -> None:
        """Forget a stream, of which the last `taken` bytes are not given back to memory yet."""
        self.memory.release(stream.head_bytes + taken)
        stream.head_bytes = 0
        self.scheduler.leave(stream.context.share)
        if self.phase is CLOSED:
            self.leave_memory_if_done()

    def queue_reset(self, stream_id: int, code: StreamCode, processed: Processed, reason: str) -> None:
        # Nothing may come after it on this stream, whenever it is sent; until then the number is not known.
        self.await_reset(stream_id, 2**64)
        self.control.resets.append(
            (stream_id, frames.reset(stream_id, code, processed, reason, in_line=False))
        )

    def await_reset(self, stream_id: int, number: int) -> None:
        """Bear with what still comes for this stream until the peer has frame `number`, its RESET."""
        self.unacknowledged_resets[stream_id] = number
        if stream_id % 2 == self.peer_parity:
            self.peer_resets += 1

    # --- the session's end ---

    def close(self, code: StreamCode, reason: str) -> None:
        """The session is over: break every stream, and give back what is counted.

        What was received may still be taken. An OPEN that was never sent was surely not processed; of the
        others nobody can tell.
        """
        self.phase = CLOSED
        for stream in [*self.unsent, *self.streams.values()]:
            processed = Processed.MAYBE if stream.id else Processed.NO
            self.break_stream(stream, code, processed, reason, in_line=True)
        for context in [*self.contexts.values(), *self.peer_contexts.values()]:
            self.release_context(context)
        self.contexts.clear()
        self.peer_contexts.clear()
        self.control = ControlQueue(goaway=self.control.goaway)
        self.sent.clear()
        self.leave_memory_if_done()

    # --- memory ---

    def leave_memory_if_done(self) -> None:
        """Leave the accounts, once the session is over and nothing of it is held: what nobody takes must
        stay within reach of an eviction."""
        if self.phase is CLOSED and not (self.streams or self.unsent or self.lingering):
            self.memory.leave(self)

    @property
    def held_bytes(self) -> int:
        """What the session holds for itself, as `Holder` counts it."""
        return self.sent.kept_bytes

    @property
    def moved_at(self) -> float:
        return self.liveness.received_at

    @property
    def group(self) -> Core:
        """What is kept to be sent again is of all its groups, and goes as a whole."""
        return self

    def holders(self) -> Iterable[Holder]:
        streams: list[Holder] = [*self.streams.values(), *self.unsent, *self.lingering]
        if self.phase is DETACHED:
            # Its ledger moves again only if the peer comes back. Of a session that is attached the peer's
            # acknowledgements free it, and `squeeze` bounds it.
            streams.append(self)
        return streams

    def evict(self, holder: Holder) -> None:
        if holder is self:
            self.close(StreamCode.OVERLOADED, "memory is full, and the tunnel is away")
            self.owner.on_eviction()
            return
        assert isinstance(holder, StreamState)
        code, reason = StreamCode.OVERLOADED, "memory is full"
        processed = Processed.MAYBE if holder.id else Processed.NO
        if holder in self.lingering:
            self.drop_incoming(holder)
            if holder.owner is not None:
                holder.owner.on_broken(code, processed, reason, in_line=False)
            self.forget_if_done(holder)
        elif not self.is_over(holder):
            if holder.id:
                self.queue_reset(holder.id, code, processed, reason)
            self.break_stream(holder, code, processed, reason, in_line=False)
        self.owner.on_eviction()
