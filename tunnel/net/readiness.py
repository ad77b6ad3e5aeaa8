"""Watches many sockets with one task, and calls a function for each that has something to read.

In trio, a task waits for a socket in `wait_readable`: that is a switch and a system call to arm the wait,
each time. Where a task would do nothing but wait, that costs more than the work on the bytes. So the sockets
are in an epoll of our own, which stays armed, and trio waits for that one descriptor. A system without epoll
has a task for each socket (`TaskPoll`).

A call delays all other tasks: it must neither wait nor raise, and its work should be that of a small answer.
Work that is done once for all of them is done at the end of the pass (`at_end`). A socket that is not read
from is reported again and again, so a user that stops reading ends its watch.
"""

from __future__ import annotations

import select
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Final

import trio

from tunnel.net.task_poll import TaskPoll

__all__ = ["Readiness", "Watch"]

# Calls before other tasks run: some milliseconds, if the answers are small.
CALLS_PER_PASS: Final = 64
# If calls take longer, as for bytes in very many TLS records, other tasks run after PASS_S. The clock is read
# once per CALLS_PER_LOOK calls.
CALLS_PER_LOOK: Final = 8
PASS_S: Final = 0.005


class Watch:
    """One watched socket. It calls `call`, which may be changed at any time."""

    __slots__ = ("_descriptor", "_poll", "_readiness", "call", "ended", "listening", "room")

    def __init__(self, readiness: Readiness, descriptor: int, call: Callable[[], None]) -> None:
        self._readiness = readiness
        self._descriptor = descriptor
        self.ended = False
        """The watch has ended: it calls nothing any more."""
        # Made by the first `has_input`, and then kept: making it is a third of that call's cost.
        self._poll: select.poll | None = None
        self.call = call
        self.listening = True
        """Whether `call` is called for input. Read-only."""
        self.room: Callable[[], None] | None = None
        """Called once, when the socket has room. Read-only."""

    def has_input(self) -> bool:
        """Return whether the socket has input now. `call` may not have been called for it yet."""
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._descriptor, select.POLLIN)
        return bool(self._poll.poll(0))

    def listen(self, listening: bool) -> None:
        """Start or stop the calls for input. A new watch calls for input."""
        self.listening = listening
        self._readiness.change(self._descriptor, self._events())

    def when_room(self, tell: Callable[[], None]) -> None:
        """Call `tell` once, when the socket has room or an error."""
        self.room = tell
        self._readiness.change(self._descriptor, self._events())

    @property
    def calls_for_input(self) -> bool:
        """Whether there is input that `call` wants. For Readiness."""
        return self.listening and not self.ended and self.has_input()

    def ready(self) -> None:
        """Call for room and for input, if there is any. For Readiness."""
        tell = self.room
        if tell is not None and self._has_room():
            self.room = None
            self._readiness.change(self._descriptor, self._events())
            tell()
        if self.calls_for_input:
            self.call()

    def _has_room(self) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        return bool(poll.poll(0))

    def _events(self) -> int:
        # epoll's events have the same numbers.
        return (select.POLLIN if self.listening else 0) | (select.POLLOUT if self.room is not None else 0)

    def end(self) -> None:
        """End the watch, before the socket is closed. A second call does nothing."""
        if not self.ended:
            self.ended = True
            self.room = None
            self._readiness.forget(self._descriptor)


def open_poll() -> select.epoll | TaskPoll:
    """Return this system's interface for polling many sockets."""
    return select.epoll() if hasattr(select, "epoll") else TaskPoll()


class Readiness:
    """Watches sockets while `run` runs."""

    def __init__(self) -> None:
        self._poll = open_poll()
        self._watches: dict[int, Watch] = {}
        # The watched descriptors without any event to watch for now.
        self._silent: set[int] = set()
        # The calls for the end of the current pass; None between two passes.
        self._endings: list[Callable[[], None]] | None = None
        # The current pass has one call only.
        self._alone = False

    def watch(self, descriptor: int, call: Callable[[], None]) -> Watch:
        """Call `call` whenever the socket has bytes, its peer's end or an error to read."""
        assert descriptor not in self._watches, f"descriptor {descriptor} is watched already"
        # First, because it can fail. No watch may remain then.
        self._poll.register(descriptor, select.POLLIN)
        watch = self._watches[descriptor] = Watch(self, descriptor, call)
        return watch

    def change(self, descriptor: int, events: int) -> None:
        """Watch for other events. Without any, errors are not reported either: that would never stop."""
        if self._poll.closed:
            return
        if not events:
            self._silent.add(descriptor)
            self._poll.unregister(descriptor)
        elif descriptor in self._silent:
            self._poll.register(descriptor, events)
            self._silent.discard(descriptor)
        else:
            self._poll.modify(descriptor, events)

    def forget(self, descriptor: int) -> None:
        """End a watch that has not ended."""
        del self._watches[descriptor]
        if descriptor in self._silent:
            self._silent.discard(descriptor)
        elif not self._poll.closed:
            self._poll.unregister(descriptor)

    def at_end(self, call: Callable[[], None], *, ready: bool = False) -> bool:
        """Call `call` at the end of this pass, behind all of its calls; returns False when no pass runs.

        It must neither wait nor raise. With `ready` the caller adds nothing more: if the pass has no other
        call, it is called at once, so that the rest of the caller's work does not delay it.
        """
        if self._endings is None:
            return False
        if ready and self._alone:
            call()
        else:
            self._endings.append(call)
        return True

    def run(self) -> Coroutine[object, object, None]:
        """Make the calls until cancelled. Afterwards nothing is watched."""
        poll = self._poll
        if isinstance(poll, TaskPoll):
            return self._run_with_tasks(poll)
        # Not awaited here: each pass would then go through one more coroutine.
        return self._run(partial(trio.lowlevel.wait_readable, poll.fileno()))

    async def _run_with_tasks(self, poll: TaskPoll) -> None:
        async with trio.open_nursery() as nursery:
            poll.begin(nursery)
            await self._run(poll.wait)

    async def _run(self, wait: Callable[[], Awaitable[None]]) -> None:
        poll, watches = self._poll.poll, self._watches
        due: list[Watch] = []
        try:
            while True:
                if due:
                    await trio.lowlevel.checkpoint()
                    # Other tasks may have read the input meanwhile. A call would then be wrong.
                    due = [
                        watch
                        for watch in due
                        if watch.room is not None
                        or (watch.listening and not watch.ended and watch.has_input())
                    ]
                else:
                    await wait()
                    due = [watches[descriptor] for descriptor, _ in poll(0, CALLS_PER_PASS)]
                endings: list[Callable[[], None]] = []
                self._endings = endings
                self._alone = len(due) == 1
                # No reference to this pass's watches is kept until the next pass, which may be late.
                due = self._call(due)
                self._endings = None
                while endings:
                    endings.pop(0)()
        finally:
            self._poll.close()

    @staticmethod
    def _call(due: list[Watch]) -> list[Watch]:
        """Call for these watches, unless an earlier call has ended them; return those for the next pass."""
        if len(due) <= CALLS_PER_LOOK:
            for watch in due:
                if watch.room is not None:
                    watch.ready()
                elif watch.listening and not watch.ended:
                    watch.call()
            return []
        ends_at = time.perf_counter() + PASS_S
        for start in range(0, len(due), CALLS_PER_LOOK):
            if start and time.perf_counter() >= ends_at:
                return due[start:]
            for watch in due[start : start + CALLS_PER_LOOK]:
                if watch.room is not None:
                    watch.ready()
                elif watch.listening and not watch.ended:
                    watch.call()
        return []
