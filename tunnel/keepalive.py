"""Finds out whether the peer is still there, and calls the core when it is due.

The core says when it has to be called again: to PING, to ACK, or because the session was away for too long.
Code that makes the core due earlier moves the timer (`hurry`). The keepalive also detects what no transport
reports: that the peer is gone without a word.
"""

from __future__ import annotations

import trio

from tunnel.driver import Driver, Owner
from tunnel.net.ratelimit import TokenBucket
from tunnel.net.timers import timers_of_this_run
from tunnel.net.waker import Waker
from tunnel.protocol.connection import Phase
from tunnel.protocol.liveness import PING_BUSY_S

__all__ = ["Keepalive"]

# The PINGs of `answers` come on top of all others, of which the peer accepts 10 a second: a few at once, and
# then one in this time for all callers.
ASKS_AT_ONCE = 5
ASK_S = 0.2


class Keepalive:
    """Calls the core of a session whenever it is due, until the session ends."""

    def __init__(self, driver: Driver, owner: Owner) -> None:
        self.timer = timers_of_this_run().timer(self._fire)
        self.heard: trio.Event | None = None
        """Set by the next sign of life; None while no task waits for one."""
        self._driver = driver
        self._owner = owner
        self._connection = driver.connection
        self._ended = Waker("a session is kept alive by one task")
        self._asks = TokenBucket(1 / ASK_S, ASKS_AT_ONCE)
        # An exception of a timer's call, for `run` to raise.
        self._fault: Exception | None = None

    async def run(self) -> None:
        """Keep the session alive; returns when it has ended. An exception of a timer's call is raised
        here."""
        self._fire()
        while self._owner.ending is None and self._fault is None:
            await self._ended.park()
        if self._fault is not None:
            fault, self._fault = self._fault, None
            try:
                raise fault
            finally:
                # See open_session.
                del fault

    def _fire(self) -> None:
        try:
            self._run_due()
        except Exception as error:
            # Raised here it would end the task of all timers, and so every other session.
            self._fault = error
            self._ended.unpark()

    def _run_due(self) -> None:
        """Do what is due, and set the timer for what is due next."""
        driver, connection = self._driver, self._connection
        now = driver.now()
        # The first bytes of a message are a sign of life as well.
        link = driver.link
        if link is not None and link.transport.last_received_s > connection.liveness.unanswered_since:
            connection.liveness.received(link.transport.last_received_s)
        due_at = connection.deadlines.next()
        if now < due_at:
            # Other code has done it, as an ACK that was sent along with a message.
            self.timer.by(due_at)
            return
        if link is not None and now >= connection.liveness.dead_at:
            silence_s = now - connection.liveness.received_at
            # The session goes on without the link or ends; both set the timer.
            self._owner.lose(link, None, f"nothing came from the peer for {silence_s:.0f} s")
            return
        if now >= connection.deadlines.doubt_at:
            connection.deadlines.doubt()
        connection.deadlines.tick(now)
        if driver.due:
            driver.run_due()
        if connection.status.phase is Phase.CLOSED:
            self._owner.end(None, f"the tunnel was away for {connection.status.resume_ttl_s:.0f} s")
            return
        if link is not None and connection.wants_to_send:
            link.flush_nowait()
        self.timer.by(connection.deadlines.next())

    def hurry(self) -> None:
        """Move the timer, if the core is due earlier."""
        self.timer.by(self._connection.deadlines.next())

    def note_busy(self) -> None:
        """The session is no longer idle, so the next PING may be due earlier."""
        # Of many requests, one after the other, only the first changes anything.
        if self._connection.liveness.pinged_at + PING_BUSY_S < self.timer.due_at:
            self.hurry()

    async def answers(self, within_s: float) -> bool:
        """Ask the peer for a sign of life, and return whether any came within this long.

        Any bytes are one. False at once when the session is over.
        """
        await trio.lowlevel.checkpoint()
        if self._owner.ending is not None:
            return False
        asked_at = self._driver.now()
        if self.heard is None:
            self.heard = trio.Event()
        heard = self.heard
        with trio.move_on_after(within_s):
            while not (heard.is_set() or self._ask()):
                with trio.move_on_after(ASK_S):
                    await heard.wait()
            await heard.wait()
        # The first bytes of a message are a sign of life as well.
        link = self._driver.link
        part_came = link is not None and link.transport.last_received_s > asked_at
        return (heard.is_set() or part_came) and self._owner.ending is None

    def _ask(self) -> bool:
        """Send a PING; False when too many were sent lately."""
        now = self._driver.now()
        if not self._asks.allows(now):
            return False
        self._connection.deadlines.ping(now)
        self._driver.wake_writer()
        self.hurry()
        return True

    def note_heard(self) -> None:
        """Something came, or nothing will: wake the tasks that wait for a sign of life."""
        if self.heard is not None:
            self.heard.set()
            self.heard = None

    def end(self) -> None:
        """The session has ended."""
        self.note_heard()
        self.timer.end()
        self._ended.unpark()
