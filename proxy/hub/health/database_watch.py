"""Watches the database in PostgreSQL while the hub runs: lost changes, and its clock.

While the database lacks a version that this hub has applied, the directory refuses everything new
(proxy/hub/store/versions/lineage.py). That version is kept in the data folder, so that a restart does not
accept the loss. It is written within POLL_EVERY_S, and not with each change: a flush takes as long as the
commit. So a loss stays unseen only if both the hub and the database die within that time after the change.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import NoReturn

import attrs
import trio

from audit.record import Event, Kind
from proxy.hub.home.files.private_files import DataDirError
from proxy.hub.store.directory import POLL_EVERY_S, Directory
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.store import Store
from proxy.hub.store.versions.lineage import ACCEPT, Lineage, Loss
from proxy.hub.store.versions.version import Version

# A clock drifts by some milliseconds a minute; a clock that was set is found within it.
CLOCK_CHECK_S = 60.0
CLOCK_LOG_EVERY_S = 3600.0

_log = logging.getLogger("hawse.hub")


@attrs.define(eq=False)
class DatabaseWatch:
    """The hub runs `run_clock` as a task, and `run_memory` while it maintains the data folder."""

    directory: Directory
    lineage: Lineage
    make_event: Callable[[Kind, str], Event]
    record: Callable[[Event], None]
    remember: Callable[[Version], None]
    """Writes a version to the data folder; raises DataDirError."""
    clock_error_s: float = 0.0
    """By how much this machine's clock was ahead of the database's at the last check."""
    _reported: Loss | None = None
    _warned_s: float = -math.inf

    def report(self) -> None:
        """Log and record a loss, and its end; a listener of the directory."""
        loss, before = self.lineage.loss, self._reported
        self._reported = loss
        if loss is not None and (before is None or before.applied != loss.applied):
            accepts = self.lineage.accepts
            _log.error("%s: %s", loss, "accepted" if accepts else f"no new call is accepted: {ACCEPT}")
            note = f"{loss}; accepted" if accepts else str(loss)
            self.record(self.make_event(Kind.DIRECTORY_ROLLED_BACK, note))
        elif loss is None and before is not None:
            _log.warning("version %d of the directory is back, or its loss is accepted", before.applied)

    async def run_memory(self) -> NoReturn:
        """Keep the applied version in the data folder; never returns."""
        written, fault = None, ""
        while True:
            applied = self.lineage.applied
            if applied is not None and applied != written:
                try:
                    await trio.to_thread.run_sync(self.remember, applied)
                except DataDirError as error:
                    if not fault:
                        _log.warning("%s; until then, a restart would not notice lost changes", error)
                    fault = str(error)
                else:
                    written, fault = applied, ""
            await trio.sleep(POLL_EVERY_S)

    async def run_clock(self) -> NoReturn:
        """Compare this machine's clock with the database's regularly; never returns."""
        while True:
            await trio.sleep(CLOCK_CHECK_S)
            try:
                self.note_clock(await self.directory.read(Store.clock_error_s))
            except StoreUnavailableError:
                # The poll reports it.
                continue

    def note_clock(self, error_s: float) -> None:
        """Note a clock's error, and warn of a large one, once in CLOCK_LOG_EVERY_S."""
        # Its driver is an extra.
        from proxy.hub.store.engines.postgres import CLOCK_ERROR_MAX_S, clock_warning

        self.clock_error_s = error_s
        now_s = trio.current_time()
        if abs(error_s) > CLOCK_ERROR_MAX_S and now_s - self._warned_s >= CLOCK_LOG_EVERY_S:
            self._warned_s = now_s
            _log.warning("%s: set the wrong one by NTP; a start would be refused", clock_warning(error_s))
