"""Which hubs live on one data folder.

A hub that is replaced goes on for a while beside its successor, on the same store, and ends by itself what it
has begun. A hub that was killed does not. The successor has to tell the two apart, since it closes in the
audit trail what nobody else will.

The sign of life of a boot is a file of its name that its process holds locked. The kernel takes the lock away
when the process ends, however it ends, and gives it to no other process; a pid that is given again, or a
clock that is set, cannot be mistaken for it.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import trio

from audit.errors import AuditUnavailable
from audit.mask import Masks
from audit.record import utc
from audit.store import AuditStore
from proxy.hub.home.datadir import DataDirError, explained

# How long the calls of a hub that is killed while it finishes stay without an end in the trail.
LOOK_EVERY_S = 2.0
# What comes in waits meanwhile.
END_LOOK_S = 0.05

_log = logging.getLogger("hawse.hub")


@attrs.frozen
class HubInstances:
    """The folder of the signs of life."""

    folder: Path
    # The boots of which a fault was logged: `wait_ended` looks 20 times a second.
    _logged: set[str] = attrs.field(factory=set, init=False, repr=False, eq=False)

    @contextmanager
    def registered(self, boot: str) -> Iterator[None]:
        """Live, for the block, under this name, which no boot may ever have had before.

        Raises DataDirError.
        """
        try:
            descriptor = self._create_locked(boot)
        except OSError as error:
            raise DataDirError(f"cannot write in {self.folder}: {explained(error)}") from error
        with ExitStack() as end:
            end.callback(os.close, descriptor)
            end.callback((self.folder / boot).unlink, missing_ok=True)
            yield

    def _create_locked(self, boot: str) -> int:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        unborn = self.folder / f".{boot}"
        descriptor = os.open(unborn, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(descriptor, f"{os.getpid()}\n".encode("ascii"))
            # It appears locked, or whoever looks just then would take it for a dead one's.
            unborn.rename(self.folder / boot)
        except BaseException:
            os.close(descriptor)
            unborn.unlink(missing_ok=True)
            raise
        return descriptor

    def is_running(self, boot: str) -> bool:
        """Whether the process of this boot still runs.

        Where that cannot be told (a process out of descriptors, a file server that gives no locks) it does:
        to wait costs nothing, and to close a running hub's calls would be a false record.
        """
        try:
            descriptor = os.open(self.folder / boot, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        except OSError as error:
            self._log_once(boot, f"cannot see whether the hub of boot {boot} still runs: {error}")
            return True
        return False

    def _log_once(self, boot: str, fault: str) -> None:
        if boot not in self._logged:
            self._logged.add(boot)
            _log.warning("%s", fault, extra={"boot": boot})

    async def wait_ended(self, boot: str) -> None:
        """Return once the process of this boot has ended."""
        while True:
            if not self.is_running(boot):
                return
            await trio.sleep(END_LOOK_S)

    def running(self) -> set[str]:
        """Every boot that lives; the files of those that died are removed if they can be."""
        found = set()
        for file in self.folder.glob("[!.]*"):
            if self.is_running(file.name):
                found.add(file.name)
            else:
                # Its name never comes back.
                try:
                    file.unlink(missing_ok=True)
                except OSError as error:
                    self._log_once(file.name, f"cannot remove what a hub that has ended left: {error}")
        return found


async def close_calls_of_ended_hubs(
    instances: HubInstances, boot: str, audit_file: Path, masks: Masks, clock: Callable[[], float]
) -> None:
    """Close the calls of hubs that live no more, and return once no hub lives but this one.

    One that ends in peace leaves no call without an end. For one that was killed its calls are closed as
    `unknown`. Cancelled, a transaction that has begun still ends.
    """
    # Of nobody yet: one may have died since the trail was opened.
    closed_beside: set[str] | None = None
    while True:
        running = await trio.to_thread.run_sync(instances.running)
        running.discard(boot)
        if running != closed_beside:
            try:
                closed = await trio.to_thread.run_sync(
                    _close_unknown, instances, boot, audit_file, masks, clock
                )
            except AuditUnavailable as error:
                # It is tried again, whatever has changed by then.
                _log.warning("cannot close the calls of a hub that has ended: %s", error)
            else:
                closed_beside = running
                if closed:
                    _log.warning("audit: calls of a hub that was killed without a known end: %d", closed)
        if closed_beside is not None and not closed_beside:
            return
        await trio.sleep(LOOK_EVERY_S)


def _close_unknown(
    instances: HubInstances, boot: str, audit_file: Path, masks: Masks, clock: Callable[[], float]
) -> int:
    # A connection of its own: the recorder's belongs to the recorder's thread.
    store = AuditStore(audit_file, masks, make=False)
    try:
        return store.close_unknown(boot, utc(clock()), lives=instances.is_running)
    finally:
        store.close()
