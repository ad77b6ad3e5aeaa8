"""A session: many streams over one transport, and over the next one when that is lost.

`open_session` greets the peer, runs the machinery in a nursery of its own and ends it with its block;
`tunnel.multiplexer` tells how that works. What stands here is the face of it, for whoever opens streams,
accepts them, or waits for what becomes of the session.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from tunnel.handshake import greet
from tunnel.interruptions import UNINTERRUPTED, Interruptions
from tunnel.link import FAREWELL_S
from tunnel.multiplexer import Multiplexer
from tunnel.net.readiness import Readiness
from tunnel.protocol.connection import Role
from tunnel.protocol.errors import CloseCode, LocalProtocolError
from tunnel.protocol.events import GoAway
from tunnel.protocol.frames import Hello, Resume, Welcome
from tunnel.protocol.memory import Memory
from tunnel.protocol.streams import Context
from tunnel.refusals import Detached, Draining, SessionClosed, TooManyStreams, farewell_of
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
    mux = Multiplexer(transport, role, settings, memory)
    try:
        await greet(
            mux.connection,
            transport,
            settings,
            hello=hello or Hello(),
            answer_hello=answer_hello,
            message=greeting,
        )
        # What follows a WELCOME may share its message.
        mux.make_calls()
    except BaseException as exc:
        mux.end(*farewell_of(exc))
        with trio.move_on_after(FAREWELL_S, shield=True):
            await mux.first.refuse()
        with trio.move_on_after(FAREWELL_S, shield=True):
            await mux.first.close()
        raise
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mux.run)
        try:
            yield Session(mux)
        except Exception as exc:
            # Kept out of the nursery, which would wrap it: the caller's own exceptions pass as they are.
            failure = exc
        else:
            await mux.send_out()
        finally:
            mux.end(CloseCode.NORMAL, "closed here")
    if failure is not None:
        try:
            raise failure
        finally:
            # Its traceback holds this frame: had the frame the exception, the session would live on until a
            # garbage collection.
            del failure


class Session:
    """One end of an open tunnel. Made by open_session."""

    def __init__(self, mux: Multiplexer) -> None:
        connection = mux.connection
        self.role = connection.role
        self.local = connection.local
        self.peer = connection.peer
        welcome = self.peer if self.role is Role.DIALER else self.local
        assert isinstance(welcome, Welcome)
        self.session_id = welcome.session_id
        self._mux = mux
        self._connection = connection

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

    # --- what it is ---

    @property
    def closed(self) -> bool:
        return self._mux.ending is not None

    @property
    def close_code(self) -> int | None:
        """The code with which the session was ended; None while it is open, and after a loss."""
        ending = self._mux.ending
        return None if ending is None else ending[0]

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
        if not connection.may_open:
            return False
        return self._mux.link is not None or not connection.too_late_to_open(self._mux.now())

    @property
    def detached(self) -> bool:
        """The transport is lost and was not replaced yet; the streams wait for that."""
        return self._mux.detached

    @property
    def away(self) -> bool:
        """Detached, or silent for so long that the peer is in doubt (PROTOCOL.md, "Liveness")."""
        return self._mux.away

    @property
    def resumable(self) -> bool:
        """Whether both sides want the session to go on when its transport is lost."""
        return self._connection.resumable

    @property
    def interruptions(self) -> Interruptions:
        if not self._mux.detaches:
            return UNINTERRUPTED
        return Interruptions(self.detaches, self._mux.away_s(), self._connection.sent.replayed_frames)

    @property
    def detaches(self) -> int:
        """How often its transport was lost and the session went on: 0, it has gone through nothing."""
        return self._mux.detaches

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
        return self._mux.last_received_s

    @property
    def peer_going_away(self) -> GoAway | None:
        """What the peer's GOAWAY said, the last one."""
        return self._mux.peer_going_away

    @property
    def peer_name(self) -> str:
        return self._mux.transport.peer_name

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
        mux, connection = self._mux, self._connection
        link = mux.link
        if link is None:
            self._check_may_open()
        was_idle = not (connection.streams or connection.unsent)
        now = mux.now()
        try:
            state = connection.open_stream(head, context, eof, now)
        except LocalProtocolError:
            self._check_may_open()
            raise
        if state not in connection.unsent:
            # It was evicted before anybody could be told.
            raise TooManyStreams(f"the memory for streams is full, with {self.stream_count} open")
        stream = Stream(mux, state)
        if was_idle:
            connection.liveness.busy_since = now
            mux.keepalive.note_busy()
        if link is None:
            mux.keepalive.hurry()
        else:
            link.wake(whole=eof)
            if mux.ending is not None:
                # By what was to take it: the peer acknowledges nothing, so that message holds no OPEN.
                # Whoever got a stream that is broken already would wait to be told of that.
                raise SessionClosed(*mux.ending)
        return stream

    def _check_may_open(self) -> None:
        """Raise what stands in the way of a new stream. The core has no word for each of these."""
        mux, connection, now = self._mux, self._connection, self._mux.now()
        if mux.ending is not None:
            raise SessionClosed(*mux.ending)
        if connection.told_to_go:
            raise Draining("the peer is going away")
        if connection.opened_here >= connection.peer.max_streams:
            raise TooManyStreams(f"{self.stream_count} streams are open")
        if mux.link is None and connection.too_late_to_open(now):
            raise Detached(f"the tunnel is away since {now - connection.detached_at:.0f} s")

    async def accept(self) -> Stream:
        """Wait for the next stream that the peer opens. One task accepts. Raises SessionClosed at the end.

        When cancelled no stream is lost.
        """
        return await self._mux.accept_queue.accept()

    def accept_nowait(self) -> Stream | None:
        """Return the next stream that the peer has opened, None where accept would wait.

        Raises SessionClosed.
        """
        return self._mux.accept_queue.accept_nowait()

    def on_stream(self, call: Callable[[Stream], None] | None) -> None:
        """Have `call` called for each stream that the peer opens, and for those that wait to be accepted.

        It spares a task switch for each. It stands in the way of every other stream, so it may start a task
        for the stream, or reset it, and must neither wait nor raise. The end of the session is `wait_closed`.
        None takes it back.
        """
        self._mux.peer_streams = call
        if call is not None:
            self._mux.accept_queue.hand_over(call)

    def on_context(self, call: Callable[[Context], None]) -> None:
        """Have `call` called for each context that the peer adds, and now for those that are live.

        It is called before any stream that names the context is opened here. It stands in the way of every
        stream, so it must neither wait nor raise. The end of the session ends it.
        """
        if self._mux.ending is None:
            self._mux.peer_contexts = call
        for context in list(self._connection.peer_contexts.values()):
            call(context)

    def flush_after(self, readiness: Readiness) -> None:
        """Have what is queued in a pass of `readiness` leave at its end, if nothing is being sent then."""
        self._mux.readiness = readiness

    def add_context(self, group: int, payload: bytes) -> int:
        """Tell the peer something that many streams share; returns the index that open_stream names.

        `group` is the key of fairness: all streams of one group have one share of the link. Raises
        SessionClosed, and LocalProtocolError for one that is too long or too many.
        """
        mux = self._mux
        if mux.ending is not None:
            raise SessionClosed(*mux.ending)
        context = self._connection.add_context(group, payload)
        mux.wake_writer()
        return context.index

    def retire_context(self, index: int) -> None:
        """Forget a context; streams that are open under it go on. Nothing happens when the session is
        over."""
        if self._mux.ending is None:
            self._connection.retire_context(index)
            self._mux.wake_writer()

    def go_away(
        self,
        *,
        code: int = CloseCode.DRAINING,
        drain_ms: int = 0,
        retry_after_ms: int = 0,
        reason: str = "",
    ) -> None:
        """Ask the peer to open no more streams here. Those that are open go on."""
        if self._mux.ending is None:
            self._connection.go_away(code, drain_ms, retry_after_ms, reason)
            self._mux.wake_writer()

    def end(self, code: int, reason: str) -> None:
        """End the session now; the peer is told the code and the reason. Nothing happens when it is over."""
        self._mux.end(code, reason)

    async def answers(self, within_s: float) -> bool:
        """Ask the peer for a sign of life, and return whether any came within this long.

        Any bytes are one. False at once when the session is over.
        """
        await trio.lowlevel.checkpoint()
        if self._mux.ending is not None:
            return False
        return await self._mux.keepalive.answers(within_s)

    async def wait_quiet(self) -> None:
        """Wait until no stream is open: everything that was said on one has left. Returns at the end, too."""
        await trio.lowlevel.checkpoint()
        mux = self._mux
        while mux.ending is None and self.stream_count:
            await mux.quiet.park()

    async def wait_going_away(self) -> GoAway | None:
        """Wait until the peer says that it will go away; None when the session ends without that.

        It may have ended behind that word.
        """
        await self._mux.leaving.wait()
        return self._mux.peer_draining

    async def wait_closed(self) -> str:
        """Wait for the end of the session; returns why."""
        mux = self._mux
        await mux.ended.wait()
        assert mux.ending is not None
        return mux.ending[1]

    # --- over another transport ---

    async def wait_detached(self) -> bool:
        """Wait until the session has no transport; False when it ends instead."""
        mux = self._mux
        while mux.link is not None and mux.ending is None:
            await mux.lost.wait()
        await trio.lowlevel.checkpoint()
        return mux.ending is None

    def hello_again(self) -> Hello:
        """The dialer's HELLO for the next transport, which names this session."""
        return self._connection.hello_again()

    def may_resume(self, resume: Resume) -> bool:
        """Whether the listener can go on with a dialer that says this; both must still have what the other
        lacks."""
        return self._mux.ending is None and self._connection.may_attach(resume)

    def is_outdated(self, resume: Resume) -> bool:
        """Whether the dialer has been back since it said this: it was held up on the way, and nobody waits
        for an answer to it."""
        return self._connection.is_outdated(resume)

    def abandon(self, reason: str) -> None:
        """End the session as if it had been away for too long."""
        self._mux.end(None, reason, lost=True)

    def forgo_resumption(self, reason: str) -> None:
        """End with the transport instead of waiting for another one; with `reason`, if it is lost already.

        It is for a listener to which no dial leads any more.
        """
        if self.detached:
            self.abandon(reason)
        self._connection.forgo_resumption()

    async def resume(self, transport: Transport, greeting: bytes) -> None:
        """Go on over `transport`, until it is lost as well or the session ends; it is closed in any case.

        `greeting` is the peer's first message on it (see `tunnel.handshake`): a HELLO that `may_resume`, or
        the WELCOME that answered `hello_again`. A transport that the listener still has is superseded. Raises
        SessionClosed when the session has ended meanwhile, and RemoteProtocolError when the listener's
        numbers do not fit, which ends it. Cancelled, it ends the session.
        """
        await self._mux.resume(transport, greeting)
