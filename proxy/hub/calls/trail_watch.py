"""Watches the trail while the hub runs: its disk, its identity, and open upgrades while it is down.

While events do not reach the disk, nothing begins that must be recorded: writes, upgrades and tokens are
refused where they are asked for. What is open already goes on unrecorded, so upgrades, in which anything may
be done, end after `audit.down_grace_s`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import attrs
import trio

from audit.record import Event, Kind
from audit.recorder import Recorder
from audit.store import AuditStore
from proxy.exchange.forward import CloseReason
from proxy.hub.calls.live import Ending, LiveCalls
from proxy.hub.store.directory import Directory
from proxy.process.plural import counted

# How much later than audit.down_grace_s an upgrade may end.
LOOK_S = 1.0
# A disk of 100 GB fills by 80 GB an hour at the worst: 0.2 % of it in between.
DISK_LOOK_S = 10.0
# Above the first an event says so; it says so again when it was below the second meanwhile.
FILLED_AT = 0.80
RELIEVED_AT = 0.75

_log = logging.getLogger("hawse.audit")


@attrs.frozen
class Disk:
    """The file system of the trail. Bytes of a reserve for root count as neither."""

    size_bytes: int
    free_bytes: int

    @property
    def filled(self) -> float:
        """Its share that is in use, as df says it."""
        return 1 - self.free_bytes / self.size_bytes if self.size_bytes else 1.0


def disk_of(folder: Path) -> Disk:
    """Look at a folder's file system; raises OSError."""
    found = os.statvfs(folder)
    used = found.f_blocks - found.f_bfree
    return Disk((used + found.f_bavail) * found.f_frsize, found.f_bavail * found.f_frsize)


def fullness(folder: Path, disk: Disk) -> str | None:
    """What is to be said of a disk that is nearly full; None where it is not."""
    if disk.filled < FILLED_AT:
        return None
    return (
        f"the disk of {folder} is {disk.filled:.0%} full, {disk.free_bytes // 2**20} MiB are free: when it "
        "is full, writes and tokens are refused; make it larger, or prune the trail"
    )


@attrs.define(eq=False)
class TrailWatch:
    """The looks; the hub runs both `run_…` beside its other tasks."""

    store: AuditStore
    directory: Directory
    recorder: Recorder
    live: LiveCalls
    down_grace_s: int
    record: Callable[[Kind, str], Event]
    """Makes an event of the hub's own."""
    disk: Disk | None = None
    """As it was at the last look."""
    _full: bool = False

    @property
    def folder(self) -> Path:
        """Where the trail is."""
        return self.store.path.parent

    def note(self) -> None:
        """Have the store of the hub know how far the trail has come."""
        self.directory.note_trail(self.store.mark)

    def follow(self) -> None:
        """Continue in another trail once an operator has accepted it; a listener of the directory."""
        accepted = self.directory.current.trail
        if accepted is not None and accepted.id != self.store.mark.id:
            self.store.expect(accepted)

    async def run_grace(self) -> NoReturn:
        """End open upgrades when the trail has been down for too long; never returns."""
        why = f"the audit trail cannot be written for {self.down_grace_s} s (audit.down_grace_s)"
        ending = Ending(CloseReason.DEADLINE, why)
        while True:
            await trio.sleep(LOOK_S)
            if self.down_grace_s and self.recorder.down_s >= self.down_grace_s:
                doomed = [(each, ending) for each in self.live if each.call.head.upgrade is not None]
                if ended := await self.live.end(doomed):
                    _log.error("audit: %s: ended %s", why, counted(len(ended), "upgrade"))

    async def run_disk(self) -> NoReturn:
        """Look how full the disk is, and note how far the trail has come; never returns."""
        while True:
            self.note()
            try:
                self.disk = await trio.to_thread.run_sync(disk_of, self.folder)
            except OSError as error:
                _log.warning("audit: cannot see how full the disk of %s is: %s", self.folder, error)
            else:
                self._judge(self.disk)
            await trio.sleep(DISK_LOOK_S)

    def _judge(self, disk: Disk) -> None:
        told = fullness(self.folder, disk)
        if told is not None and not self._full:
            self._full = True
            _log.error("audit: %s", told)
            self.recorder.complete(self.record(Kind.AUDIT_DISK, told))
        elif self._full and disk.filled < RELIEVED_AT:
            self._full = False
            _log.warning("audit: the disk of %s is %.0f %% full again", self.folder, disk.filled * 100)
