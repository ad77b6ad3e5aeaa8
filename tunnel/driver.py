"""What the parts of a session share: the core, the link that carries it now, and the calls that are put off.

The core is synchronous bookkeeping. A stream that queues something calls it here, and the link sends what is
queued: at the end of the loop pass that is under way, or by its writer. So what many tasks queue is one
message.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import trio

from tunnel.net.fairness import fairness
from tunnel.net.readiness import Readiness
from tunnel.net.waker import Waker
from tunnel.protocol.connection import Connection, Role
from tunnel.protocol.errors import Processed, StreamCode
from tunnel.protocol.events import SessionOwner
from tunnel.protocol.memory import Memory
from tunnel.protocol.schedule import OUT
from tunnel.protocol.streams import StreamState

__all__ = ["QUEUE_HIGH_BYTES", "Carrier", "Driver", "Owner"]

# A sender waits while more than this is queued. With one more piece on top it is the most that the writer
# takes in one wakeup: less would make the writer wait for the copier, and more would only stand between the
# copier and the stream's own window.
QUEUE_HIGH_BYTES = 128 * 1024


class Wire(Protocol):
    """A transport, as the other parts of its session see it."""

    @property
    def last_received_s(self) -> float: ...
    @property
    def peer_name(self) -> str: ...


class Carrier(Protocol):
    """A link, as the other parts of its session use it."""

    @property
    def transport(self) -> Wire: ...

    writer: Waker
    brimming: bool

    def wake(self, *, whole: bool = False) -> None: ...
    def flush_nowait(self) -> None: ...
    def leave(self, code: int, reason: str) -> None: ...
    def end(self, *, lost: bool) -> None: ...


class Owner(Protocol):
    """A session, as its parts know it."""

    lost: trio.Event
    """The transport is lost, or the session is over."""

    @property
    def ending(self) -> tuple[int | None, str] | None:
        """The code and the reason, once the session is over."""

    def lose(self, link: Carrier, code: int | None, reason: str) -> None:
        """The link's transport cannot go on."""

    def end(self, code: int | None, reason: str) -> None:
        """The session cannot go on."""


class Driver:
    """The core of a session, and what must follow a call of it."""

    def __init__(self, role: Role, memory: Memory, ping_s: float, owner: SessionOwner) -> None:
        # trio.current_time() looks its clock up each time, which costs more than reading it.
        self.now = trio.lowlevel.current_clock().current_time
        self.fairness = fairness()
        """The fairness between all sessions of the process."""
        self.connection = Connection(
            role,
            owner=owner,
            now=self.now(),
            memory=memory,
            wall_offset_s=time.time() - self.now(),
            ping_s=ping_s,
        )
        """The core."""
        self.link: Carrier | None = None
        """The link that carries the session; None while it is detached."""
        self.readiness: Readiness | None = None
        """What is queued in one of its passes is sent at the end of that pass."""
        self.due: list[Callable[[], object]] = []
        """What the core has reported and is handled as soon as the core is done with its call."""
        self.emptied = Waker("another task is waiting for the queue to empty")
        """Waits until all that is queued has been sent."""
        self.quiet = Waker("another task is waiting for the streams to end")
        """Waits until no stream is open."""

    # --- calls of streams ---

    def send_head(self, state: StreamState, head: bytes, data: bytes, eof: bool) -> None:
        self.connection.streams.send_head(state, head, eof, data)
        if self.link is not None:
            self.link.wake(whole=eof)

    def send_data(self, state: StreamState, data: bytes, *, eof: bool = False) -> None:
        self.connection.streams.send_data(state, data, eof=eof)
        link = self.link
        # A stream without credit is not in the ring, and gives the writer nothing to send.
        if link is not None and state.place is not OUT:
            if state.outgoing.size > QUEUE_HIGH_BYTES:
                link.brimming = True
            link.wake()

    def take(self, state: StreamState, limit: int) -> bytes:
        data = self.connection.streams.take(state, limit, self.now())
        if state.window_due:
            self.wake_writer()
        return data

    def reset(
        self, state: StreamState, code: StreamCode, processed: Processed, reason: str, *, in_line: bool
    ) -> None:
        self.connection.streams.reset(state, code, processed, reason, in_line=in_line)
        self.wake_writer()

    # --- what follows ---

    def wake_writer(self) -> None:
        """Wake the writer, if there is something to send."""
        link = self.link
        if link is not None and link.writer.task is not None and self.connection.wants_to_send:
            link.writer.unpark()

    def run_due(self) -> None:
        """Handle what the core has reported; that may bring more."""
        due = self.due
        while due:
            # Removed first: if a call ends the session, or raises, the end handles the rest.
            due.pop(0)()

    def note_quiet(self) -> None:
        """Wake the task that waits for the streams to end, if they have."""
        if not self.connection.table.count:
            self.quiet.unpark()

    def read_wall_clock(self, now: float) -> None:
        """Read the wall clock again, since it may have been set."""
        self.connection.status.wall_offset_s = time.time() - now
