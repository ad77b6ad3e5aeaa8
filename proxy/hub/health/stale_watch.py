"""Watches the age of the hub's snapshot: logs that the database is away, and ends what runs for too long.

Admission compares the age itself, at each call. This task is only for the log and for the calls that run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn

import attrs
import trio

from proxy.hub.calls.live import Ending, LiveCalls
from proxy.hub.calls.outcome import CloseReason
from proxy.hub.store.directory import Directory
from proxy.hub.store.versions.snapshot_age import Stage
from proxy.process.plural import counted

# A stage may begin this much later than at its age.
CHECK_S = 0.25

_log = logging.getLogger("hawse.hub")


@attrs.define(eq=False)
class StaleWatch:
    """The watch of one hub; the hub runs `run` as a task."""

    directory: Directory
    live: LiveCalls
    monotonic: Callable[[], float] = time.monotonic
    """The directory's clock."""
    end_forwarded: Callable[[str], Awaitable[int]] | None = None
    """Ends the calls that other hubs forward to this one, for a reason, and returns their number."""
    _stage: Stage = Stage.CONFIRMED
    _confirmed_s: float = 0.0
    """When the snapshot was confirmed last, before it became too old."""

    async def run(self) -> NoReturn:
        """Act at each stage of the age; never returns."""
        age = self.directory.age
        while True:
            now_s = self.monotonic()
            before, self._stage = self._stage, age.stage(now_s)
            if self._stage is not before:
                self._log_change(now_s, before)
            if self._stage is Stage.EXPIRED:
                await self._end_calls()
            if self._stage is Stage.CONFIRMED:
                await trio.sleep(max(age.confirmed_s + age.late_s - now_s, 0))
            else:
                await trio.sleep(CHECK_S)

    def _log_change(self, now_s: float, before: Stage) -> None:
        age, directory = self.directory.age, self.directory
        if self._stage is Stage.CONFIRMED:
            away_s = age.confirmed_s - self._confirmed_s
            _log.warning("the database has confirmed the hub's state again, after %.0f s", away_s)
            return
        if before is Stage.CONFIRMED:
            self._confirmed_s = age.confirmed_s
        if self._stage is Stage.LATE:
            _log.warning(
                "the database has not confirmed the hub's state for %.0f s (%s); after %.0f s all calls are "
                "refused (database.stale_s)",
                age.age_s(now_s),
                directory.fault or directory.applied.renewal_fault or "no answer",
                age.stale_s,
            )  # fmt: skip
        elif before in (Stage.CONFIRMED, Stage.LATE):
            _log.error("all calls are refused: %s", age.refusal(now_s))

    async def _end_calls(self) -> None:
        age = self.directory.age
        why = (
            f"this hub could not confirm its state with the database for {age.stale_streams_s:.0f} s "
            "(database.stale_streams_s)"
        )
        ending = Ending(CloseReason.REVOKED, why, unavailable=True)
        if ended := await self.live.end([(each, ending) for each in self.live]):
            _log.error("%s: ended %s", why, counted(len(ended), "call"))
        if self.end_forwarded is not None and (number := await self.end_forwarded(why)):
            _log.error("%s: ended %s of other hubs", why, counted(number, "call"))
