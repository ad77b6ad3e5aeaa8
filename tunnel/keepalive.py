"""Whether the peer is still there, and what a session does when its core is due.

The core says when it wants to be called again: to PING, to ACK, or because the session was away for too long.
Until then the keepalive sleeps, and whoever does something that makes the core due earlier wakes it earlier
(`hurry`). It also finds out what no transport tells: that the peer is gone without a word.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import trio

from tunnel.protocol.connection import Phase
from tunnel.protocol.liveness import PING_BUSY_S

if TYPE_CHECKING:
    from tunnel.session import Session

__all__ = ["Keepalive"]


class Keepalive:
    """Calls the core of a session whenever that is due; for as long as the session lives."""

    def __init__(self, session: Session) -> None:
        self.due_at = math.inf
        """When it wakes."""
        self.heard: trio.Event | None = None
        """While somebody waits for a sign of life."""
        self._session = session
        self._connection = session._connection
        self._nap = trio.CancelScope()

    async def run(self) -> None:
        """Do what is due, and sleep; returns when the session has ended."""
        session, connection = self._session, self._connection
        while session._ending is None:
            now = session._now()
            link = session._link
            if link is not None:
                # A message that has not come to its end yet is a sign of life as well.
                if link.transport.last_received_s > connection.liveness.unanswered_since:
                    connection.liveness.received(link.transport.last_received_s)
                if now >= connection.liveness.dead_at:
                    silence_s = now - connection.liveness.received_at
                    session._lose(link, None, f"nothing came from the peer for {silence_s:.0f} s")
                    continue
            connection.wall_offset_s = time.time() - now
            connection.tick(now)
            if connection.happened:
                session._dispatch(connection.take_events())
            if session._told:
                session._tell()
            if connection.phase is Phase.CLOSED:
                session._die(None, f"the tunnel was away for {connection.resume_ttl_s:.0f} s")
                return
            session._kick()
            self.due_at = connection.next_deadline()
            with trio.CancelScope(deadline=self.due_at) as self._nap:
                await trio.sleep_forever()

    def hurry(self) -> None:
        """Wake earlier, when the core wants to be called earlier."""
        deadline = self._connection.next_deadline()
        if deadline < self.due_at:
            self.due_at = self._nap.deadline = deadline

    def note_busy(self) -> None:
        """With a stream on a session that was idle, the next PING may be due earlier."""
        # Of many requests, one after the other, only the first changes anything.
        if self._connection.liveness.pinged_at + PING_BUSY_S < self.due_at:
            self.hurry()

    async def answers(self, within_s: float) -> bool:
        """Ask for a sign of life; whether any came within this long, and the session has not ended."""
        session = self._session
        asked_at = session._now()
        self._connection.ping(asked_at)
        session._kick()
        self.hurry()
        if self.heard is None:
            self.heard = trio.Event()
        heard = self.heard
        with trio.move_on_after(within_s):
            await heard.wait()
        # A message that has not come to its end yet is a sign of life as well.
        return (heard.is_set() or session.last_received_s > asked_at) and not session.closed

    def note_heard(self) -> None:
        """Something came, or nothing will: wake whoever waits for that."""
        if self.heard is not None:
            self.heard.set()
            self.heard = None

    def end(self) -> None:
        """The session has ended."""
        self.note_heard()
        self._nap.cancel()
