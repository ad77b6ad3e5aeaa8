"""A live multiplexer: the core, a transport, and the three tasks that join them.

    reader      transport.receive() → core → wake whoever waits. It never waits for a stream's consumer: what
                is not taken stays in the core, where credit bounds it.
    writer      core → one joined message → transport.send(). It is parked while there is nothing.
    keepalive   waits for the end; an alarm does what is due by time: PING, ACK, or the peer's death.

Everything else (opening, sending, taking, resetting) is synchronous bookkeeping in the core by the task
that wants it, which then unparks the writer. So many tasks' frames are one message: the writer runs after
all of them.

When the first of the three cannot go on, the transport is lost. Where both sides want to resume, `_lose` then
detaches it: reader and writer end, streams stay as they are, and whoever waits goes on waiting, until another
task brings the next transport (`resume`) or the keepalive finds that it was away for too long. A transport
that was left may still be in its last step, so reader and writer look after each step whether theirs is the
one that counts.

The session ends when its block is left, when the peer ends it, or when a loss cannot be resumed. `_die` then
breaks every stream, wakes every waiter and ends the three; the writer may still say goodbye. The body of the
block is not cancelled: it finds out by its own calls, or waits in `wait_closed`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import assert_never

import trio

from tunnel.accept_queue import AcceptQueue
from tunnel.greeting import Greeted, greet, read_hello
from tunnel.interruptions import UNINTERRUPTED, Interruptions
from tunnel.keepalive import Keepalive
from tunnel.link import FAREWELL_S, Link
from tunnel.parking import ParkingSpot
from tunnel.protocol import events
from tunnel.protocol.connection import Connection, Phase, Role
from tunnel.protocol.errors import (
    CloseCode,
    LocalProtocolError,
    Processed,
    RemoteProtocolError,
    StreamCode,
)
from tunnel.protocol.frames import Hello, Resume, Welcome
from tunnel.protocol.memory import Memory
from tunnel.protocol.schedule import OUT
from tunnel.protocol.streams import Context, StreamState
from tunnel.readiness import Readiness
from tunnel.refusals import Detached, Draining, SessionClosed, TooManyStreams, farewell_of
from tunnel.settings import Settings
from tunnel.stream import QUEUE_HIGH_BYTES, Stream
from tunnel.transport import Transport, TransportClosed

log = logging.getLogger("tunnel.session")

# For what is still queued when the block is left in peace.
FLUSH_S = 1.0

# RFC 6455: going away. It is said where the connection is given up and the session is not: should the peer
# hear it after all, it must not take it for the session's end.
LOST_CODE = 1001
# Said on the connection that carries a session, they mean that the peer has ended it.
_FINAL_CODES = frozenset(int(code) for code in CloseCode)


@asynccontextmanager
async def open_session(
    transport: Transport,
    role: Role,
    *,
    hello: Hello | None = None,
    answer_hello: Callable[[Hello], Welcome] | None = None,
    settings: Settings | None = None,
    memory: Memory | None = None,
    greeting: bytes | None = None,
) -> AsyncIterator[Session]:
    """Greet the peer, then run the session until the block is left; the transport is closed in any case.

    The DIALER says `hello`; the LISTENER answers with what `answer_hello` returns for the peer's, or
    refuses by raising Rejected in it. `memory` is the process's account. `greeting` is the first message of
    the peer, when it was received already (see `tunnel.greeting`); a dialer has said its hello then. Raises
    Rejected, SessionClosed, RemoteProtocolError before the block begins, and none of its own in the block.
    """
    session = Session(transport, role, settings or Settings(), memory)
    try:
        session._begin(
            await greet(
                session._connection,
                transport,
                session._settings,
                hello=hello or Hello(),
                answer_hello=answer_hello,
                message=greeting,
            )
        )
    except BaseException as exc:
        session._die(*farewell_of(exc))
        with trio.move_on_after(FAREWELL_S, shield=True):
            await session._first.refuse()
        with trio.move_on_after(FAREWELL_S, shield=True):
            await session._first.close()
        raise
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session._run)
        try:
            yield session
        except Exception as exc:
            # Kept out of the nursery, which would wrap it: the caller's own exceptions pass as they are.
            failure = exc
        else:
            await session._send_out()
        finally:
            session._die(CloseCode.NORMAL, "closed here")
    if failure is not None:
        try:
            raise failure
        finally:
            # Its traceback holds this frame: had the frame the exception, the session would live on until a
            # garbage collection.
            del failure


class Session:
    """One end of an open tunnel. Made by open_session."""

    def __init__(self, transport: Transport, role: Role, settings: Settings, memory: Memory | None) -> None:
        self.role = role
        self.local: Hello | Welcome = Hello()
        self.peer: Hello | Welcome = Hello()
        self.session_id = ""
        self.peer_going_away: events.GoAwayReceived | None = None
        """What the peer's GOAWAY said, the last one."""
        self._transport = transport
        """The last one, also when it is lost."""
        self._first = Link(self, transport)
        self._link: Link | None = self._first
        """What carries the session; None while it is detached."""
        self._settings = settings
        # trio.current_time() looks its clock up each time, which costs more than asking it.
        self._now = trio.lowlevel.current_clock().current_time
        self._connection = Connection(
            role,
            now=self._now(),
            memory=Memory(settings.memory_bytes_max, parent=memory),
            wall_offset_s=time.time() - self._now(),
        )
        self._connection.on_eviction = self._dispatch_waiting
        # What a stream does that concerns nobody but the core.
        self._take_rest = self._connection.take_rest
        self._discard = self._connection.discard_received
        self._keepalive = Keepalive(self)
        self._readiness: Readiness | None = None
        self._emptied = ParkingSpot("another task is waiting for the queue to empty")
        self._leaver = ParkingSpot("another task is waiting for the streams to end")
        self._accept_queue = AcceptQueue(settings.accept_queue_max)
        self._on_context: Callable[[Context], None] | None = None
        # What streams are to call (Stream.on_answer), as soon as the core is done with what it is at.
        self._told: list[Callable[[], None]] = []
        self._ending: tuple[int | None, str] | None = None
        self._ended = trio.Event()
        self._leaving = trio.Event()
        self._farewell: events.GoAwayReceived | None = None
        self._lost = trio.Event()
        self.detaches = 0
        """How often its transport was lost and the session went on: 0, it has gone through nothing."""
        self._detached_at = 0.0
        self._away_s = 0.0

    def __repr__(self) -> str:
        state = (
            "closed"
            if self.closed
            else "detached"
            if self.detached
            else "draining"
            if self.draining
            else "open"
        )
        return f"<Session {self.session_id} {self.role.value} {state} {self._transport.peer_name}>"

    # --- what it is ---

    @property
    def closed(self) -> bool:
        return self._ending is not None

    @property
    def draining(self) -> bool:
        """Either side has said GOAWAY."""
        return self._connection.going_away or self._connection.told_to_go

    @property
    def may_open(self) -> bool:
        """Whether open_stream would open one now.

        Our own GOAWAY is no hindrance: it asks the peer to open no more, and to look for another session.
        """
        connection = self._connection
        if self._ending is not None or not connection.may_open:
            return False
        return self._link is not None or not connection.too_late_to_open(self._now())

    @property
    def detached(self) -> bool:
        """The transport is lost and was not replaced yet; the streams wait for that."""
        return self._link is None and self._ending is None

    @property
    def resumable(self) -> bool:
        """Whether both sides want the session to go on when its transport is lost."""
        return self._connection.resumable

    @property
    def interruptions(self) -> Interruptions:
        if not self.detaches:
            return UNINTERRUPTED
        connection = self._connection
        away_s = self._away_s
        if self.detached:
            away_s += self._now() - connection.detached_at
        return Interruptions(self.detaches, away_s, connection.sent.replayed_frames)

    @property
    def stream_count(self) -> int:
        return self._connection.stream_count

    @property
    def rtt_s(self) -> float | None:
        """The least round trip seen, None before the first PONG."""
        return self._connection.rtt_s

    @property
    def last_received_s(self) -> float:
        """When the peer was last heard, on trio's clock."""
        return max(self._connection.liveness.received_at, self._transport.last_received_s)

    @property
    def peer_wall_clock_s(self) -> float | None:
        """What the peer's wall clock says now, by WELCOME and PING; None where neither has told."""
        offset_s = self._connection.peer_wall_offset_s
        return None if offset_s is None else self._now() + offset_s

    @property
    def peer_name(self) -> str:
        return self._transport.peer_name

    @property
    def memory(self) -> Memory:
        """The session's own account."""
        return self._connection.memory

    # --- what it does ---

    def open_stream(self, head: bytes, *, context: int, eof: bool = False) -> Stream:
        """Open a stream under a context of ours; with `eof` nothing follows the head.

        Raises SessionClosed, Draining, TooManyStreams or Detached, and then nothing was sent. While the
        session is detached the stream waits for the next transport, until 2 s after the last one was lost;
        then it is reset with REFUSED, not processed.
        """
        connection, link = self._connection, self._link
        if link is None:
            self._check_may_open()
        was_idle = not (connection.streams or connection.unsent)
        try:
            state = connection.open_stream(head, context, eof, self._now())
        except LocalProtocolError:
            self._check_may_open()
            raise
        if state not in connection.unsent:
            # It was evicted before anybody could be told.
            raise TooManyStreams(f"the memory for streams is full, with {self.stream_count} open")
        stream = Stream(self, state)
        if was_idle:
            self._keepalive.note_busy()
        if link is None:
            self._keepalive.hurry()
        else:
            link.wake()
        return stream

    def _check_may_open(self) -> None:
        """Raise what stands in the way of a new stream. The core has no word for each of these."""
        connection, now = self._connection, self._now()
        if self._ending is not None:
            raise SessionClosed(*self._ending)
        if connection.told_to_go:
            raise Draining("the peer is going away")
        if connection.opened_here >= connection.peer.max_streams:
            raise TooManyStreams(f"{self.stream_count} streams are open")
        if self._link is None and connection.too_late_to_open(now):
            raise Detached(f"the tunnel is away since {now - connection.detached_at:.0f} s")

    async def accept(self) -> Stream:
        """Wait for the next stream that the peer opens. One task accepts. Raises SessionClosed at the end.

        When cancelled no stream is lost.
        """
        return await self._accept_queue.accept()

    def accept_nowait(self) -> Stream | None:
        """Return the next stream that the peer has opened, None where accept would wait.

        Raises SessionClosed.
        """
        return self._accept_queue.accept_nowait()

    def on_stream(self, call: Callable[[Stream], None] | None) -> None:
        """Have `call` called for each stream that the peer opens, and for those that wait to be accepted.

        It spares a task switch for each. It stands in the way of every other stream, so it may start a task
        for the stream, or reset it, and must neither wait nor raise. The end of the session is `wait_closed`.
        None takes it back.
        """
        self._accept_queue.give_to(call)

    def on_context(self, call: Callable[[Context], None]) -> None:
        """Have `call` called for each context that the peer adds, and now for those that are live.

        It is called before any stream that names the context is opened here. It stands in the way of every
        stream, so it must neither wait nor raise.
        """
        self._on_context = call
        for context in list(self._connection.peer_contexts.values()):
            call(context)

    def flush_after(self, readiness: Readiness) -> None:
        """Have what is queued in a pass of `readiness` leave at its end, if nothing is being sent then."""
        self._readiness = readiness

    def add_context(self, group: int, payload: bytes) -> int:
        """Tell the peer something that many streams share; returns the index that open_stream names.

        `group` is the key of fairness: all streams of one group have one share of the link.
        """
        if self._ending is not None:
            raise SessionClosed(*self._ending)
        context = self._connection.add_context(group, payload)
        self._kick()
        return context.index

    def retire_context(self, index: int) -> None:
        """Forget a context; streams that are open under it go on. Nothing happens when the session is
        over."""
        if self._ending is None:
            self._connection.retire_context(index)
            self._kick()

    def go_away(
        self,
        *,
        code: int = CloseCode.DRAINING,
        drain_ms: int = 0,
        retry_after_ms: int = 0,
        reason: str = "",
    ) -> None:
        """Ask the peer to open no more streams here. Those that are open go on."""
        if self._ending is None:
            self._connection.go_away(code, drain_ms, retry_after_ms, reason)
            self._kick()

    def end(self, code: int, reason: str) -> None:
        """End the session now; the peer is told the code and the reason. Nothing happens when it is over."""
        self._die(code, reason)

    async def answers(self, within_s: float) -> bool:
        """Ask the peer for a sign of life, and return whether any came within this long.

        Any bytes are one. False at once when the session is over.
        """
        await trio.lowlevel.checkpoint()
        if self._ending is not None:
            return False
        return await self._keepalive.answers(within_s)

    async def wait_quiet(self) -> None:
        """Wait until no stream is open: everything that was said on one has left. Returns at the end, too."""
        await trio.lowlevel.checkpoint()
        while self._ending is None and self.stream_count:
            await self._leaver.park()

    async def wait_going_away(self) -> events.GoAwayReceived | None:
        """Wait until the peer says that it will go away; None when the session ends without that.

        It may have ended behind that word.
        """
        await self._leaving.wait()
        return self._farewell

    async def wait_closed(self) -> str:
        """Wait for the end of the session; returns why."""
        await self._ended.wait()
        assert self._ending is not None
        return self._ending[1]

    # --- over another transport ---

    async def wait_detached(self) -> bool:
        """Wait until the session has no transport; False when it ends instead."""
        while self._link is not None and self._ending is None:
            await self._lost.wait()
        await trio.lowlevel.checkpoint()
        return self._ending is None

    def hello_again(self) -> Hello:
        """The dialer's HELLO for the next transport, which names this session."""
        return self._connection.hello_again()

    def may_resume(self, resume: Resume) -> bool:
        """Whether the listener can go on with a dialer that says this; both must still have what the other
        lacks."""
        return self._ending is None and self._connection.may_attach(resume)

    def is_outdated(self, resume: Resume) -> bool:
        """Whether the dialer has been back since it said this: it was held up on the way, and nobody waits
        for an answer to it."""
        return self._connection.is_outdated(resume)

    def abandon(self, reason: str) -> None:
        """End the session as if it had been away for too long."""
        self._die(None, reason, lost=True)

    async def resume(self, transport: Transport, greeting: bytes) -> None:
        """Go on over `transport`, until it is lost as well or the session ends; it is closed in any case.

        `greeting` is the peer's first message on it (see `tunnel.greeting`): a HELLO that `may_resume`, or
        the WELCOME that answered `hello_again`. A transport that the listener still has is superseded. Raises
        SessionClosed when the session has ended meanwhile, and RemoteProtocolError when the listener's
        numbers do not fit, which ends it. Cancelled, it ends the session.
        """
        connection, now = self._connection, self._now()
        link = Link(self, transport)
        fault: Exception | None = None
        happened: list[events.Event] = []
        try:
            if self._ending is not None:
                raise SessionClosed(*self._ending)
            if self.role is Role.LISTENER:
                if self._link is not None:
                    self._detach(CloseCode.SUPERSEDED, "superseded by a newer connection of the same session")
                resume = read_hello(greeting).resume
                assert resume is not None
                connection.attach_listener(resume, now)
            else:
                assert self._link is None
                _, *happened = connection.receive_message(greeting, now)
        except (SessionClosed, RemoteProtocolError) as exc:
            fault = exc
        if fault is not None:
            code, reason = link.farewell = farewell_of(fault)
            # The streams wait for nothing any more.
            self._die(code, reason)
            await link.close()
            try:
                raise fault
            finally:
                # See open_session.
                del fault
        self._link, self._transport = link, transport
        self._away_s += now - self._detached_at
        self._lost = trio.Event()
        self._dispatch(happened)
        self._tell()
        self._keepalive.hurry()
        await self._carry(link)

    def _lose(self, link: Link, code: int | None, reason: str) -> None:
        """The transport cannot go on. If it is the one that counts, go on without, or end."""
        if self._link is not link or self._ending is not None:
            return
        # Any other close code means that something between has ended the connection.
        if not self._connection.resumable or code in _FINAL_CODES:
            self._die(code, f"tunnel lost: {reason}", lost=True)
            return
        log.info("%s: the tunnel is lost, %d streams wait: %s", self.peer_name, self.stream_count, reason)
        self._detach(LOST_CODE, reason)

    def _detach(self, code: int, reason: str) -> None:
        link, connection = self._link, self._connection
        assert link is not None
        self._link = None
        link.leave(code, reason)
        liveness = connection.liveness
        # The first bytes of a message whose end is lost were a sign of life as well.
        liveness.received_at = max(liveness.received_at, link.transport.last_received_s)
        self._detached_at = self._now()
        connection.detach(self._detached_at)
        self.detaches += 1
        self._lost.set()
        self._keepalive.hurry()

    # --- what its streams do, each a call of the core ---

    def _send_head(self, state: StreamState, head: bytes, data: bytes, eof: bool) -> None:
        self._connection.send_head(state, head, eof, data)
        if self._link is not None:
            self._link.wake()

    def _send_data(self, state: StreamState, data: bytes, *, eof: bool = False) -> None:
        self._connection.send_data(state, data, eof=eof)
        link = self._link
        # One that has no credit is not in the ring, and there is nothing to wake the writer for.
        if link is not None and state.place is not OUT:
            link.brimming = link.brimming or state.outgoing.size > QUEUE_HIGH_BYTES
            link.wake()

    def _send_eof(self, state: StreamState) -> None:
        self._connection.send_eof(state)
        if self._link is not None and state.place is not OUT:
            self._link.wake()

    def _take(self, state: StreamState, limit: int) -> bytes:
        data = self._connection.take(state, limit, self._now())
        if state.window_due:
            self._kick()
        return data

    def _reset(
        self, state: StreamState, code: StreamCode, processed: Processed, reason: str, *, in_line: bool
    ) -> None:
        self._connection.reset(state, code, processed, reason, in_line=in_line)
        self._kick()

    def _note_quiet(self) -> None:
        if not self.stream_count:
            self._leaver.unpark()

    def _kick(self) -> None:
        """Wake the writer, if there is something to send."""
        link = self._link
        if link is not None and link.writer.task is not None and self._connection.wants_to_send:
            link.writer.unpark()

    # --- events ---

    def _dispatch(self, happened: list[events.Event]) -> None:
        for event in happened:
            match event:
                case events.StreamOpened():
                    self._queue_for_accept(event.stream)
                # What happened to a stream that was left, or was not accepted yet when it happened; all
                # others have been told.
                case events.DataReceived(stream):
                    if stream.owner is not None:
                        stream.owner.on_data()
                case events.HeadReceived(stream):
                    if stream.owner is not None:
                        stream.owner.on_head()
                case events.SendQueueDrained(stream):
                    if stream.owner is not None:
                        stream.owner.on_room()
                case events.StreamBroken(stream):
                    if stream.owner is not None:
                        stream.owner.on_broken(
                            event.code, event.processed, event.reason, in_line=event.in_line
                        )
                case events.GoAwayReceived():
                    self.peer_going_away = event
                    if event.code == CloseCode.DRAINING:
                        # The last one of a session says something else.
                        self._farewell = event
                        self._leaving.set()
                    log.info("%s: the peer is going away: %s (%d)", self.peer_name, event.reason, event.code)
                case events.ContextAdded(context):
                    if self._on_context is not None:
                        self._on_context(context)
                case events.ContextRetired():
                    pass
                case events.HelloReceived() | events.WelcomeReceived():
                    raise AssertionError("the core greets once")
                case _:
                    assert_never(event)

    def _dispatch_waiting(self) -> None:
        self._dispatch(self._connection.take_events())
        if self._connection.phase is Phase.CLOSED and self._ending is None:
            # Detached, it was what memory was taken back from.
            self._die(None, "memory was short while the tunnel was away")
        if self._told:
            # Out of the midst of whatever needed the memory.
            trio.lowlevel.current_trio_token().run_sync_soon(self._tell)
        self._kick()

    def _tell(self) -> None:
        """Call what streams are to call; more may come to it meanwhile."""
        for tell in self._told:
            tell()
        self._told.clear()

    def _queue_for_accept(self, state: StreamState) -> None:
        queue = self._accept_queue
        if queue.call is not None:
            queue.call(Stream(self, state))
        elif queue.full:
            self._connection.reset(
                state, StreamCode.REFUSED, Processed.NO, f"{queue.streams_max} streams wait to be accepted"
            )
        else:
            queue.put(Stream(self, state))

    # --- the three tasks ---

    def _begin(self, greeted: Greeted) -> None:
        self.local, self.peer, self.session_id = greeted.local, greeted.peer, greeted.session_id
        self._dispatch(greeted.happened)

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keepalive.run)
            await self._carry(self._first)

    async def _carry(self, link: Link) -> None:
        """Read and write on a link until it is left."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, link)
                nursery.start_soon(link.write)
        finally:
            with trio.move_on_after(FAREWELL_S, shield=True):
                await link.close()

    async def _read(self, link: Link) -> None:
        transport, connection, keepalive = link.transport, self._connection, self._keepalive
        try:
            with link.listening:
                while True:
                    message = await transport.receive()
                    if self._link is not link:
                        return
                    was_idle = not (connection.streams or connection.unsent)
                    happened = connection.receive_message(message, self._now())
                    if happened:
                        self._dispatch(happened)
                    if self._told:
                        self._tell()
                    if keepalive.heard is not None:
                        keepalive.note_heard()
                    if self._leaver.task is not None:
                        self._note_quiet()
                    self._kick()
                    ack_at = connection.received.due_at
                    if ack_at is not None and ack_at < keepalive.alarm.due_at:
                        keepalive.hurry()
                    elif was_idle:
                        keepalive.note_busy()
        except TransportClosed as exc:
            self._lose(link, exc.code, exc.reason)
        except RemoteProtocolError as exc:
            log.warning("%s: the peer broke the protocol: %s", self.peer_name, exc)
            self._die(*farewell_of(exc))
        finally:
            if self._link is link:
                # This is a cancellation, or a bug: the writer is shielded, and goes by our word only.
                self._die(CloseCode.NORMAL, "cancelled here")

    # --- the end ---

    def _die(self, code: int | None, reason: str, *, lost: bool = False) -> None:
        """Break every stream and wake every waiter; the first reason stands.

        The peer is told, unless the transport is `lost`.
        """
        if self._ending is not None:
            return
        self._ending = code, reason
        connection = self._connection
        if self._link is None:
            self._away_s += self._now() - self._detached_at
        if connection.phase is Phase.OPEN:
            connection.go_away(CloseCode.NORMAL if code is None else code, 0, 0, reason)
        connection.close(StreamCode.DETACH_EXPIRED, reason)
        self._dispatch(connection.take_events())
        self._tell()
        self._accept_queue.end(code, reason)
        self._emptied.unpark()
        self._leaver.unpark()
        self._ended.set()
        self._leaving.set()
        self._lost.set()
        self._keepalive.end()
        if self._link is not None:
            self._link.end(lost=lost)

    async def _send_out(self) -> None:
        """Wait until what is queued is sent, as far as that goes in FLUSH_S."""
        with trio.move_on_after(FLUSH_S):
            while self._ending is None and self._connection.has_unsent:
                self._kick()
                await self._emptied.park()
