"""The life of a session: its links one after the other, what its peer says of its end, and its end.

A session runs three tasks over one transport at a time:

    reader      transport.receive() → core → the streams' owners. It never waits for a stream's consumer: what
                is not taken stays in the core, bounded by credit.
    writer      core → one joined message → transport.send(). It is parked while there is nothing to send.
    keepalive   waits for the end; its timer does what is due by time: PING, ACK, or the peer's death.

Reader and writer belong to a `Link`, which also closes its transport. Everything else (opening, sending,
taking, resetting) is synchronous bookkeeping in the core, followed by a wakeup of the writer (`Driver`).

When reader, writer or keepalive cannot go on, the transport is lost (`lose`). If both sides want to resume,
the session detaches: reader and writer end, streams stay as they are, and tasks go on waiting. Another task
brings the next transport (`resume`), or the keepalive finds that the peer was away for too long. A link that
was left may still be in its last step, so reader and writer check after each step whether their link is the
current one.

The session ends (`end`) when its block is left, when the peer ends it, or when a loss cannot be resumed. That
breaks every stream, wakes every waiting task and ends the three tasks; the writer may still say goodbye. The
body of the block is not cancelled: its own calls fail, or it waits in `Session.wait_closed`.
"""

from __future__ import annotations

import logging
from functools import partial

import trio

from tunnel.driver import Carrier, Driver
from tunnel.handshake import read_hello, turn_away
from tunnel.inbox import Inbox
from tunnel.keepalive import Keepalive
from tunnel.link import Link
from tunnel.net.loglimit import LogLimit
from tunnel.protocol.connection import Phase, Role
from tunnel.protocol.errors import CloseCode, RemoteProtocolError, StreamCode
from tunnel.protocol.events import GoAway
from tunnel.protocol.memory import Memory
from tunnel.protocol.streams import Context, StreamState
from tunnel.refusals import SessionClosed, farewell_of
from tunnel.settings import Settings
from tunnel.stream import Stream
from tunnel.websocket.transport import Transport

__all__ = ["Lifecycle"]

log = logging.getLogger("tunnel.session")

# GOAWAYs of a session that are logged before the limit of one a second applies: an honest peer says one or
# two, and again after each loss of the transport. 1 MiB of them would be 40,000 lines.
GOAWAYS_LOGGED_AT_ONCE = 8
# For what is still queued when the session's block is left without an exception.
FLUSH_S = 1.0

# RFC 6455: going away. It closes a connection whose session goes on, so the peer must not take it for the
# session's end.
LOST_CODE = 1001
# With these the peer ends the session, and not only the connection.
_FINAL_CODES = frozenset(int(code) for code in CloseCode)


