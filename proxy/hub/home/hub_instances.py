"""The hub processes that run on one data folder.

A replaced hub drains beside its successor, on the same store, and records the ends of its own calls. A killed
hub can't. The successor must tell the two apart, because it closes the killed hub's calls in the audit trail.

Each hub process has a boot id, and holds a lock on a file of that name. The kernel releases the lock when the
process ends for any reason, and gives it to no other process. So a reused pid or a changed clock does not
mislead this check.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import trio

from audit.errors import AuditUnavailable
from audit.record import utc
from audit.stores import OwnTrail
from proxy.hub.home.files.private_files import DataDirError, explained

# How long the trail lacks the ends of the calls of a hub that was killed while it drained.
LOOK_EVERY_S = 2.0
# New connections wait in the backlog for this long.
END_LOOK_S = 0.05

_log = logging.getLogger("hawse.hub")


@attrs.frozen
class HubInstances:
    """The folder with one locked file for each hub process."""

    folder: Path
    # The boots of which a fault was logged: `wait_ended` looks 20 times a second.
    _logged: set[str] = attrs.field(factory=set, init=False, repr=False, eq=False)

    @contextmanager
    def registered(self, boot: str) -> Iterator[None]:
        """Hold a locked file for this boot during the block; raises DataDirError.

        The boot id must be new: it is never used again.
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
        temporary = self.folder / f".{boot}"
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(descriptor, f"{os.getpid()}\n".encode("ascii"))
            # Locked before it has its name: another hub would take an unlocked file for an ended hub's.
            temporary.rename(self.folder / boot)
        except BaseException:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)
            raise
        return descriptor

    def is_running(self, boot: str) -> bool:
        """Return whether the process of this boot still runs.

        True as well when the check fails (no descriptors left, a file server without locks): to wait does no
        harm, and to close a running hub's calls would make a false record.
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
        """Return the boots that run. Removes the files of the ended ones where it can."""
        found = set()
        for file in self.folder.glob("[!.]*"):
            if self.is_running(file.name):
                found.add(file.name)
            else:
                # A boot id is never used again, so the file can go.
                try:
                    file.unlink(missing_ok=True)
                except OSError as error:
                    self._log_once(file.name, f"cannot remove the file of a hub that has ended: {error}")
        return found


async def close_calls_of_ended_hubs(instances: HubInstances, boot: str, close: Callable[[], int]) -> None:
    """Close the calls of ended hubs of this folder in the trail, and return once no other one runs.

    `close` does that in a thread (`close_unknown`), and returns how many calls there were. A hub that ends in
    order closes its own calls. A killed hub's calls are closed as `unknown`. Cancelled, a transaction that
    has begun is still committed.
    """
    # None until the first round: a hub may have ended since the trail was opened.
    closed_beside: set[str] | None = None
    while True:
        running = await trio.to_thread.run_sync(instances.running)
        running.discard(boot)
        if running != closed_beside:
            try:
                closed = await trio.to_thread.run_sync(close)
            except AuditUnavailable as error:
                # `closed_beside` is unchanged, so the next round tries again.
                _log.warning("cannot close the calls of a hub that has ended: %s", error)
            else:
                closed_beside = running
                if closed:
                    _log.warning("audit: closed calls of a killed hub, whose end is not known: %d", closed)
        if closed_beside is not None and not closed_beside:
            return
        await trio.sleep(LOOK_EVERY_S)


def close_unknown(
    open_store: Callable[[], OwnTrail],
    boot: str,
    is_running: Callable[[str], bool],
    clock: Callable[[], float] = time.time,
) -> int:
    """Close the calls of all hubs but `boot` that do not run any more; returns how many there were.

    Raises AuditUnavailable.
    """
    # A separate connection: the recorder's is used by the recorder's thread only.
    store = open_store()
    try:
        return store.close_unknown(boot, utc(clock()), is_running=is_running)
    finally:
        store.close()
