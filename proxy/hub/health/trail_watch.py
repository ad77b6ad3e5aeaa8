"""Watches the trail while the hub runs: its disk, its identity, and open upgrades while it is down.

While events do not reach the disk, nothing begins that must be recorded: writes, upgrades and tokens are
refused on request. Open calls continue unrecorded, so upgrades, which may do anything, end after
`audit.down_grace_s`.
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
from audit.recording.recorder import Recorder
from audit.stores import OwnTrail
from proxy.hub.calls.live import Ending, LiveCalls
from proxy.hub.calls.outcome import CloseReason
from proxy.hub.store.directory import Directory
from proxy.process.plural import counted

# The interval of checks, and so how much later than audit.down_grace_s an upgrade may end.
CHECK_S = 1.0
# A disk of 100 GB fills by 80 GB an hour at worst: 0.2 % of it between two checks.
DISK_CHECK_S = 10.0
# An event is recorded above the first share, and again only after the disk was below the second.
FILLED_AT = 0.80
RELIEVED_AT = 0.75
# The trail in SQLite, and the log that SQLite keeps beside it.
_TRAIL_FILES = ("audit.db", "audit.db-wal")

_log = logging.getLogger("hawse.audit")


@attrs.frozen
class Disk:
    """The trail's file system. Bytes reserved for root are not counted."""

    size_bytes: int
    free_bytes: int
    trail_bytes: int = 0
    """The size of the trail's own files."""

    @property
    def filled(self) -> float:
        """The share in use, as df computes it."""
        return 1 - self.free_bytes / self.size_bytes if self.size_bytes else 1.0


def disk_of(folder: Path) -> Disk:
    """Read a folder's file system; raises OSError."""
    found = os.statvfs(folder)
    used = found.f_blocks - found.f_bfree
    trail_bytes = sum(_size_bytes(folder / name) for name in _TRAIL_FILES)
    return Disk((used + found.f_bavail) * found.f_frsize, found.f_bavail * found.f_frsize, trail_bytes)


def _size_bytes(file: Path) -> int:
    try:
        return os.stat(file).st_size
    except FileNotFoundError:
        return 0


def fullness(folder: Path, disk: Disk) -> str | None:
    """A warning about a disk that is nearly full, or None."""
    if disk.filled < FILLED_AT:
        return None
    return (
        f"the disk of {folder} is {disk.filled:.0%} full, {disk.free_bytes // 2**20} MiB are free: when it "
        "is full, writes and tokens are refused; make it larger, or prune the trail"
    )


@attrs.define(eq=False)
class TrailWatch:
    """The periodic checks; the hub runs `run_grace` and `run_disk` as tasks."""

    store: OwnTrail
    directory: Directory
    recorder: Recorder
    live: LiveCalls
    down_grace_s: int
    record: Callable[[Kind, str], Event]
    """Builds an event of the hub itself."""
    folder: Path | None
    """The trail's folder; None for a trail in a database."""
    disk: Disk | None = None
    """The result of the last check."""
    _full: bool = False

    def note(self) -> None:
        """Record the trail's current position in the hub's store."""
        self.directory.used.note_trail(self.store.mark)

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
            await trio.sleep(CHECK_S)
            if self.down_grace_s and self.recorder.down_s >= self.down_grace_s:
                doomed = [(each, ending) for each in self.live if each.call.head.upgrade is not None]
                if ended := await self.live.end(doomed):
                    _log.error("audit: %s: ended %s", why, counted(len(ended), "upgrade"))

    async def run_disk(self) -> NoReturn:
        """Check how full the disk is, and record the trail's position; never returns."""
        while True:
            self.note()
            if self.folder is not None:
                await self._check_disk(self.folder)
            await trio.sleep(DISK_CHECK_S)

    async def _check_disk(self, folder: Path) -> None:
        try:
            self.disk = await trio.to_thread.run_sync(disk_of, folder)
        except OSError as error:
            _log.warning("audit: cannot see how full the disk of %s is: %s", folder, error)
        else:
            self._judge(folder, self.disk)

    def _judge(self, folder: Path, disk: Disk) -> None:
        warning = fullness(folder, disk)
        if warning is not None and not self._full:
            self._full = True
            _log.error("audit: %s", warning)
            self.recorder.complete(self.record(Kind.AUDIT_DISK, warning))
        elif self._full and disk.filled < RELIEVED_AT:
            self._full = False
            _log.warning("audit: the disk of %s is %.0f %% full again", folder, disk.filled * 100)
