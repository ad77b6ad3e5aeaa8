"""A session: many streams over one transport, and over the next one when that is lost.

`open_session` greets the peer, runs the session in a nursery of its own and ends it with its block. A
`Session` is composed of parts that know only those below:

    Lifecycle    the links, one after the other, and the end
    Inbox        the peer's streams and contexts, until the user has them
    Link         one transport: its reader and its writer
    Keepalive    what is due by time
    Stream       one stream
    Driver       the core, and what must follow a call of it
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio

from tunnel.handshake import greet
from tunnel.interruptions import UNINTERRUPTED, Interruptions
from tunnel.lifecycle import Lifecycle, wait_attached
from tunnel.net.readiness import Readiness
from tunnel.protocol.connection import Role
from tunnel.protocol.errors import CloseCode, LocalProtocolError
from tunnel.protocol.events import GoAway
from tunnel.protocol.greetings import Hello, Welcome
from tunnel.protocol.memory import Memory
from tunnel.refusals import FAREWELL_S, Detached, Draining, SessionClosed, TooManyStreams, farewell_of
from tunnel.settings import Settings
from tunnel.stream import Stream
from tunnel.websocket.transport import Transport


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
    the peer, when it was received already (see `tunnel.handshake`); a dialer has said its hello then. Raises
    Rejected, SessionClosed, RemoteProtocolError before the block begins, and none of its own in the block.
    """
    settings = settings or Settings()
    life = Lifecycle(transport, role, settings, memory)
    try:
        await greet(
            life.connection,
            transport,
            settings,
            hello=hello or Hello(),
            answer_hello=answer_hello,
            message=greeting,
        )
        # What follows a WELCOME may share its message.
        life.driver.run_due()
    except BaseException as exc:
        life.end(*farewell_of(exc))
        with trio.move_on_after(FAREWELL_S, shield=True):
            await life.first.refuse()
        with trio.move_on_after(FAREWELL_S, shield=True):
            await life.first.close()
        raise
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(life.run)
        try:
            yield Session(life)
        except Exception as exc:
            # Kept out of the nursery, which would wrap it: the caller's own exceptions pass as they are.
            failure = exc
        else:
            await life.send_out()
        finally:
            life.end(CloseCode.NORMAL, "closed here")
    if failure is not None:
        try:
            raise failure
        finally:
            # Its traceback holds this frame: had the frame the exception, the session would live on until a
            # garbage collection.
            del failure


