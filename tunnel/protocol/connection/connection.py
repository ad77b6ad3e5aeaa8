"""One end of a tunnel session without its I/O: one feed, one drain, and what the owner may do in between.

    connection.receive_message(message, now)             the feed: whole frames in, calls to the owners out
    message = connection.data_to_send(limit, now)        the drain: one message of frames, b"" when quiet
    connection.deadlines.tick(now)                       PING and ACK that are due, by deadlines.next()

Each part has one responsibility, and is used directly:

    status       the phase, and what both sides have agreed on
    handshake    the greeting                         resumption   another transport after a loss
    streams      what a stream's owner may do         table        all streams, and what may befall one
    contexts     what many streams share              credit       WINDOW
    resets       RESETs that are not acknowledged     goaways      GOAWAY in both directions
    control      what is sent before any stream       scheduler    which stream sends next
    sent         frames that are not acknowledged     received     frames to acknowledge
    deadlines    what is due by time                  liveness, round_trips    what PINGs tell
    memory       the account                          holdings     what it takes back

`now` is any clock that never goes back, in seconds. The only wall clock is `status.wall_offset_s`, handed in.
"""

from __future__ import annotations

from typing import Final

from tunnel.protocol import frames
from tunnel.protocol.connection.actions import StreamActions
from tunnel.protocol.connection.deadlines import Deadlines
from tunnel.protocol.connection.drain import Drain
from tunnel.protocol.connection.feed import Feed
from tunnel.protocol.connection.handshake import Handshake
from tunnel.protocol.connection.holdings import Holdings
from tunnel.protocol.connection.resumption import Resumption
from tunnel.protocol.connection.stream_feed import StreamFeed
from tunnel.protocol.control import ControlQueue
from tunnel.protocol.errors import RemoteProtocolError, StreamCode
from tunnel.protocol.events import SessionOwner
from tunnel.protocol.ledger import ReceivedLedger, SentLedger
from tunnel.protocol.liveness import PING_IDLE_S, Liveness, RoundTrips
from tunnel.protocol.memory import Memory
from tunnel.protocol.schedule import Scheduler
from tunnel.protocol.session.contexts import Contexts
from tunnel.protocol.session.credit import Credit
from tunnel.protocol.session.goaways import GoAways
from tunnel.protocol.session.resets import Resets
from tunnel.protocol.session.status import CLOSED, GREETING, OPEN, Role, Status
from tunnel.protocol.session.table import StreamTable
from tunnel.protocol.streams import Context, StreamState

__all__ = ["Connection"]


