"""Where one task waits for another to wake it: the cheapest switch that trio has, without an Event a wait."""

from __future__ import annotations

import trio


class ParkingSpot:
    """Room for one task. A second one is a bug of the caller, not something to queue: BusyResourceError."""

    __slots__ = ("_conflict", "_task")

    def __init__(self, conflict: str) -> None:
        self._task: trio.lowlevel.Task | None = None
        self._conflict = conflict

    @property
    def taken(self) -> bool:
        return self._task is not None

    def check_free(self) -> None:
        if self._task is not None:
            raise trio.BusyResourceError(self._conflict)

    async def park(self) -> None:
        """Wait for unpark(). When cancelled, the spot is free again and nothing else has changed."""
        self.check_free()
        self._task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def unpark(self) -> None:
        """Wake the task that waits here, if one does."""
        task = self._task
        if task is not None:
            self._task = None
            trio.lowlevel.reschedule(task)
