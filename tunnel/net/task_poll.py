"""Polls sockets as select.epoll does, on systems without epoll: a task waits for each socket.

macOS has no epoll. trio waits for a socket there as well, so the interface of epoll that `Readiness` uses is
made from tasks of trio. It costs a task and two switches for each event of a socket.
"""

from __future__ import annotations

import select
from itertools import islice

import trio

from tunnel.net.waker import Waker

__all__ = ["TaskPoll"]


class TaskPoll:
    """The registered sockets, level-triggered: a socket that stays ready is reported by each poll.

    Sockets are registered at any time, and are waited for from `begin` on. While a socket is registered for
    an event, no other task may wait for the same event. Once it is unregistered, any task may, at once.
    """

    def __init__(self) -> None:
        self.closed = False
        self._nursery: trio.Nursery | None = None
        self._events: dict[int, int] = {}
        # The waits of a socket; after its event, until the next poll, none of them has a task.
        self._waits: dict[int, list[trio.CancelScope]] = {}
        # The sockets whose wait is over, in that order: a poll takes the first of them, so none starves.
        self._ready: dict[int, None] = {}
        self._poller = Waker("another task polls")

    def begin(self, nursery: trio.Nursery) -> None:
        """Wait for the sockets in the nursery's tasks, until `close`."""
        self._nursery = nursery
        for descriptor in self._events:
            self._arm(descriptor)

    async def wait(self) -> None:
        """Wait until a socket may be ready. For one task at a time."""
        if self._ready:
            await trio.lowlevel.checkpoint()
        else:
            await self._poller.park()

    def poll(self, timeout: float, maxevents: int, /) -> list[tuple[int, int]]:
        """Return at most `maxevents` of the sockets that are ready now, with their events; never waits."""
        assert timeout == 0, "`wait` waits"
        found: list[tuple[int, int]] = []
        for descriptor in list(islice(self._ready, maxevents)):
            self._disarm(descriptor)
            # Another task may have read what the wait has seen.
            poll = select.poll()
            poll.register(descriptor, self._events[descriptor])
            found += poll.poll(0)
            self._arm(descriptor)
        return found

    def register(self, descriptor: int, events: int, /) -> None:
        """Begin to poll a socket for POLLIN, POLLOUT, or both; an error is reported with either."""
        if self.closed:
            raise ValueError("it is closed")
        self._events[descriptor] = events
        self._arm(descriptor)

    def modify(self, descriptor: int, events: int, /) -> None:
        """Poll a registered socket for other events."""
        self._disarm(descriptor)
        self._events[descriptor] = events
        self._arm(descriptor)

    def unregister(self, descriptor: int, /) -> None:
        """Poll a registered socket no more."""
        self._disarm(descriptor)
        del self._events[descriptor]

    def close(self) -> None:
        """Poll no more; a second call does nothing."""
        self.closed = True
        for descriptor in self._events:
            self._disarm(descriptor)
        self._events.clear()

    def _arm(self, descriptor: int) -> None:
        if self._nursery is None:
            return
        waits = self._waits[descriptor] = []
        for event in (select.POLLIN, select.POLLOUT):
            if self._events[descriptor] & event:
                scope = trio.CancelScope()
                waits.append(scope)
                self._nursery.start_soon(self._wait, descriptor, event, scope)

    def _disarm(self, descriptor: int) -> None:
        self._ready.pop(descriptor, None)
        for scope in self._waits.pop(descriptor, ()):
            # trio drops the registration of a wait within this call.
            scope.cancel()

    async def _wait(self, descriptor: int, event: int, scope: trio.CancelScope) -> None:
        with scope:
            # Disarmed before this task has run: the descriptor may be closed by now, or another socket's.
            if scope.cancel_called:
                return
            if event == select.POLLIN:
                await trio.lowlevel.wait_readable(descriptor)
            else:
                await trio.lowlevel.wait_writable(descriptor)
            # Disarmed when the wait was over and this task had not run.
            if not scope.cancel_called:
                self._ready[descriptor] = None
                self._poller.unpark()
