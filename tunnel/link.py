"""One of the transports that carry a session: its reader, its writer, and its end.

Theory of operation. A session has several links, one after the other: each belongs to one transport, from
the greeting or the resumption to the transport's end, and closes it. What the reader receives goes to the
core, and whom it concerns is told before the next message is looked at. What is sent is taken from the core,
as one message of all that has gathered, by the writer: a task that is parked while there is nothing.

The transport's send side is the writer's while that is not parked: it parks only when all it took from the
core is out. While it is parked, what was queued in a pass of a `Readiness` is sent at the end of the pass, by
whoever makes the pass, as one message and without a wait: that spares a small request the writer's switch, a
pass of the scheduler and a poll at either end, where few are under way. What does not go out then is the
writer's to finish, which is woken for it before anything else may be sent. So no two send messages at a time,
and what was begun is whole, or it was cancelled in the writer, which leaves half a frame and so ends the
transport. What a transport says beside its messages is its own care.

A link is left (`leave`) when its transport is lost, or another one has taken its place, and the session goes
on without. Reader and writer may then still be in their last step, so they look after each whether that has
happened. When the session ends (`end`), the writer may still say so.
"""

from __future__ import annotations

import logging
import math
from contextlib import suppress

import attrs
import trio

from tunnel.driver import Driver, Owner
from tunnel.keepalive import Keepalive
from tunnel.net.fairness import FRAMES_PERIOD_S
from tunnel.net.waker import Waker
from tunnel.protocol.errors import CloseCode, RemoteProtocolError
from tunnel.refusals import FAREWELL_S, farewell_of
from tunnel.websocket.transport import Transport, TransportClosed

__all__ = ["Link"]

log = logging.getLogger("tunnel.session")

# On top of what a message may hold: bytes come in pieces of 128 KiB, and the last one should not be cut for
# the headers' sake.
MESSAGE_HEADERS_BYTES = 256
# The writer lets the loop pass so often for what may still come, and no more once that has taken this long:
# on a busy loop a pass is a while, and a keystroke would wait.
GATHERING_PASSES = 4
GATHERING_S = 0.001
# How many wakeups in a row it does so in vain, before it does without.
PATIENCE = 8
# A message of 1 MiB can hold 87,000 frames, of up to 6 µs each; an honest one seldom has more than 200. A
# reader takes in so many at once, and again every FRAMES_PERIOD_S, and then what all have in fairness
# (tunnel.net.fairness). Whoever brings more has FRAMES_PER_TURN each time that it is its turn, and in a pass
# that is one reader of all the process's sessions.
FRAMES_AT_ONCE = 64
FRAMES_PER_TURN = 512
# Whoever is told of a frame may write to a client for it, 80 µs instead of 6. So the reader looks at the
# clock behind so many frames of a message, 10 ms at worst, and others have their turn when its step has
# lasted for STEP_S by then. Pieces of 48 frames cost the hub 3 % more calls a request at 64 connections.
FRAMES_PER_LOOK = 128
STEP_S = 0.002


