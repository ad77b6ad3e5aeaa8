"""Wakes a task that waits: the cheapest switch that trio has, without an Event for each wait."""

from __future__ import annotations

import trio
from trio.lowlevel import Abort, current_task, reschedule, wait_task_rescheduled


class Waker:
    """Wakes one task. A second one that waits is a bug of the caller, and raises BusyResourceError."""

    __slots__ = ("_conflict", "task")

    def __init__(self, conflict: str) -> None:
        self.task: trio.lowlevel.Task | None = None
        """The task that waits, for reading only: it is read several times for each message."""
        self._conflict = conflict

    def check_free(self) -> None:
        if self.task is not None:
            raise trio.BusyResourceError(self._conflict)

    async def park(self) -> None:
        """Wait for unpark(). When cancelled, another task may wait, and nothing else has changed."""
        if self.task is not None:
            raise trio.BusyResourceError(self._conflict)
        self.task = current_task()
        await wait_task_rescheduled(self._abort)

    def _abort(self, _: object) -> Abort:
        self.task = None
        return Abort.SUCCEEDED

    def unpark(self) -> None:
        """Wake the task that waits, if one does."""
        task = self.task
        if task is not None:
            self.task = None
            reschedule(task)
