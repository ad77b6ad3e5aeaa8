"""What is still under way at a process that stops, and how long it is waited for.

Nearly every exchange is short, and one that is not over after PLAIN_S is waited for no longer. Watches, logs
that are followed and upgrades are long by their nature: they have the whole grace. So only how many there are
of both kinds has to be known, and no exchange costs a cancel scope of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import trio

# What kube-apiserver gives an ordinary request.
PLAIN_S = 60.0


class Drained(ABC):
    """Whoever knows what is under way; with each exchange that is over it calls `_ended`."""

    _waiter: trio.Event | None = None
    """Only while somebody waits."""

    @property
    @abstractmethod
    def count(self) -> int:
        """How many exchanges are under way."""

    @property
    @abstractmethod
    def long(self) -> int:
        """Those of them that are watches, followed logs or upgrades."""

    @property
    @abstractmethod
    def any_long(self) -> bool:
        """Whether there is one of those; it is asked whenever an exchange is over."""

    def _ended(self) -> None:
        if self._waiter is not None:
            self._waiter.set()

    async def wait_drained(self, grace_s: float) -> bool:
        """Wait until nothing is under way, for PLAIN_S and then for the long ones, for `grace_s` in all.

        Returns whether nothing is. One task at a time.
        """
        with trio.move_on_after(grace_s):
            with trio.move_on_after(PLAIN_S):
                await self._wait(lambda: not self.count)
            await self._wait(lambda: not self.any_long)
        return not self.count

    async def _wait(self, done: Callable[[], bool]) -> None:
        try:
            while not done():
                self._waiter = trio.Event()
                await self._waiter.wait()
        finally:
            self._waiter = None