@attrs.define(eq=False)
class Link:
    """One of the transports that carry a session, one after the other."""

    driver: Driver
    owner: Owner
    keepalive: Keepalive
    transport: Transport
    writer: Waker = attrs.Factory(lambda: Waker("a link has one writer"))
    brimming: bool = False
    """So much of one stream was queued since the last message that it waits for room."""
    farewell: tuple[int, str] | None = None
    """Why it was left, when the session goes on without it."""
    # Of the reader.
    _listening: trio.CancelScope = attrs.Factory(trio.CancelScope)
    # Of the writer. Cancelling a send loses the transport and with it the farewell, so only `leave` and `end`
    # do that.
    _writing: trio.CancelScope = attrs.Factory(lambda: trio.CancelScope(shield=True))
    # Something was queued since the writer woke.
    _gathered: bool = False
    # The pass that is under way will send what is queued, at its end.
    _flush_due: bool = False
    # A message was begun without a wait, and is not all out.
    _unfinished: bool = False
    # A bug that showed in a pass.
    _fault: Exception | None = None

    async def carry(self) -> None:
        """Read and write until the link is left, or the session over and all is said; then close it."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                nursery.start_soon(self._write)
        finally:
            with trio.move_on_after(FAREWELL_S, shield=True):
                await self.close()

    # --- the reader ---

    async def _read(self) -> None:
        driver, transport, keepalive = self.driver, self.transport, self.keepalive
        connection = driver.connection
        fairness = driver.fairness
        unread = b""
        frames_left, period_ends_at, turned_at = 0, -math.inf, -math.inf
        try:
            with self._listening:
                while True:
                    # What was taken of it is not held while there is a wait.
                    message = unread or await transport.receive()
                    now = driver.now()
                    if now >= period_ends_at:
                        frames_left, period_ends_at = FRAMES_AT_ONCE, now + FRAMES_PERIOD_S
                    frames_max = frames_left + fairness.frames_left(now)
                    # A step begins with a read, which may bring many messages, or with a turn.
                    long_ago = now - STEP_S
                    if frames_max <= 0 or (turned_at <= long_ago >= transport.last_received_s):
                        # If the link is left meanwhile, nobody has counted it, and the peer sends it again.
                        await fairness.wait_alone(driver)
                        now = turned_at = driver.now()
                        frames_left = frames_max = FRAMES_PER_TURN
                    if frames_max > FRAMES_PER_LOOK:
                        frames_max = FRAMES_PER_LOOK
                    if driver.link is not self:
                        return
                    was_idle = not (connection.table.by_id or connection.table.unsent)
                    connection.receive_message(message, now, frames_max)
                    frames_left -= connection.feed.frames_taken
                    if frames_left < 0:
                        fairness.take_frames(-frames_left)
                        frames_left = 0
                    unread = connection.feed.unread
                    if driver.due:
                        driver.run_due()
                    if keepalive.heard is not None:
                        keepalive.note_heard()
                    if driver.quiet.task is not None:
                        driver.note_quiet()
                    driver.wake_writer()
                    ack_at = connection.received.due_at
                    if ack_at is not None and ack_at < keepalive.timer.due_at:
                        keepalive.hurry()
                    elif was_idle:
                        keepalive.note_busy()
        except TransportClosed as exc:
            self.owner.lose(self, exc.code, exc.reason)
        except RemoteProtocolError as exc:
            log.warning("%s: the peer broke the protocol: %s", transport.peer_name, exc)
            self.owner.end(*farewell_of(exc))
        finally:
            if driver.link is self:
                # This is a cancellation, or a bug: the writer is shielded, and goes by our word only.
                self.owner.end(CloseCode.NORMAL, "cancelled here")

    # --- the writer, and a pass that does its work ---

    def wake(self, *, whole: bool = False) -> None:
        """Have what a stream has queued sent: in the pass that is under way, or by the writer.

        A pass sends it at its end. When it is the `whole` of what there is to say, and the pass has nobody
        else to call, it is sent at once.
        """
        self._gathered = True
        if self._flush_due or self.writer.task is None:
            return
        readiness = self.driver.readiness
        if readiness is not None:
            self._flush_due = True
            if readiness.at_end(self.flush_nowait, ready=whole):
                return
            self._flush_due = False
        self.writer.unpark()

    def flush_nowait(self) -> None:
        """Send what is queued without a wait, where the send side is free; otherwise the writer will."""
        self._flush_due = False
        if self.farewell is not None or self.writer.task is None:
            return
        driver = self.driver
        try:
            message = self._take_message()
            self._unfinished = bool(message) and not self.transport.send_nowait(message)
        except Exception as error:
            # Raised here it would end whoever makes the pass, and so every other session.
            self._fault = error
        if self._unfinished or self._fault is not None:
            self.writer.unpark()
        elif driver.connection.has_unsent:
            # More than a message holds: the rest is the writer's.
            driver.wake_writer()
        elif driver.emptied.task is not None:
            driver.emptied.unpark()

    async def _write(self) -> None:
        """Send until the link is left, or the session over and all is said.

        Cancelled from outside it goes on: `leave` and `end` are what ends it. A bug of a pass is raised here.
        """
        driver, transport, connection = self.driver, self.transport, self.driver.connection
        patience = PATIENCE
        has_sent = False
        try:
            with self._writing:
                while self.farewell is None:
                    if self._fault is not None:
                        fault, self._fault = self._fault, None
                        try:
                            raise fault
                        finally:
                            # See open_session.
                            del fault
                    if self._unfinished:
                        self._unfinished = False
                        has_sent = True
                        await transport.finish()
                        continue
                    message = self._take_message()
                    if message:
                        if has_sent:
                            # They gathered while the one before was sent.
                            patience = PATIENCE
                        has_sent = True
                        await transport.send(message)
                    elif self.owner.ending is None:
                        if not connection.has_unsent:
                            driver.emptied.unpark()
                        has_sent = False
                        await self.writer.park()
                        if patience and not (self.brimming or self._has_left_something()):
                            patience = PATIENCE if await self._gather() else patience - 1
                    else:
                        return
        except TransportClosed as exc:
            # What the peer said before it closed, its GOAWAY above all, may still wait for the reader.
            with trio.move_on_after(FAREWELL_S):
                await self.owner.lost.wait()
            self.owner.lose(self, exc.code, exc.reason)

    def _take_message(self) -> bytes:
        """Take what is sent next from the core; b"" when there is nothing."""
        driver = self.driver
        connection = driver.connection
        self.brimming = False
        limit = connection.drain.flight.message_bytes + MESSAGE_HEADERS_BYTES
        now = driver.now()
        if connection.tells_clock:
            driver.read_wall_clock(now)
        message = connection.data_to_send(limit, now)
        if driver.quiet.task is not None:
            driver.note_quiet()
        if connection.status.failure is not None:
            # The peer acknowledges nothing; only the GOAWAY is left to say.
            self.owner.end(*farewell_of(connection.status.failure))
        return message

    def _has_left_something(self) -> bool:
        """Whether a pass has left the writer a rest to send, or a bug to raise."""
        return self._unfinished or self._fault is not None

    async def _gather(self) -> bool:
        """Let the loop pass for whoever woke the writer, and again while that brings more; returns whether it
        did.

        So a head, its body and the end of it become one message and not three, and the answers of many tasks
        one and not as many, each of which would cost both sides ten times the pass. Where nothing ever comes
        of it, it is only late; and a stream that waits for room will add nothing.
        """
        now = self.driver.now
        started_at = now()
        for passed in range(GATHERING_PASSES):
            self._gathered = False
            await trio.lowlevel.checkpoint()
            if not self._gathered:
                return passed > 0
            if self.brimming or now() - started_at >= GATHERING_S:
                break
        return True

    # --- the end ---

    def leave(self, code: int, reason: str) -> None:
        """End what is under way on it: the session goes on without."""
        self.farewell = code, reason
        self._listening.cancel()
        self._writing.deadline = -math.inf

    def end(self, *, lost: bool) -> None:
        """The session is over: the writer may finish its message and then say GOAWAY, within FAREWELL_S.

        When the transport is `lost` there is nobody to say it to.
        """
        self._listening.cancel()
        self._writing.deadline = -math.inf if lost else trio.current_time() + FAREWELL_S
        self.writer.unpark()

    async def refuse(self) -> None:
        """Say the end of a session that never was: the writer does not run yet."""
        connection = self.driver.connection
        message = connection.data_to_send(connection.message_bytes, trio.current_time())
        if message:
            with suppress(TransportClosed):
                await self.transport.send(message)

    async def close(self) -> None:
        """Close the transport, and tell the peer why."""
        code, reason = self.farewell or self.owner.ending or (CloseCode.NORMAL, "")
        await self.transport.aclose(CloseCode.NORMAL if code is None else code, reason)
