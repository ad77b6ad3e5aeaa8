"""One transport of a session: its reader, its writer, and its end.

Theory of operation. A session has several links, one after the other. A link uses one transport, from the
greeting or the resumption to the transport's end, and closes it. The reader feeds each message to the core
and handles what the core reports before it looks at the next one. The writer takes one message from the
core, of all frames that have gathered, and sends it. It is parked while there is nothing to send.

While the writer is not parked, only it sends on the transport: it parks when all that it took from the core
is out. While it is parked, what was queued in a pass of a `Readiness` is sent at the end of that pass, as one
message and without a wait. That saves a small request the switch to the writer, a pass of the scheduler and
a poll at either end, where few requests are under way. The writer is woken to finish what could not be sent
at once, before anything else may be sent. So two messages are never sent at a time, and a message that was
begun is whole, unless the writer was cancelled: that leaves half a frame, and so ends the transport. The
transport itself orders what it sends beside messages.

A link is left (`leave`) when its transport is lost or superseded, and the session goes on without it. Reader
and writer may then be in their last step, so they check after each step whether their link is the current
one. When the session ends (`end`), the writer may still say so.
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
# The writer waits so many loop passes for frames that may still come, but no longer than this: on a busy
# loop a pass takes a while, and a keystroke would wait.
GATHERING_PASSES = 4
GATHERING_S = 0.001
# After so many wakeups in a row in which nothing came, it waits no more.
PATIENCE = 8
# A message of 1 MiB can hold 87,000 frames, of up to 6 µs each; an honest one seldom has more than 200. A
# reader takes in so many at once, and again every FRAMES_PERIOD_S, and then frames of the budget that all
# sessions share (tunnel.net.fairness). A session over budget gets FRAMES_PER_WAIT; one such session is
# served per loop pass.
FRAMES_AT_ONCE = 64
FRAMES_PER_WAIT = 512
# The owner of a stream may write to a client for each frame, 80 µs instead of 6. So the reader looks at the
# clock after so many frames of a message, 10 ms at worst, and lets other tasks run when its step has taken
# STEP_S. Pieces of 48 frames cost the hub 3 % more calls a request at 64 connections.
FRAMES_PER_LOOK = 128
STEP_S = 0.002


@attrs.define(eq=False)
class Link:
    """One transport of a session."""

    driver: Driver
    owner: Owner
    keepalive: Keepalive
    transport: Transport
    writer: Waker = attrs.Factory(lambda: Waker("a link has one writer"))
    brimming: bool = False
    """One stream has queued so much since the last message that its sender waits for room."""
    farewell: tuple[int, str] | None = None
    """Why the link was left, if the session goes on without it."""
    # Of the reader.
    _listening: trio.CancelScope = attrs.Factory(trio.CancelScope)
    # Of the writer. Only `leave` and `end` cancel it: a cancelled send loses the transport, and with it the
    # farewell.
    _writing: trio.CancelScope = attrs.Factory(lambda: trio.CancelScope(shield=True))
    # Something was queued since the writer woke.
    _gathered: bool = False
    # What is queued is sent at the end of the current pass.
    _flush_due: bool = False
    # Part of a message that was begun without a wait is still unsent.
    _unfinished: bool = False
    # An exception of `flush_nowait`, for the writer to raise.
    _fault: Exception | None = None

    async def carry(self) -> None:
        """Read and write until the link is left or the session is over, and all is sent; then close it."""
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
        frames_left, period_ends_at, waited_at = 0, -math.inf, -math.inf
        try:
            with self._listening:
                while True:
                    # The message is not held while the reader waits.
                    message = unread or await transport.receive()
                    now = driver.now()
                    if now >= period_ends_at:
                        frames_left, period_ends_at = FRAMES_AT_ONCE, now + FRAMES_PERIOD_S
                    frames_max = frames_left + fairness.frames_left(now)
                    # A step begins with a read, which may bring many messages, or with a wait for the budget.
                    long_ago = now - STEP_S
                    if frames_max <= 0 or (waited_at <= long_ago >= transport.last_received_s):
                        # If the link is left meanwhile, the message was not counted, and the peer sends it
                        # again.
                        await fairness.wait_alone(driver)
                        now = waited_at = driver.now()
                        frames_left = frames_max = FRAMES_PER_WAIT
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
                    while driver.due:
                        # As run_due does, without its call for each message.
                        driver.due.pop(0)()
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
                # A cancellation or a bug: the writer is shielded, so the session must be ended here.
                self.owner.end(CloseCode.NORMAL, "cancelled here")

    # --- the writer, and sending without it ---

    def wake(self, *, whole: bool = False) -> None:
        """Send what a stream has queued: at the end of the current pass, or by the writer.

        With `whole` nothing more follows: if the pass makes no other calls, it is sent at once.
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
        """Send what is queued without a wait if the send side is free; otherwise the writer sends it."""
        self._flush_due = False
        if self.farewell is not None or self.writer.task is None:
            return
        driver = self.driver
        try:
            message = self._take_message()
            self._unfinished = bool(message) and not self.transport.send_nowait(message)
        except Exception as error:
            # Raised here it would end the task that runs the pass, and so every other session.
            self._fault = error
        if self._unfinished or self._fault is not None:
            self.writer.unpark()
        elif driver.connection.has_unsent:
            # More than one message holds: the writer sends the rest.
            driver.wake_writer()
        elif driver.emptied.task is not None:
            driver.emptied.unpark()

    async def _write(self) -> None:
        """Send until the link is left, or the session is over and all is sent.

        It is shielded: only `leave` and `end` end it. An exception of `flush_nowait` is raised here.
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
                            # Frames gathered while the last message was sent.
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
            # What the peer sent before it closed, its GOAWAY above all, may still wait for the reader.
            with trio.move_on_after(FAREWELL_S):
                await self.owner.lost.wait()
            self.owner.lose(self, exc.code, exc.reason)

    def _take_message(self) -> bytes:
        """Take the next message from the core; b"" when there is nothing to send."""
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
            # The peer acknowledges nothing; only the GOAWAY is left to send.
            self.owner.end(*farewell_of(connection.status.failure))
        return message

    def _has_left_something(self) -> bool:
        """Whether `flush_nowait` has left bytes to send, or an exception to raise."""
        return self._unfinished or self._fault is not None

    async def _gather(self) -> bool:
        """Wait a loop pass for more frames, and again while they come; returns whether any came.

        So a head, its body and its end become one message instead of three, and so do the answers of many
        tasks. Each message would cost both sides ten times the pass. Where nothing comes, the message is only
        late. A stream that waits for room adds nothing.
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
        """End reader and writer: the session goes on without this link."""
        self.farewell = code, reason
        self._listening.cancel()
        self._writing.deadline = -math.inf

    def end(self, *, lost: bool) -> None:
        """The session is over: the writer may finish its message and then send GOAWAY, within FAREWELL_S.

        When the transport is `lost`, nothing can be sent.
        """
        self._listening.cancel()
        self._writing.deadline = -math.inf if lost else trio.current_time() + FAREWELL_S
        self.writer.unpark()

    async def refuse(self) -> None:
        """Send the refusal of a session that was not opened: the writer does not run yet."""
        connection = self.driver.connection
        message = connection.data_to_send(connection.message_bytes, trio.current_time())
        if message:
            with suppress(TransportClosed):
                await self.transport.send(message)

    async def close(self) -> None:
        """Close the transport with the code and the reason."""
        code, reason = self.farewell or self.owner.ending or (CloseCode.NORMAL, "")
        await self.transport.aclose(CloseCode.NORMAL if code is None else code, reason)
