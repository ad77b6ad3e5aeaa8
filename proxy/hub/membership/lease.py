"""The lease of this hub: a row in the table `hubs`, which it renews every RENEW_EVERY_S.

The hub confirms its snapshot by its renewals (proxy/hub/store/versions/applied.py): it decides by a state
only as long as the database takes its commits. Without a renewal it refuses everything new after `stale_s`,
and ends its calls after `stale_streams_s`. After 15 s more, another hub marks it as dead and closes its epoch
of the trail, and with it its calls.

A hub that finds its row dead or missing, or its epoch closed, may have been stopped for a while. The others
have given its calls an end. So it ends them at once, and the process ends: `open_members` raises
LostLeaseError. Its supervisor starts it again, with an epoch of its own.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import NoReturn

import attrs
import trio

from audit.errors import AuditUnavailable
from audit.postgres.link import Conninfo
from proxy.hub.home.files.private_files import DataDirError
from proxy.hub.membership.deaths import DeathWatch
from proxy.hub.membership.member import Member, MemberState
from proxy.hub.membership.members import LostLeaseError, Members
from proxy.hub.membership.table import MembersTable, Reading, Row
from proxy.hub.store.directory import Directory
from proxy.hub.store.engines.errors import StoreUnavailableError

# A fifth of `stale_s`, so that one lost answer refuses nothing. A renewal takes 5 ms, most of it a flush.
RENEW_EVERY_S = 2.0
# With a lower `stale_s`, renewals are as many times more frequent.
RENEWALS_IN_STALE = 4
# Between two renewals, however many are wanted; also before another attempt.
RENEW_GAP_S = 0.05
RETRY_S = 0.25
# How long a start looks whether another process of its id renews. Longer than two renewals.
COPY_WATCH_S = 6.0
COPY_LOOK_S = 0.5

_log = logging.getLogger("hawse.hub")


@attrs.frozen(kw_only=True)
class Joining:
    """What a hub needs to join the others."""

    conninfo: Conninfo
    directory: Directory
    me: Member
    place: str
    running: Callable[[], Collection[str]]
    """Returns the boots of this data folder that run; called in a thread."""
    close_calls: Callable[[], int]
    """Closes the calls of ended hubs in the trail, and returns how many; called in a thread.

    Raises AuditUnavailable.
    """


def place_of(data_dir: Path) -> str:
    """Return a digest of the machine, since its start, and of the data folder.

    On one place, the locks of the folder show which hubs run. A copy of the folder is another place.
    """
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
    except OSError:
        machine = socket.gethostname()
    status = os.stat(data_dir)
    return hashlib.sha256(f"{machine}/{status.st_dev}/{status.st_ino}".encode()).hexdigest()


@asynccontextmanager
async def open_members(joining: Joining) -> AsyncIterator[Members]:
    """Join the other hubs for the block, and keep the lease meanwhile.

    The hub's row says `gone` afterwards. Raises StoreUnavailableError, DataDirError for a copy of the data
    folder of a hub that runs, and, from within an exception group, LostLeaseError.
    """
    table = MembersTable(joining.conninfo)
    thread = trio.CapacityLimiter(1)
    with closing(table):
        await _refuse_copy(joining, table, thread)
        me = joining.me
        epoch = await trio.to_thread.run_sync(partial(_join, joining, table), limiter=thread)
        lease = _Lease(joining, table, thread, Members(attrs.evolve(me, epoch=epoch)))
        await lease.renew()
        joining.directory.on_change(lease.members.renew_soon)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lease.run)
                nursery.start_soon(lease.run_closing)
                yield lease.members
                nursery.cancel_scope.cancel()
        finally:
            # In a thread that ends within the bounds of a connection attempt and an answer.
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(lease.go, limiter=thread)


def _join(joining: Joining, table: MembersTable) -> int:
    return table.join(joining.me, joining.place, joining.running())


async def _refuse_copy(joining: Joining, table: MembersTable, thread: trio.CapacityLimiter) -> None:
    """Raise DataDirError if a hub with this one's id renews its lease from another data folder."""
    first: dict[str, str] = {}
    while True:
        reading = await trio.to_thread.run_sync(table.read, limiter=thread)
        watched = False
        for row in reading.rows:
            member = row.member
            if member.hub != joining.me.hub or row.place == joining.place:
                continue
            if first.setdefault(member.boot, row.renewed_at) != row.renewed_at:
                raise DataDirError(
                    f"another process with the id of this hub, {member.name}, runs on another data folder "
                    "or machine: if this folder is a copy of its folder, remove the files hub-id and "
                    "admin-token from this one, and start it again; otherwise stop that hub"
                )
            watched = watched or (member.living and member.age_s < COPY_WATCH_S)
        if not watched:
            return
        await trio.sleep(COPY_LOOK_S)


