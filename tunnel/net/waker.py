"""Where one task waits for another to wake it: the cheapest switch that trio has, without an Event a wait."""

from __future__ import annotations

from typing import Final

import trio
from trio.lowlevel import Abort, current_task, reschedule, wait_task_rescheduled


class ParkingSpot:
    """Room for one task. A second one is a bug of the caller, not something to queue: BusyResourceError."""

    __slots__ = ("_conflict", "task")

    def __init__(self, conflict: str) -> None:
        self.task: trio.lowlevel.Task | None = None
        """Who waits here, to be read only: whether somebody does is asked several times for each message."""
        self._conflict = conflict

    def check_free(self) -> None:
        if self.task is not None:
            raise trio.BusyResourceError(self._conflict)

    async def park(self) -> None:
        """Wait for unpark(). When cancelled, the spot is free again and nothing else has changed."""
        if self.task is not None:
            raise trio.BusyResourceError(self._conflict)
        self.task = current_task()
        await wait_task_rescheduled(self._abort)

    def _abort(self, _: object) -> Abort:
        self.task = None
        return Abort.SUCCEEDED

    def unpark(self) -> None:
        """Wake the task that waits here, if one does."""
        task = self.task
        if task is not None:
            self.task = None
            reschedule(task)


class _NoSpot(ParkingSpot):
    """The spot where nobody has ever waited. It is shared, so nobody may."""

    __slots__ = ()

    async def park(self) -> None:
        raise AssertionError("this spot is nobody's")


# For whoever has many spots of which most are never used: put a real one in its place before waiting.
NO_SPOT: Final = _NoSpot("")
