"""Waits for a stopping process's open exchanges, up to a deadline.

Nearly every exchange is short, and one that takes longer than PLAIN_S is not waited for. Watches, followed
logs and upgrades are long by nature, and get the whole grace. So only the number of each kind must be known,
and no exchange needs a cancel scope.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import trio

# kube-apiserver's deadline for an ordinary request.
PLAIN_S = 60.0


class Drained(ABC):
    """Base of the class that counts open exchanges; it calls `_ended` when one ends."""

    _waiter: trio.Event | None = None
    """Set only while a task waits."""

    @property
    @abstractmethod
    def count(self) -> int:
        """The number of open exchanges."""

    @property
    @abstractmethod
    def long(self) -> int:
        """How many of them are watches, followed logs or upgrades."""

    @property
    @abstractmethod
    def any_long(self) -> bool:
        """Whether there is a long one; checked whenever an exchange ends, so it must be cheap."""

    def _ended(self) -> None:
        if self._waiter is not None:
            self._waiter.set()

    async def wait_drained(self, grace_s: float) -> bool:
        """Wait until no exchange is open: PLAIN_S for all, then for the long ones, `grace_s` in total.

        Returns whether none is open. One task at a time.
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
