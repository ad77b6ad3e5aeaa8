"""What the feed and the drain of a connection share: its tables, and what may befall a stream.

A stream is in one of three tables. `unsent`: its OPEN waits in the queue, it has no id. `streams`: it is on
the wire. `lingering`: it is over on the wire, but what was received is not taken yet. Then it is forgotten,
and with it everything that it was charged for.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable

import attrs

from tunnel.protocol import events, frames
from tunnel.protocol.control import ControlQueue
from tunnel.protocol.errors import (
    LocalProtocolError,
    Processed,
    RemoteProtocolError,
    StreamCode,
)
from tunnel.protocol.frames import Hello, Welcome
from tunnel.protocol.ledger import ReceivedLedger, SentLedger
from tunnel.protocol.liveness import Liveness, RoundTrips
from tunnel.protocol.memory import Holder, Level, Memory
from tunnel.protocol.schedule import OUT, Scheduler
from tunnel.protocol.state import BROKEN, ENDED, Half, Step, after
from tunnel.protocol.streams import Context, StreamState
from tunnel.protocol.window import ReceiveWindow

CONTEXTS_MAX = 4096
LAST_STREAM_ID = 2**31 - 1


class Role(enum.Enum):
    """Who dialled. Not client and server: the WebSocket's client serves the requests here."""

    DIALER = "dialer"
    LISTENER = "listener"


class Phase(enum.Enum):
    GREETING = "greeting"
    OPEN = "open"
    CLOSED = "closed"


def _nobody_cares() -> None: ...


