"""What a session is made of: the core, the transport that carries it now, and the three tasks that join them.

    reader      transport.receive() → core → wake whoever waits. It never waits for a stream's consumer: what
                is not taken stays in the core, where credit bounds it.
    writer      core → one joined message → transport.send(). It is parked while there is nothing.
    keepalive   waits for the end; an alarm does what is due by time: PING, ACK, or the peer's death.

Everything else (opening, sending, taking, resetting) is synchronous bookkeeping in the core by the task
that wants it, which then unparks the writer. So many tasks' frames are one message: the writer runs after
all of them.

Reader and writer are a `Link`'s, the keepalive is a `Keepalive`; sessions and streams call what is here. Each
link closes its own transport. Whoever makes a multiplexer runs it (`run`) and ends it (`end`).

When the first of the three cannot go on, the transport is lost. Where both sides want to resume, `lose` then
detaches it: reader and writer end, streams stay as they are, and whoever waits goes on waiting, until another
task brings the next transport (`resume`) or the keepalive finds that it was away for too long. A transport
that was left may still be in its last step, so reader and writer look after each step whether theirs is the
one that counts.

It ends when the session's block is left, when the peer ends it, or when a loss cannot be resumed. `end` then
breaks every stream, wakes every waiter and ends the three; the writer may still say goodbye. The body of the
block is not cancelled: it finds out by its own calls, or waits in `Session.wait_closed`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

import trio

from tunnel.accept_queue import AcceptQueue
from tunnel.handshake import read_hello, turn_away
from tunnel.keepalive import Keepalive
from tunnel.link import Link
from tunnel.net.fairness import turns
from tunnel.net.loglimit import LogLimit
from tunnel.net.readiness import Readiness
from tunnel.net.waker import ParkingSpot
from tunnel.protocol.connection import Connection, Phase, Role
from tunnel.protocol.errors import CloseCode, Processed, RemoteProtocolError, StreamCode
from tunnel.protocol.events import GoAway
from tunnel.protocol.memory import Memory
from tunnel.protocol.schedule import OUT
from tunnel.protocol.streams import Context, StreamState
from tunnel.refusals import SessionClosed, farewell_of
from tunnel.settings import Settings
from tunnel.stream import QUEUE_HIGH_BYTES, Stream
from tunnel.websocket.transport import Transport

__all__ = ["Multiplexer"]

log = logging.getLogger("tunnel.session")

# GOAWAYs of a session that are logged at once, before there is one a second: an honest peer says one or two,
# and again after each loss of the transport. 1 MiB of them would be 40,000 lines.
GOAWAYS_TOLD_AT_ONCE = 8
# For what is still queued when the block is left in peace.
FLUSH_S = 1.0

# RFC 6455: going away. It is said where the connection is given up and the session is not: should the peer
# hear it after all, it must not take it for the session's end.
LOST_CODE = 1001
# Said on the connection that carries a session, they mean that the peer has ended it.
_FINAL_CODES = frozenset(int(code) for code in CloseCode)


class Multiplexer:
    """Many streams over one transport at a time."""

    def __init__(self, transport: Transport, role: Role, settings: Settings, memory: Memory | None) -> None:
        # trio.current_time() looks its clock up each time, which costs more than asking it.
        self.now = trio.lowlevel.current_clock().current_time
        self.turns = turns()
        """What the process's sessions share."""
        self.connection = Connection(
            role,
            now=self.now(),
            owner=self,
            memory=Memory(settings.memory_bytes_max, parent=memory),
            wall_offset_s=time.time() - self.now(),
            ping_s=settings.ping_s,
        )
        """The core."""
        self.connection.peer_contexts_max = settings.contexts_max
        self.transport = transport
        """The last one, also when it is lost."""
        self.first = Link(self, transport)
        """What the session begins with."""
        self.link: Link | None = self.first
        """What carries the session; None while it is detached."""
        self.keepalive = Keepalive(self)
        self.readiness: Readiness | None = None
        """What is queued in one of its passes leaves at the end of that."""
        self.accept_queue = AcceptQueue(settings.accept_queue_max)
        self.peer_streams: Callable[[Stream], None] | None = None
        """What is given each stream of the peer, instead of the queue."""
        self.peer_contexts: Callable[[Context], None] | None = None
        """What is given each context of the peer."""
        self.calls_due: list[Callable[[], object]] = []
        """What the core has reported and is handled as soon as the core is done with what it is at."""

        self.peer_going_away: GoAway | None = None
        """What the peer's GOAWAY said, the last one."""
        self.peer_draining: GoAway | None = None
        """The one that asked for other sessions and did not end this one."""
        self.goaways = LogLimit(log, GOAWAYS_TOLD_AT_ONCE)
        self.leaving = trio.Event()
        """The peer has asked for that, or never will."""
        self.ending: tuple[int | None, str] | None = None
        """The code and the reason, once the session is over."""
        self.ended = trio.Event()

        self.emptied = ParkingSpot("another task is waiting for the queue to empty")
        """Who waits until all that is queued has left."""
        self.quiet = ParkingSpot("another task is waiting for the streams to end")
        """Who waits until no stream is open."""
        self.lost = trio.Event()
        """The transport is, or the session is over."""
        self.detaches = 0
        """How often the session went on without one."""
        self._detached_at = 0.0
        self._away_s = 0.0

    @property
    def last_received_s(self) -> float:
        """When the peer was last heard, on trio's clock."""
        return max(self.connection.liveness.received_at, self.transport.last_received_s)

    @property
    def detached(self) -> bool:
        """Whether the session goes on without a transport."""
        return self.link is None and self.ending is None

    @property
    def away(self) -> bool:
        """Whether the session goes on, but its peer has no transport or is in doubt."""
        return (self.link is None or self.connection.liveness.doubted) and self.ending is None

    def away_s(self) -> float:
        """For how long the session had no transport, up to now."""
        if self.detached:
            return self._away_s + self.now() - self._detached_at
        return self._away_s

    # --- what streams do, each a call of the core ---

    def send_head(self, state: StreamState, head: bytes, data: bytes, eof: bool) -> None:
        self.connection.send_head(state, head, eof, data)
        if self.link is not None:
            self.link.wake(whole=eof)

    def send_data(self, state: StreamState, data: bytes, *, eof: bool = False) -> None:
        self.connection.send_data(state, data, eof=eof)
        link = self.link
        # One that has no credit is not in the ring, and there is nothing to wake the writer for.
        if link is not None and state.place is not OUT:
            if state.outgoing.size > QUEUE_HIGH_BYTES:
                link.brimming = True
            link.wake()

    def send_eof(self, state: StreamState) -> None:
        self.connection.send_eof(state)
        if self.link is not None and state.place is not OUT:
            self.link.wake()

    def take(self, state: StreamState, limit: int) -> bytes:
        data = self.connection.take(state, limit, self.now())
        if state.window_due:
            self.wake_writer()
        return data

    def reset(
        self, state: StreamState, code: StreamCode, processed: Processed, reason: str, *, in_line: bool
    ) -> None:
        self.connection.reset(state, code, processed, reason, in_line=in_line)
        self.wake_writer()

    def look_at_wall_clock(self, now: float) -> None:
        """What is said of it from now on is what it shows; it may have been set."""
        self.connection.wall_offset_s = time.time() - now

    def wake_writer(self) -> None:
        """Wake the writer, if there is something to send."""
        link = self.link
        if link is not None and link.writer.task is not None and self.connection.wants_to_send:
            link.writer.unpark()

    # --- what the core reports (protocol.events.SessionOwner) ---

    def on_stream(self, state: StreamState) -> None:
        self.calls_due.append(partial(self._hand_over, Stream(self, state)))

    def on_context(self, context: Context) -> None:
        self.calls_due.append(partial(self._note_context, context))

    def on_goaway(self, goaway: GoAway) -> None:
        self.peer_going_away = goaway
        if goaway.code == CloseCode.DRAINING:
            # The last one of a session says something else.
            self.peer_draining = goaway
            self.leaving.set()
        line = f"{self.transport.peer_name}: the peer is going away: {goaway.reason} ({goaway.code})"
        self.goaways.line(logging.INFO, line, self.now())

    def on_eviction(self) -> None:
        if self.connection.phase is Phase.CLOSED and self.ending is None:
            # Detached, it was what memory was taken back from.
            self.end(None, "memory was short while the tunnel was away")
        if self.calls_due:
            # Out of the midst of whatever needed the memory.
            trio.lowlevel.current_trio_token().run_sync_soon(self.make_calls)
        self.wake_writer()

    def _hand_over(self, stream: Stream) -> None:
        if stream.broken:
            # The peer has RESET it since, so it is nobody's business any more.
            stream.close_nowait()
        elif self.peer_streams is not None:
            self.peer_streams(stream)
        elif self.accept_queue.full:
            waiting = self.accept_queue.streams_max
            stream.reset(
                StreamCode.REFUSED, processed=Processed.NO, reason=f"{waiting} streams wait to be accepted"
            )
            stream.close_nowait()
        else:
            self.accept_queue.put(stream)

    def _note_context(self, context: Context) -> None:
        if self.peer_contexts is not None:
            self.peer_contexts(context)

    def make_calls(self) -> None:
        """Handle what the core has reported; that may bring more."""
        due = self.calls_due
        while due:
            # Off the list first: a call that ends the session, or is a bug, has the others made at the end.
            due.pop(0)()

    def note_quiet(self) -> None:
        """Wake whoever waits for the streams to end, if they have."""
        if not self.connection.stream_count:
            self.quiet.unpark()

    # --- the three tasks ---

    async def run(self) -> None:
        """Keep the session alive until it ends, and carry it on its first link until that is left."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.keepalive.run)
            await self.first.carry()

    # --- over another transport ---

    def lose(self, link: Link, code: int | None, reason: str) -> None:
        """The transport cannot go on. If it is the one that counts, go on without, or end."""
        if self.link is not link or self.ending is not None:
            return
        connection = self.connection
        if code in _FINAL_CODES:
            self.end(code, f"the other end has closed it: {reason}", lost=True)
            return
        # Any other close code means that something between has ended the connection.
        if not connection.resumable:
            self.end(code, f"tunnel lost: {reason}", lost=True)
            return
        log.info(
            "%s: the tunnel is lost (%s), streams that wait: %d",
            link.transport.peer_name,
            reason,
            connection.stream_count,
        )
        self._detach(LOST_CODE, reason)

    def _detach(self, code: int, reason: str) -> None:
        link, connection = self.link, self.connection
        assert link is not None
        self.link = None
        link.leave(code, reason)
        liveness = connection.liveness
        # The first bytes of a message whose end is lost were a sign of life as well.
        liveness.received_at = max(liveness.received_at, link.transport.last_received_s)
        self._detached_at = self.now()
        connection.detach(self._detached_at)
        self.detaches += 1
        self.lost.set()
        self.keepalive.hurry()

    async def resume(self, transport: Transport, greeting: bytes) -> None:
        """Go on over `transport`; see Session.resume."""
        connection, now = self.connection, self.now()
        fault: SessionClosed | RemoteProtocolError | None = None
        try:
            if self.ending is not None:
                raise SessionClosed(*self.ending)
            if connection.role is Role.LISTENER:
                if self.link is not None:
                    self._detach(CloseCode.SUPERSEDED, "superseded by a newer connection of the same session")
                resume = read_hello(greeting).resume
                assert resume is not None
                self.look_at_wall_clock(now)
                connection.attach_listener(resume, now)
            else:
                assert self.link is None
                connection.receive_message(greeting, now)
        except (SessionClosed, RemoteProtocolError) as exc:
            fault = exc
        if fault is not None:
            code, reason = farewell_of(fault)
            # The streams wait for nothing any more.
            self.end(code, reason)
            await turn_away(transport, fault)
            try:
                raise fault
            finally:
                # See open_session.
                del fault
        self.transport = transport
        self.link = link = Link(self, transport)
        self._away_s += now - self._detached_at
        self.lost = trio.Event()
        self.make_calls()
        self.keepalive.hurry()
        await link.carry()

    # --- the end ---

    async def send_out(self) -> None:
        """Wait until what is queued is sent, as far as that goes in FLUSH_S."""
        with trio.move_on_after(FLUSH_S):
            while self.ending is None and self.connection.has_unsent:
                self.wake_writer()
                await self.emptied.park()

    def end(self, code: int | None, reason: str, *, lost: bool = False) -> None:
        """Break every stream and wake every waiter; the first reason stands.

        The peer is told, unless the transport is `lost`.
        """
        if self.ending is not None:
            return
        if self.link is None:
            self._away_s = self.away_s()
        self.ending = code, reason
        # The callback mostly refers to the session: the cycle would last until a garbage collection.
        self.peer_contexts = None
        connection = self.connection
        if connection.phase is Phase.OPEN:
            connection.go_away(CloseCode.NORMAL if code is None else code, 0, 0, reason)
        try:
            connection.close(StreamCode.DETACH_EXPIRED, reason)
            self.make_calls()
        finally:
            # Also behind a bug in what was called: nothing else ends the writer, not even a cancellation.
            self.accept_queue.end(code, reason)
            self.emptied.unpark()
            self.quiet.unpark()
            self.ended.set()
            self.leaving.set()
            self.lost.set()
            self.keepalive.end()
            self.goaways.end(logging.INFO, self.transport.peer_name)
            if self.link is not None:
                self.link.end(lost=lost)
