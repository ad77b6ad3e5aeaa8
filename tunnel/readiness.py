"""Many sockets watched by one task: a call for each that has something to read.

trio's own way to wait for a socket is a task that stands in `wait_readable`: a switch to it and a system call
to arm the wait, each time. Where the wait is all that a task would be for, that costs more than what is done
with the bytes. So here the sockets are in an epoll of our own, which stays armed, and trio waits for that one
descriptor.

What is called runs in the midst of everything: it must neither wait nor raise, and its work should be that
of a small answer. What is done once for all of them is done at the end of the pass (`at_end`). A socket that
is not read from is said to be readable again and again, so whoever leaves one alone ends its watch.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Final

import trio

__all__ = ["Readiness", "Watch"]

# Then the other tasks have their turn: some milliseconds of small answers.
CALLS_PER_PASS: Final = 64


class Watch:
    """One socket that is watched; `call` is what is called, and may be changed at any time."""

    __slots__ = ("_descriptor", "_poll", "_readiness", "call")

    def __init__(self, readiness: Readiness, descriptor: int, call: Callable[[], None]) -> None:
        self._readiness = readiness
        self._descriptor = descriptor
        # Made when it is first asked for input, and then kept: that costs a third of looking at the socket.
        self._poll: select.poll | None = None
        self.call = call

    def has_input(self) -> bool:
        """Tell whether there is something to read now; `call` may not have been called for it yet."""
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._descriptor, select.POLLIN)
        return bool(self._poll.poll(0))

    def end(self) -> None:
        """Watch it no more. It comes before the socket is closed; a second call does nothing."""
        self._readiness.forget(self._descriptor, self)


class Readiness:
    """Watches sockets while `run` runs."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watches: dict[int, Watch] = {}
        # What the end of the pass that is under way calls; None between two passes.
        self._endings: list[Callable[[], None]] | None = None
        # That pass has one call only.
        self._alone = False

    def watch(self, descriptor: int, call: Callable[[], None]) -> Watch:
        """Have `call` called whenever the socket has bytes, its peer's end or an error to read."""
        assert descriptor not in self._watches, f"descriptor {descriptor} is watched already"
        # First what can fail: a watch that never was must be in nobody's way.
        self._epoll.register(descriptor, select.EPOLLIN)
        watch = self._watches[descriptor] = Watch(self, descriptor, call)
        return watch

    def forget(self, descriptor: int, watch: Watch) -> None:
        """End a watch, if it has not ended."""
        if self._watches.get(descriptor) is watch:
            del self._watches[descriptor]
            if not self._epoll.closed:
                self._epoll.unregister(descriptor)

    def at_end(self, call: Callable[[], None], *, ready: bool = False) -> bool:
        """Have `call` called at the end of this pass, behind all of its calls; False when none is under way.

        It must neither wait nor raise either. When all is `ready` for it that whoever asks has to add, and
        nobody else is called in this pass, it is called at once: what is done behind that keeps it no longer.
        """
        if self._endings is None:
            return False
        if ready and self._alone:
            call()
        else:
            self._endings.append(call)
        return True

    async def run(self) -> None:
        """Call, until cancelled; after that nothing is watched any more."""
        epoll, watches = self._epoll, self._watches
        descriptor_of_all = epoll.fileno()
        try:
            while True:
                await trio.lowlevel.wait_readable(descriptor_of_all)
                endings: list[Callable[[], None]] = []
                self._endings = endings
                readable = epoll.poll(0, CALLS_PER_PASS)
                self._alone = len(readable) == 1
                for descriptor, _ in readable:
                    # A call before may have ended this watch.
                    watch = watches.get(descriptor)
                    if watch is not None:
                        watch.call()
                self._endings = None
                # Until the next pass, which may be long, nothing of this one is held on to.
                watch = None
                while endings:
                    endings.pop(0)()
        finally:
            epoll.close()