@attrs.define(eq=False)
class _Lease:
    """The renewals of one hub."""

    joining: Joining
    table: MembersTable
    thread: trio.CapacityLimiter
    members: Members
    _deaths: DeathWatch = attrs.Factory(DeathWatch)
    _unsettled: trio.Event = attrs.Factory(trio.Event)
    """Set while ended hubs may have calls without an end."""

    async def run(self) -> NoReturn:
        """Renew until cancelled; raises LostLeaseError."""
        every_s = min(RENEW_EVERY_S, self.members.me.stale_s / RENEWALS_IN_STALE)
        while True:
            gap_s = RETRY_S if self.members.fault else RENEW_GAP_S
            began_s = trio.current_time()
            with trio.move_on_after(RETRY_S if self.members.fault else every_s):
                await self.members.wait_wanted()
                await trio.sleep_until(began_s + gap_s)
            try:
                await self.renew()
            except StoreUnavailableError as error:
                self._note_fault(str(error))

    async def renew(self) -> None:
        """Renew once; raises StoreUnavailableError, LostLeaseError."""
        directory = self.joining.directory
        row = attrs.evolve(self.members.begin(), applied=directory.applied.version.number)
        reading = await trio.to_thread.run_sync(self.table.renew, row, limiter=self.thread)
        self._note_fault("")
        self._refuse_lost(reading)
        assert reading.version is not None, "there is a row"
        if directory.applied.renew(reading.version, reading.sent_s):
            directory.poll_soon()
        self.members.note([each.member for each in reading.rows])
        if overdue := self._deaths.overdue(reading):
            await self._mark_dead(overdue)
        if any(each.is_unsettled for each in reading.rows):
            self._unsettled.set()
        if any(each.is_old for each in reading.rows):
            await trio.to_thread.run_sync(self.table.forget, limiter=self.thread)

    def _note_fault(self, fault: str) -> None:
        self.members.fault = self.joining.directory.applied.renewal_fault = fault

    def go(self) -> None:
        """Say that this hub has ended in order."""
        try:
            self.table.go(self.members.me.boot)
        except StoreUnavailableError as error:
            _log.warning("the other hubs wait for the end of this one's lease: %s", error)

    def _refuse_lost(self, reading: Reading) -> None:
        mine = reading.of(self.members.me.boot)
        if mine is None:
            why = "the database has lost this hub's lease"
        elif mine.member.state is MemberState.DEAD:
            why = "the lease of this hub had ended, and another hub has closed its calls"
        elif mine.epoch != "open":
            why = f"the epoch of this hub in the audit trail is {mine.epoch}"
        else:
            return
        _log.error("this hub ends its calls and exits: %s; start it again", why)
        raise LostLeaseError(why)

    async def _mark_dead(self, overdue: list[Row]) -> None:
        marked = await trio.to_thread.run_sync(self.table.mark_dead, overdue, limiter=self.thread)
        for row in overdue:
            if row.member.boot in marked:
                _log.error(
                    "hub %s is dead: its lease was not renewed for %.0f s; its calls are closed in the trail",
                    row.member.name, row.member.age_s, extra={"boot": row.member.boot},
                )  # fmt: skip
        self._unsettled.set()
        # So that the others know at once.
        self.members.renew_soon()

    async def run_closing(self) -> NoReturn:
        """Close the calls of ended hubs in the trail, until cancelled."""
        while True:
            await self._unsettled.wait()
            self._unsettled = trio.Event()
            try:
                closed = await trio.to_thread.run_sync(self.joining.close_calls)
            except AuditUnavailable as error:
                _log.warning("cannot close the calls of a hub that has ended: %s", error)
            else:
                if closed:
                    _log.warning("audit: closed calls of a dead hub, whose end is not known: %d", closed)
            # A renewal sees whether there is more to close.
            await trio.sleep(RENEW_EVERY_S)