class Lifecycle:
    """Owns the parts of a session, and decides when its transport is lost and when it ends."""

    def __init__(self, transport: Transport, role: Role, settings: Settings, memory: Memory | None) -> None:
        account = Memory(settings.memory_bytes_max, parent=memory)
        self.driver = Driver(role, account, settings.ping_s, self)
        self.connection = self.driver.connection
        self.connection.contexts.peers_max = settings.contexts_max
        self.inbox = Inbox(self.driver, settings.accept_queue_max)
        self.keepalive = Keepalive(self.driver, self)
        self.transport = transport
        """The last one, also when it is lost."""
        self.first = Link(self.driver, self, self.keepalive, transport)
        """The link that the session begins with."""
        self.driver.link = self.first

        self.peer_going_away: GoAway | None = None
        """The peer's last GOAWAY."""
        self.peer_draining: GoAway | None = None
        """The peer's last GOAWAY that asked for other sessions and did not end this one."""
        self.leaving = trio.Event()
        """The peer has said such a GOAWAY, or the session is over."""
        self._goaways = LogLimit(log, GOAWAYS_LOGGED_AT_ONCE)
        self.ending: tuple[int | None, str] | None = None
        self.ended = trio.Event()
        self.lost = trio.Event()
        self.found = trio.Event()
        """The session has a transport again, or is over; another event for each loss."""
        self.detaches = 0
        """How often the session went on without a transport."""
        self._detached_at = 0.0
        self._away_s = 0.0

    @property
    def detached(self) -> bool:
        """Whether the session goes on without a transport."""
        return self.driver.link is None and self.ending is None

    def away_s(self) -> float:
        """For how long the session had no transport, up to now."""
        if self.detached:
            return self._away_s + self.driver.now() - self._detached_at
        return self._away_s

    # --- what the core reports (protocol.events.SessionOwner) ---

    def on_stream(self, state: StreamState) -> None:
        self.driver.due.append(partial(self.inbox.put_stream, Stream(self.driver, state)))

    def on_context(self, context: Context) -> None:
        self.driver.due.append(partial(self.inbox.put_context, context))

    def on_goaway(self, goaway: GoAway) -> None:
        self.peer_going_away = goaway
        if goaway.code == CloseCode.DRAINING:
            # The GOAWAY that ends the session has another code.
            self.peer_draining = goaway
            self.leaving.set()
        line = f"{self.transport.peer_name}: the peer is going away: {goaway.reason} ({goaway.code})"
        self._goaways.line(logging.INFO, line, self.driver.now())

    def on_eviction(self) -> None:
        if self.connection.status.phase is Phase.CLOSED and self.ending is None:
            # The detached session itself was evicted.
            self.end(None, "memory was short while the tunnel was away")
        if self.driver.due:
            # Not within the call that needed the memory.
            trio.lowlevel.current_trio_token().run_sync_soon(self.driver.run_due)
        self.driver.wake_writer()

    # --- its links ---

    async def run(self) -> None:
        """Keep the session alive until it ends, and carry it on its first link until that is left."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.keepalive.run)
            await self.first.carry()

    def lose(self, link: Carrier, code: int | None, reason: str) -> None:
        """A transport cannot go on. If it is the current one, the session detaches or ends."""
        if self.driver.link is not link or self.ending is not None:
            return
        if code in _FINAL_CODES:
            self.end(code, f"the other end has closed it: {reason}", lost=True)
            return
        # Any other close code means that something between has ended the connection.
        if not self.connection.resumption.resumable:
            self.end(code, f"tunnel lost: {reason}", lost=True)
            return
        log.info(
            "%s: the tunnel is lost (%s), streams that wait: %d",
            link.transport.peer_name,
            reason,
            self.connection.table.count,
        )
        self._detach(LOST_CODE, reason)

    def _detach(self, code: int, reason: str) -> None:
        link, connection = self.driver.link, self.connection
        assert link is not None
        self.driver.link = None
        link.leave(code, reason)
        liveness = connection.liveness
        # The first bytes of a message whose end is lost were a sign of life as well.
        liveness.received_at = max(liveness.received_at, link.transport.last_received_s)
        self._detached_at = self.driver.now()
        connection.resumption.detach(self._detached_at)
        self.detaches += 1
        self.found = trio.Event()
        self.lost.set()
        self.keepalive.hurry()

    async def resume(self, transport: Transport, greeting: bytes) -> None:
        """Go on over `transport`, until it is lost as well or the session ends; it is closed in any case.

        `greeting` is the peer's first message on it (see `tunnel.handshake`): a HELLO that `may_resume`, or
        the WELCOME that answered `hello_again`. A transport that the listener still has is superseded. Raises
        SessionClosed when the session has ended meanwhile, and RemoteProtocolError when the listener's
        numbers do not fit, which ends it. Cancelled, it ends the session.
        """
        now = self.driver.now()
        fault: SessionClosed | RemoteProtocolError | None = None
        try:
            self._attach(greeting, now)
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
        self.driver.link = link = Link(self.driver, self, self.keepalive, transport)
        self._away_s += now - self._detached_at
        self.lost = trio.Event()
        self.found.set()
        self.driver.run_due()
        self.keepalive.hurry()
        await link.carry()

    def _attach(self, greeting: bytes, now: float) -> None:
        """Have the core go on by the peer's first message; raises SessionClosed and RemoteProtocolError."""
        connection = self.connection
        if self.ending is not None:
            raise SessionClosed(*self.ending)
        if connection.role is Role.DIALER:
            assert self.driver.link is None
            connection.receive_message(greeting, now)
            return
        if self.driver.link is not None:
            self._detach(CloseCode.SUPERSEDED, "superseded by a newer connection of the same session")
        resume = read_hello(greeting).resume
        assert resume is not None
        self.driver.read_wall_clock(now)
        connection.resumption.attach_listener(resume, now)

    def forgo_resumption(self, reason: str) -> None:
        """End with the transport instead of waiting for another one; with `reason`, if it is lost already.

        For a listener to which no dial leads any more.
        """
        if self.detached:
            self.abandon(reason)
        self.connection.resumption.forgo()

    # --- waiting ---

    async def wait_quiet(self) -> None:
        """Wait until no stream is open and all that was said on them has left, or the session is over."""
        await trio.lowlevel.checkpoint()
        while self.ending is None and self.connection.table.count:
            await self.driver.quiet.park()

    async def wait_going_away(self) -> GoAway | None:
        """Wait until the peer says that it will go away; None when the session ends without that.

        The session may have ended after that GOAWAY.
        """
        await self.leaving.wait()
        return self.peer_draining

    async def wait_detached(self) -> bool:
        """Wait until the session has no transport; False when it ends instead."""
        while self.driver.link is not None and self.ending is None:
            await self.lost.wait()
        await trio.lowlevel.checkpoint()
        return self.ending is None

    async def wait_closed(self) -> str:
        """Wait for the end of the session; returns why."""
        await self.ended.wait()
        assert self.ending is not None
        return self.ending[1]

    # --- its end ---

    def abandon(self, reason: str) -> None:
        """End the session as if it had been away for too long."""
        self.end(None, reason, lost=True)

    async def send_out(self) -> None:
        """Wait until what is queued is sent, FLUSH_S at most."""
        with trio.move_on_after(FLUSH_S):
            while self.ending is None and self.connection.has_unsent:
                self.driver.wake_writer()
                await self.driver.emptied.park()

    def end(self, code: int | None, reason: str, *, lost: bool = False) -> None:
        """Break every stream and wake every waiting task; the first reason stands.

        The peer hears of it, unless the transport is `lost`.
        """
        if self.ending is not None:
            return
        driver, connection = self.driver, self.connection
        if driver.link is None:
            self._away_s = self.away_s()
        self.ending = code, reason
        self.inbox.forget_contexts()
        if connection.status.phase is Phase.OPEN:
            connection.go_away(CloseCode.NORMAL if code is None else code, 0, 0, reason)
        try:
            connection.close(StreamCode.DETACH_EXPIRED, reason)
            driver.run_due()
        finally:
            # Also after a bug in one of these calls: nothing else ends the writer, not even a cancellation.
            self.inbox.end()
            driver.emptied.unpark()
            driver.quiet.unpark()
            self.ended.set()
            self.leaving.set()
            self.lost.set()
            self.found.set()
            self.keepalive.end()
            self._goaways.end(logging.INFO, self.transport.peer_name)
            if driver.link is not None:
                driver.link.end(lost=lost)


async def wait_attached(life: Lifecycle) -> bool:
    """Wait until the session has a transport; False when it ends instead."""
    while life.detached:
        await life.found.wait()
    await trio.lowlevel.checkpoint()
    return life.ending is None