class Connection:
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
        self.role: Final = role
        memory = self.memory = memory or Memory(limit_bytes=128 * 1024 * 1024)
        status = self.status = Status(role, wall_offset_s)
        control = self.control = ControlQueue()
        scheduler = self.scheduler = Scheduler[StreamState]()
        sent, received = self.sent, self.received = SentLedger(memory), ReceivedLedger()
        liveness, round_trips = self.liveness, self.round_trips = (
            Liveness(ping_s, received_at=now),
            RoundTrips(),
        )
        resets = self.resets = Resets(0 if role is Role.DIALER else 1, control)
        goaways = self.goaways = GoAways(control)
        contexts = self.contexts = Contexts(memory, scheduler, control)
        table = self.table = StreamTable(status, memory, scheduler, contexts, resets)
        credit = self.credit = Credit(status, memory, control, round_trips)
        self.streams = StreamActions(status, memory, scheduler, goaways, table, credit)
        self.drain = Drain(
            status, memory, control, scheduler, sent, received, round_trips, table, goaways, self.fail
        )
        self.resumption = Resumption(
            status, control, sent, received, resets, goaways, liveness, round_trips, self.drain
        )
        self.handshake = Handshake(status, control, self.resumption)
        self.feed = Feed(
            status,
            memory,
            control,
            sent,
            received,
            round_trips,
            contexts,
            table,
            goaways,
            self.handshake,
            self.drain,
            StreamFeed(status, memory, scheduler, table, credit, goaways, owner),
            owner,
        )
        self.deadlines = Deadlines(status, control, received, liveness, round_trips, table, self.close)
        self.holdings = Holdings(status, memory, table, sent, liveness, owner, self.close)
        table.on_forgotten = self.holdings.leave_if_done
        memory.join(self.holdings)
        self.data_to_send: Final = self.drain.message
        """The drain, called with a limit and `now`: one message of what waits, control first, then the
        streams by the scheduler; b"" when nothing does.

        It has `limit` bytes at most, passed by one control frame if need be. Only control goes beyond a full
        ledger.
        """

    # --- the drain ---

    @property
    def wants_to_send(self) -> bool:
        """Whether the drain may have something. It can be wrong to the safe side only."""
        ring, sent = self.scheduler.ring, self.sent
        if (ring.new or ring.old) and not sent.full:
            return True
        return bool(self.control or sent.replaying)

    @property
    def has_unsent(self) -> bool:
        """Whether anything waits to be scheduled or for an acknowledgement; but not for credit."""
        ring = self.scheduler.ring
        if ring.new or ring.old:
            return True
        return bool(self.control or self.sent.replaying)

    @property
    def tells_clock(self) -> bool:
        """Whether what is sent next says `wall_offset_s`."""
        return bool(self.control.pongs or self.control.ping)

    @property
    def message_bytes(self) -> int:
        """The limit for `data_to_send`, by what the link has carried so far."""
        return self.drain.flight.message_bytes

    # --- the feed ---

    def receive_message(self, message: bytes, now: float, frames_max: int = frames.MESSAGE_BYTES_MAX) -> None:
        """Take one message of whole frames. RemoteProtocolError is the end, and the only thing it raises.

        Of more than `frames_max` frames, for some of which a long head counts, the rest is `feed.unread`
        behind it: the next message, or nothing if the transport is lost before. What was taken is counted as
        any message is.
        """
        feed, status = self.feed, self.status
        feed.unread = b""
        if status.failure is not None:
            raise status.failure
        if status.phase is CLOSED:
            return
        self.liveness.received(now)
        try:
            feed.receive(message, now, frames_max)
        except RemoteProtocolError as error:
            self.fail(error)
            raise
        if self.received.due(now):
            self.control.ack_due = True
        memory = self.memory
        if memory.full:
            memory.relieve()

    # --- contexts ---

    def add_context(self, group: int, payload: bytes) -> Context:
        """Announce a context; its index names it in an OPEN. The frame leaves before any OPEN."""
        self.status.check_open()
        return self.contexts.add(group, payload)

    # --- its end ---

    def go_away(self, code: int, drain_ms: int, retry_after_ms: int, reason: str) -> None:
        """Ask the peer to open no more streams here; those that are open go on."""
        self.status.check_open()
        self.goaways.send(self.table.peer_last_id, code, drain_ms, retry_after_ms, reason)

    def reject(self, code: int, reason: str, retry_after_ms: int = 0) -> None:
        """Refuse the peer in the greeting: a GOAWAY that says why is all it will get."""
        self.control.goaway = frames.goaway(0, code, 0, retry_after_ms, reason)
        self.control.keep_goaway()
        self.status.phase = CLOSED

    def fail(self, error: RemoteProtocolError) -> None:
        """The peer broke the protocol: a GOAWAY that says how is all that is left to send."""
        status = self.status
        status.failure = error
        if status.phase is OPEN:
            self.go_away(error.close_code, 0, 0, str(error))
        elif status.phase is GREETING:
            self.control.goaway = frames.goaway(0, error.close_code, 0, 0, str(error))
        self.control.keep_goaway()
        status.phase = CLOSED

    def close(self, code: StreamCode, reason: str) -> None:
        """The session is over: break every stream, and give back what is counted.

        What was received may still be taken.
        """
        self.status.phase = CLOSED
        self.table.break_all(code, reason)
        self.contexts.clear()
        self.control.keep_goaway()
        self.sent.clear()
        self.holdings.leave_if_done()