class Session:
    """One end of an open tunnel. Made by open_session."""

    def __init__(self, life: Lifecycle) -> None:
        connection = life.connection
        self.role: Final = connection.role
        self.local: Final = connection.status.local
        self.peer: Final = connection.status.peer
        welcome = self.peer if self.role is Role.DIALER else self.local
        assert isinstance(welcome, Welcome)
        self.session_id: Final = welcome.session_id
        self.memory: Final = connection.memory
        """The session's own account."""
        self._life = life
        self._driver = life.driver
        self._connection = connection
        # What one part does alone is that part's to describe.
        self.on_stream: Final = life.inbox.on_stream
        self.on_context: Final = life.inbox.on_context
        self.answers: Final = life.keepalive.answers
        self.end: Final = life.end
        self.resume: Final = life.resume
        self.wait_quiet: Final = life.wait_quiet
        self.wait_going_away: Final = life.wait_going_away
        self.wait_detached: Final = life.wait_detached
        self.wait_attached: Final = partial(wait_attached, life)
        self.wait_closed: Final = life.wait_closed
        self.abandon: Final = life.abandon
        self.forgo_resumption: Final = life.forgo_resumption
        self.hello_again: Final = connection.resumption.hello_again
        self.may_resume: Final = connection.resumption.may_attach
        self.is_outdated: Final = connection.resumption.is_outdated

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
        return f"<Session {self.session_id} {self.role.value} {state} {self.peer_name}>"

    # --- its state ---

    @property
    def closed(self) -> bool:
        return self._life.ending is not None

    @property
    def close_code(self) -> int | None:
        """The code with which the session was ended; None while it is open, and after a loss."""
        ending = self._life.ending
        return None if ending is None else ending[0]

    @property
    def draining(self) -> bool:
        """Either side has said GOAWAY."""
        return self._connection.goaways.sent or self._connection.goaways.opens_no_more

    @property
    def may_open(self) -> bool:
        """Whether open_stream would open one now.

        Our own GOAWAY does not prevent it: it asks the peer to open no more, and to look for another session.
        """
        connection = self._connection
        if not connection.streams.may_open:
            return False
        return self._driver.link is not None or not connection.deadlines.too_late_to_open(self._driver.now())

    @property
    def detached(self) -> bool:
        """The transport is lost and was not replaced yet; the streams wait for that."""
        return self._life.detached

    @property
    def away(self) -> bool:
        """Detached, or silent for so long that the peer is in doubt (PROTOCOL.md, "Liveness")."""
        return (self._driver.link is None or self._connection.liveness.doubted) and not self.closed

    @property
    def resumable(self) -> bool:
        """Whether both sides want the session to go on when its transport is lost."""
        return self._connection.resumption.resumable

    @property
    def interruptions(self) -> Interruptions:
        life = self._life
        if not life.detaches:
            return UNINTERRUPTED
        return Interruptions(life.detaches, life.away_s(), self._connection.sent.replayed_frames)

    @property
    def detaches(self) -> int:
        """How often its transport was lost and the session went on; while 0, `interruptions` are none."""
        return self._life.detaches

    @property
    def stream_count(self) -> int:
        return self._connection.table.count

    @property
    def rtt_s(self) -> float | None:
        """The least round trip seen, None before the first PONG."""
        return self._connection.round_trips.least_s

    @property
    def last_received_s(self) -> float:
        """When the peer was last heard, on trio's clock."""
        return max(self._connection.liveness.received_at, self._life.transport.last_received_s)

    @property
    def peer_going_away(self) -> GoAway | None:
        """The peer's last GOAWAY."""
        return self._life.peer_going_away

    @property
    def peer_name(self) -> str:
        return self._life.transport.peer_name

    # --- its user's ---

    def open_stream(self, head: bytes, *, context: int, eof: bool = False) -> Stream:
        """Open a stream under a context of ours; with `eof` nothing follows the head.

        Raises SessionClosed, Draining, TooManyStreams or Detached, and then nothing was sent. While the
        session is detached the stream waits for the next transport, until 2 s after the last one was lost;
        then it is reset with REFUSED, not processed.
        """
        driver, connection = self._driver, self._connection
        link, keepalive = driver.link, self._life.keepalive
        if link is None:
            self._check_may_open()
        was_idle = not (connection.table.by_id or connection.table.unsent)
        now = driver.now()
        try:
            state = connection.streams.open(head, context, eof, now)
        except LocalProtocolError:
            self._check_may_open()
            raise
        if state not in connection.table.unsent:
            # It was evicted at once.
            raise TooManyStreams(f"the memory for streams is full, with {self.stream_count} open")
        stream = Stream(driver, state)
        if was_idle:
            connection.liveness.busy_since = now
            keepalive.note_busy()
        if link is None:
            keepalive.hurry()
        else:
            link.wake(whole=eof)
            if self._life.ending is not None:
                # The flush ended the session: the peer acknowledges nothing, so no message holds this OPEN.
                # The caller could not learn that from the stream, which is broken already.
                raise SessionClosed(*self._life.ending)
        return stream

    def _check_may_open(self) -> None:
        """Raise the error that says why no stream can be opened. The core has one error for all of these."""
        connection, now = self._connection, self._driver.now()
        if self._life.ending is not None:
            raise SessionClosed(*self._life.ending)
        if connection.goaways.opens_no_more:
            raise Draining("the peer is going away")
        if connection.table.opened_here >= connection.status.peer.max_streams:
            raise TooManyStreams(f"{self.stream_count} streams are open")
        if self._driver.link is None and connection.deadlines.too_late_to_open(now):
            raise Detached(f"the tunnel is away since {now - connection.status.detached_at:.0f} s")

    def add_context(self, group: int, payload: bytes) -> int:
        """Send the peer something that many streams share; returns the index that open_stream names.

        `group` is the key of fairness: all streams of one group have one share of the link. Raises
        SessionClosed, and LocalProtocolError for one that is too long or too many.
        """
        if self._life.ending is not None:
            raise SessionClosed(*self._life.ending)
        context = self._connection.add_context(group, payload)
        self._driver.wake_writer()
        return context.index

    def retire_context(self, index: int) -> None:
        """Forget a context; its open streams go on. Does nothing when the session is over."""
        if not self.closed:
            self._connection.contexts.retire(index)
            self._driver.wake_writer()

    def go_away(
        self,
        *,
        code: int = CloseCode.DRAINING,
        drain_ms: int = 0,
        retry_after_ms: int = 0,
        reason: str = "",
    ) -> None:
        """Ask the peer to open no more streams here. Those that are open go on."""
        if not self.closed:
            self._connection.go_away(code, drain_ms, retry_after_ms, reason)
            self._driver.wake_writer()

    def flush_after(self, readiness: Readiness) -> None:
        """Send what is queued in a pass of `readiness` at the end of it, if the send side is free then."""
        self._driver.readiness = readiness
