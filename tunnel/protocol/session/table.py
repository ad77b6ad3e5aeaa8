"""The streams of a session, and what may befall one.

A stream is in one of three tables. `unsent`: its OPEN waits in the queue, it has no id. `by_id`: it is on the
wire. `lingering`: it is over on the wire, but what was received is not taken yet. Then it is forgotten, and
with it everything that it was charged for.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from tunnel.protocol.errors import Processed, StreamCode
from tunnel.protocol.memory import Memory
from tunnel.protocol.schedule import OUT, Scheduler
from tunnel.protocol.session.contexts import Contexts
from tunnel.protocol.session.resets import Resets
from tunnel.protocol.session.status import CLOSED, Role, Status
from tunnel.protocol.state import ENDED, Half, Step, after
from tunnel.protocol.streams import Context, StreamState
from tunnel.protocol.window import NO_WINDOW, ReceiveWindow

__all__ = ["LAST_STREAM_ID", "LEFT_BEHIND_MAX", "StreamTable"]

LAST_STREAM_ID = 2**31 - 1
# Streams of a group that are over and still in its ring, beside as many as live.
LEFT_BEHIND_MAX = 8


def _no_call() -> None: ...


@attrs.define(eq=False)
class StreamTable:
    status: Status
    memory: Memory
    scheduler: Scheduler[StreamState]
    contexts: Contexts
    resets: Resets
    by_id: dict[int, StreamState] = attrs.field(init=False, factory=dict)
    unsent: dict[StreamState, None] = attrs.field(init=False, factory=dict)
    lingering: dict[StreamState, None] = attrs.field(init=False, factory=dict)
    next_id: int = attrs.field(init=False)
    """Of the stream that is opened here next."""
    peer_last_id: int = attrs.field(init=False, default=0)
    opened_here: int = attrs.field(init=False, default=0)
    """How many of the open streams were opened here."""
    opened_there: int = attrs.field(init=False, default=0)
    """How many of them the peer opened."""
    on_forgotten: Callable[[], None] = attrs.field(init=False, default=_no_call)
    """Is called when nothing is left of a stream, and the session is over."""

    def __attrs_post_init__(self) -> None:
        self.next_id = 1 if self.status.role is Role.DIALER else 2

    @property
    def count(self) -> int:
        """How many streams are open."""
        return len(self.by_id) + len(self.unsent)

    def new(
        self, context: Context, head: bytes, sending: Half, receiving: Half, now: float, opened_here: bool
    ) -> StreamState:
        """Make a stream with one head; the caller puts it into a table and charges memory for the head."""
        context.share.users += 1
        status = self.status
        size = status.local.initial_window
        window = NO_WINDOW if receiving is ENDED else ReceiveWindow(size, size, 0, now)
        return StreamState(
            context, opened_here, head, sending, receiving, window, status.peer.initial_window, now
        )

    def activate(self, stream: StreamState) -> None:
        """Put a stream that has something to send into the ring; one that is in it keeps its place."""
        if stream.place is OUT and stream.ready:
            self.scheduler.activate(stream.context.share, stream)

    def is_over(self, stream: StreamState) -> bool:
        return stream not in self.unsent and self.by_id.get(stream.id) is not stream

    # --- its end ---

    def fault(self, stream: StreamState, code: StreamCode, reason: str) -> None:
        """The peer broke the rules of this stream alone: RESET it, and report that to its owner."""
        processed = Processed.MAYBE if stream.announced else Processed.NO
        self.resets.send(stream.id, code, processed, reason)
        self.break_stream(stream, code, processed, reason, in_line=False)

    def break_stream(
        self, stream: StreamState, code: StreamCode, processed: Processed, reason: str, *, in_line: bool
    ) -> None:
        """End a stream under its owner: drop what is queued, and report it."""
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
        self.close(stream)

    def break_all(self, code: StreamCode, reason: str) -> None:
        """The session is over. What was received may still be taken.

        An OPEN that was never sent was surely not processed; of the others that is unknown.
        """
        for stream in [*self.unsent, *self.by_id.values()]:
            processed = Processed.MAYBE if stream.id else Processed.NO
            self.break_stream(stream, code, processed, reason, in_line=True)

    def drop_outgoing(self, stream: StreamState) -> None:
        self.memory.release(stream.outgoing.held_bytes)
        stream.outgoing.clear()
        never_sent = stream.head_waits and not stream.id
        stream.head_waits = stream.fin_waits = False
        stream.farewell = None
        if never_sent:
            stream.context.queued -= 1
            self.contexts.retire_if_unused(stream.context)
        share = stream.context.share
        if len(share.flows) > 2 * share.users + LEFT_BEHIND_MAX:
            # The ring removes them as it turns, and it stands still while the ledger is full. Nothing of
            # these need have been sent, so their number would have no bound.
            share.flows.sweep()

    def drop_incoming(self, stream: StreamState) -> None:
        dropped = stream.incoming.clear()
        stream.window.consume(dropped)
        self.memory.release(dropped)

    def close(self, stream: StreamState) -> None:
        """Remove a stream that is over on the wire; what was received lingers until it is taken."""
        if stream.id:
            del self.by_id[stream.id]
        else:
            del self.unsent[stream]
        if stream.opened_here:
            self.opened_here -= 1
        else:
            self.opened_there -= 1
        if stream.incoming.size:
            self.lingering[stream] = None
        else:
            self.forget(stream)

    def forget_if_taken(self, stream: StreamState) -> None:
        """Forget a stream that lingers, when all of it is taken."""
        if stream.incoming.size == 0:
            del self.lingering[stream]
            self.forget(stream)

    def forget(self, stream: StreamState, taken: int = 0) -> None:
        """Forget a stream, of which the last `taken` bytes are not given back to memory yet."""
        self.memory.release(stream.head_bytes + taken)
        stream.head_bytes = 0
        self.scheduler.leave(stream.context.share)
        if self.status.phase is CLOSED:
            self.on_forgotten()
