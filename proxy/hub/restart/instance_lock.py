"""Where a hub lives: the folder's lock, the sockets that it listens on, and the door for its successor.

They are what goes from one process to the next when a hub is replaced; all else each process has of its own.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import attrs
import trio

from proxy.hub.home.config import HubConfig
from proxy.hub.home.datadir import DataDir, FolderInUseError, FolderLock
from proxy.hub.home.hub_instances import END_LOOK_S, HubInstances
from proxy.hub.restart.handover import (
    GoneError,
    HandoverError,
    Place,
    Succession,
    close_door,
    open_door,
    take_over,
)
from proxy.hub.restart.pidfile import PidFile
from proxy.listener.accept import open_sockets
from proxy.process.config import Address

# One that was killed has ended at once; one that is told to stop meanwhile has its grace first, which is a
# third of this by default. Who comes in between is refused, unless the sockets were handed on.
ENDS_WITHIN_S = 30.0

_log = logging.getLogger("hawse.hub")


@attrs.define(eq=False)
class Premises:
    """A hub's place; made by open_premises."""

    data: DataDir
    boot: str
    lock: FolderLock
    door: socket.socket
    front: tuple[Address, list[socket.socket]]
    """What is configured, and where this process listens for it."""
    admin: tuple[Address, list[socket.socket]]
    predecessor: Succession | None
    """While the one before has not let go."""
    pid_file: PidFile | None = None
    given_away: bool = False

    async def claim(self) -> bool:
        """Have the one before accept no more, and return whether there was one; raises HandoverError."""
        if self.predecessor is None:
            return False
        try:
            await self.predecessor.claim()
        except GoneError:
            await self._inherit(self.predecessor)
        self.lock.sign()
        return True

    async def confirm(self) -> None:
        """Tell the one before that this one accepts; raises HandoverError when that one goes on."""
        if self.predecessor is not None:
            try:
                await self.predecessor.confirm()
            except GoneError:
                await self._inherit(self.predecessor)
            else:
                _log.info("took over from the hub that ran here; it finishes what it has begun")
                self.predecessor = None
        if self.pid_file is not None:
            self.pid_file.write()

    async def _inherit(self, predecessor: Succession) -> None:
        """Go on without the one before, which is ending; raises HandoverError when it does not end.

        Cancelled, it is still the place of the one before.
        """
        instances = HubInstances(self.data.instances_dir)
        try:
            with trio.fail_after(ENDS_WITHIN_S):
                await instances.wait_ended(predecessor.boot)
        except trio.TooSlowError:
            raise HandoverError(
                f"the hub that runs on {self.data.path} has hung up, and still runs "
                f"{ENDS_WITHIN_S:.0f} s later: stop it, and start this one again"
            ) from None
        # It may have taken the door's name with it.
        self.door.close()
        self.door = open_door(self.data)
        predecessor.close()
        self.predecessor = None
        _log.warning("the hub that ran here ended before it had given its place away: this one has it now")

    def place(self, pause: Callable[[], Awaitable[None]], resume: Callable[[], None]) -> Place:
        """Return what a successor is given; it has this hub `pause` to accept, or `resume`."""
        return Place(
            data=self.data,
            lock=self.lock,
            door=self.door,
            listeners={
                name: (str(address), sockets)
                for name, (address, sockets) in (("front", self.front), ("admin", self.admin))
            },
            boot=self.boot,
            pause=pause,
            resume=resume,
            log=_log.warning,
        )

    def shut_door(self) -> None:
        """Be asked for the place no more: whoever would ask waits for this hub's end instead."""
        close_door(self.data)
        self.door.close()

    def give_away(self) -> None:
        """A successor has it all: this process lets go of its share."""
        self.given_away = True
        self._close()

    def stop_listening(self) -> None:
        """Let go of the sockets: who comes from now on is refused at once, unless a successor has them too.

        Left open, they would have newcomers wait in their backlogs until this process ends, in vain.
        """
        for _, sockets in (self.front, self.admin):
            for each in sockets:
                each.close()

    def _close(self) -> None:
        self.stop_listening()
        self.door.close()
        self.lock.release()

    def leave(self) -> None:
        """Let go of what is still this process's; nobody else can have come in before."""
        if self.predecessor is not None:
            self.predecessor.close()
        elif not self.given_away:
            close_door(self.data)
            if self.pid_file is not None:
                self.pid_file.remove()
        self._close()


@asynccontextmanager
async def open_premises(
    config: HubConfig, data: DataDir, boot: str, *, replace: bool
) -> AsyncIterator[Premises]:
    """Get a place for the block: one that is free, or with `replace` that of the hub which runs here.

    Raises FolderInUseError, HandoverError, FileError when its PID file cannot be written, and OSError when an
    address cannot be listened on.
    """
    pid_file = PidFile(config.pid_file) if config.pid_file is not None else None
    if pid_file is not None:
        pid_file.check()
    succession, lock, door = await _wait_for_place(data) if replace else (None, *_free_place(data))
    premises = Premises(
        data, boot, lock, door, (config.listen, []), (config.admin.listen, []), succession, pid_file
    )
    try:
        held = succession.ports() if succession is not None else {}
        for name, stated, (address, sockets) in (
            ("front", "listen", premises.front),
            ("admin", "admin.listen", premises.admin),
        ):
            found = succession.take(name, str(address)) if succession is not None else []
            sockets.extend(found or await _open_anew(address, stated, held))
        yield premises
    finally:
        premises.leave()


async def _open_anew(address: Address, stated: str, held: Mapping[int, str]) -> list[socket.socket]:
    """Listen on what the one before does not listen on; raises OSError.

    `held` says where that one listens on a port. What overlaps it, as [::] does any address, is only free
    once that one has ended, and it ends once this one listens.
    """
    try:
        return await open_sockets(address, stated)
    except OSError as error:
        cause = error.__cause__
        taken = isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE
        if not taken or address.port not in held:
            raise
        raise OSError(
            f"cannot listen on {address} ({stated}): the hub that is to be replaced listens on "
            f"{held[address.port]}: keep that address, take another port, or stop that hub first"
        ) from error


async def _ask(data: DataDir) -> Succession | None:
    """Ask the hub that runs for its place; None when none does, or it ends instead of an answer."""
    try:
        return await take_over(data)
    except GoneError:
        return None


def _free_place(data: DataDir) -> tuple[FolderLock, socket.socket]:
    lock = data.lock()
    try:
        return lock, open_door(data)
    except BaseException:
        lock.release()
        raise


async def _wait_for_place(data: DataDir) -> tuple[Succession | None, FolderLock, socket.socket]:
    """Ask the hub that runs, or take the folder once nobody holds it; raises HandoverError.

    A hub that stops has no door any more. While its end is waited for another newcomer may be faster, and is
    asked then.
    """
    held: FolderInUseError | None = None
    with trio.move_on_after(ENDS_WITHIN_S):
        while True:
            succession = await _ask(data)
            if succession is not None:
                return succession, succession.lock, succession.door
            try:
                lock, door = _free_place(data)
            except FolderInUseError as error:
                if held is None:
                    _log.info("waiting for the end of the process %s that holds %s", error.pid, data.path)
                held = error
            else:
                _log.info("no hub runs on %s: there is none to replace", data.path)
                return None, lock, door
            await trio.sleep(END_LOOK_S)
    assert held is not None, "or the folder was free at the first look"
    raise HandoverError(
        f"the process {held.pid} that holds {data.path} cannot be asked for its place, and still runs "
        f"{ENDS_WITHIN_S:.0f} s later: stop it first (one that is told to stop has its stop.grace_s)"
    ) from held