@attrs.define(eq=False, slots=False)
class Core:
    """The state of one end of a session."""

    role: Role
    memory: Memory
    wall_offset_s: float
    """What to add to `now` for the wall clock."""
    liveness: Liveness

    phase: Phase = attrs.field(init=False, default=Phase.GREETING)
    failure: RemoteProtocolError | None = attrs.field(init=False, default=None)
    happened: list[events.Event] = attrs.field(init=False, factory=list)
    local: Hello | Welcome = attrs.field(init=False, factory=Hello)
    peer: Hello | Welcome = attrs.field(init=False, factory=Hello)
    peer_clock_offset_ms: int | None = attrs.field(init=False, default=None)
    on_eviction: Callable[[], None] = attrs.field(init=False, default=_nobody_cares)
    """Called when a stream was evicted, which another session's need may bring about at any moment."""

    going_away: bool = attrs.field(init=False, default=False)
    """We said GOAWAY: what the peer opens from then on is refused."""
    goaway_last_id: int = attrs.field(init=False, default=0)
    goaway_retry_after_ms: int = attrs.field(init=False, default=0)
    told_to_go: bool = attrs.field(init=False, default=False)
    """The peer said GOAWAY, or our ids are used up: we open nothing more."""

    control: ControlQueue = attrs.field(init=False, factory=ControlQueue)
    scheduler: Scheduler[StreamState] = attrs.field(init=False, factory=Scheduler)
    sent: SentLedger = attrs.field(init=False, factory=SentLedger)
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
    unacknowledged_resets: dict[int, int] = attrs.field(init=False, factory=dict)
    """Streams that we RESET, with the number of that frame: until the peer has it, DATA may come late."""
    contexts: dict[int, Context] = attrs.field(init=False, factory=dict)
    """Those that we announced, by index."""
    next_context: int = attrs.field(init=False, default=1)
    peer_contexts: dict[int, Context] = attrs.field(init=False, factory=dict)
    peer_last_context: int = attrs.field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self.next_id = 1 if self.role is Role.DIALER else 2
        self.peer_parity = 1 - self.next_id % 2
        self.memory.join(self)

    # --- the session ---

    @property
    def stream_count(self) -> int:
        return len(self.streams) + len(self.unsent)

    def wall_ms(self, now: float) -> int:
        return max(0, round((now + self.wall_offset_s) * 1000))

    def settle(self, peer: Hello | Welcome) -> None:
        """Both sides have greeted; what the other can take is known."""
        self.phase = Phase.OPEN
        self.peer = peer

    def check_open(self) -> None:
        if self.phase is not Phase.OPEN:
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
        self.control.goaway = frames.goaway(self.goaway_last_id, code, drain_ms, retry_after_ms, reason)

    def fail(self, error: RemoteProtocolError) -> None:
        self.failure = error
        if self.phase is Phase.OPEN:
            self.go_away(error.close_code, 0, 0, str(error))
        self.control = ControlQueue(goaway=self.control.goaway)
        self.phase = Phase.CLOSED

    # --- contexts ---

    def retire_if_unused(self, context: Context) -> None:
        if context.retiring and not context.queued and self.contexts.pop(context.index, None) is not None:
            self.control.contexts.append(frames.context(context.index, context.group, b""))
            self.release_context(context)

    def release_context(self, context: Context) -> None:
        self.memory.release(len(context.payload))
        self.scheduler.leave(context.share)

    # --- a stream's life ---

    def new_stream(
        self, context: Context, head: bytes, sending: Half, receiving: Half, now: float, *, opened_here: bool
    ) -> StreamState:
        context.share.users += 1
        size = self.local.initial_window
        window = ReceiveWindow(size, size, 0, now)
        stream = StreamState(
            context, opened_here, head, sending, receiving, window, self.peer.initial_window, now
        )
        stream.head_bytes = len(head)
        self.memory.charge(len(head))
        return stream

    def activate(self, stream: StreamState) -> None:
        # What is in the ring already keeps its place there.
        if stream.place is OUT and stream.ready:
            self.scheduler.activate(stream.context.share, stream)

    def tell_head(self, stream: StreamState) -> None:
        if stream.owner is not None:
            stream.owner.on_head()
        else:
            self.happened.append(events.HeadReceived(stream))

    def tell_data(self, stream: StreamState) -> None:
        if stream.owner is not None:
            stream.owner.on_data()
        elif stream.announced:
            self.happened.append(events.DataReceived(stream))

    def tell_room(self, stream: StreamState) -> None:
        if stream.owner is not None:
            stream.owner.on_room()
        else:
            self.happened.append(events.SendQueueDrained(stream))

    def tell_broken(
        self, stream: StreamState, code: StreamCode, processed: Processed, reason: str, *, in_line: bool
    ) -> None:
        if stream.owner is not None:
            stream.owner.on_broken(code, processed, reason, in_line=in_line)
        else:
            self.happened.append(events.StreamBroken(stream, code, processed, reason, in_line))

    def grant(self, stream: StreamState, now: float) -> None:
        if not stream.window.is_due:
            return
        level = self.memory.level()
        delta = stream.window.grant(
            now,
            self.round_trips.least_s,
            initial=self.local.initial_window,
            may_grow=level is Level.FREE,
            squeezed=level >= Level.SQUEEZED,
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
        """The stream ends under its owner: drop what is queued, and say so with an event."""
        # After a RESET of our own the owner has turned away already; there is nobody to tell.
        told = stream.announced and not (stream.receiving is BROKEN or stream.farewell is not None)
        stream.sending = after(stream.sending, Step.RESET)
        stream.receiving = after(stream.receiving, Step.RESET)
        stream.partial_head = None
        stream.window_due = 0
        self.drop_outgoing(stream)
        if not in_line:
            self.drop_incoming(stream)
        if told:
            self.tell_broken(stream, code, processed, reason, in_line=in_line)
        self.close_stream(stream)

    def drop_outgoing(self, stream: StreamState) -> None:
        self.memory.release(stream.outgoing.clear())
        stream.head_waits = stream.fin_waits = False
        stream.farewell = None
        if stream.open_waits:
            stream.open_waits = False
            stream.context.queued -= 1
            self.retire_if_unused(stream.context)
            # It was never sent, so no bound on what is sent bounds the number of such streams.
            stream.context.share.flows.discard(stream)

    def drop_incoming(self, stream: StreamState) -> None:
        dropped = stream.incoming.clear()
        stream.window.consume(dropped)
        self.memory.release(dropped)

    def is_over(self, stream: StreamState) -> bool:
        return stream not in self.unsent and self.streams.get(stream.id) is not stream

    def close_if_done(self, stream: StreamState) -> None:
        receiving = stream.receiving
        if (receiving is ENDED or receiving is BROKEN) and stream.all_said:
            self.close_stream(stream)

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

    def _forget(self, stream: StreamState) -> None:
        self.memory.release(stream.head_bytes)
        stream.head_bytes = 0
        self.scheduler.leave(stream.context.share)
        if self.phase is Phase.CLOSED:
            self.leave_memory_if_done()

    def charge_head(self, stream: StreamState, count: int) -> None:
        stream.head_bytes += count
        self.memory.charge(count)

    def queue_reset(self, stream_id: int, code: StreamCode, processed: Processed, reason: str) -> None:
        # Nothing may come after it on this stream, whenever it is sent; until then the number is not known.
        self.unacknowledged_resets[stream_id] = 2**64
        self.control.resets.append(
            (stream_id, frames.reset(stream_id, code, processed, reason, in_line=False))
        )

    # --- memory ---

    def check_memory(self) -> None:
        memory = self.memory
        if memory.full:
            memory.relieve()

    def leave_memory_if_done(self) -> None:
        """Leave the accounts, once the session is over and nothing of it is held: what nobody takes must
        stay within reach of an eviction."""
        if self.phase is Phase.CLOSED and not (self.streams or self.unsent or self.lingering):
            self.memory.leave(self)

    def holders(self) -> Iterable[Holder]:
        return [*self.streams.values(), *self.unsent, *self.lingering]

    def evict(self, holder: Holder) -> None:
        assert isinstance(holder, StreamState)
        code, reason = StreamCode.OVERLOADED, "memory is full"
        processed = Processed.MAYBE if holder.id else Processed.NO
        if holder in self.lingering:
            self.drop_incoming(holder)
            self.tell_broken(holder, code, processed, reason, in_line=False)
            self.forget_if_done(holder)
        elif not self.is_over(holder):
            if holder.id:
                self.queue_reset(holder.id, code, processed, reason)
            self.break_stream(holder, code, processed, reason, in_line=False)
        self.on_eviction()
