"""The instance lock of a hub: the folder's lock, the listening sockets, and the restart socket.

A handover passes these from the old process to the new one. Everything else belongs to one process.
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
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.files.folder_lock import FolderInUseError, FolderLock
from proxy.hub.home.hub_instances import END_LOOK_S, HubInstances
from proxy.hub.restart.handover import (
    GoneError,
    HandoverClient,
    HandoverError,
    HandoverServer,
    open_restart_socket,
    request_handover,
    unlink_restart_socket,
)
from proxy.hub.restart.pidfile import PidFile
from proxy.listener.accept import open_sockets
from proxy.process.config import Address

# A killed hub ends at once; a stopped one drains first, by default for a third of this time. Until the old
# hub has ended, clients are refused, unless the sockets were passed on.
ENDS_WITHIN_S = 30.0

_log = logging.getLogger("hawse.hub")


@attrs.define(eq=False)
class InstanceLock:
    """Holds the folder, the listening sockets and the restart socket; made by open_instance_lock."""

    data: DataDir
    boot: str
    lock: FolderLock
    restart_socket: socket.socket
    front: tuple[Address, list[socket.socket]]
    """The configured address, and the sockets that listen on it."""
    admin: tuple[Address, list[socket.socket]]
    peer: tuple[Address, list[socket.socket]] | None
    """For other hubs; None without `peer.listen`."""
    console: tuple[Address, list[socket.socket]] | None
    """For browsers; None without `console.listen`."""
    predecessor: HandoverClient | None
    """The old hub, until it has handed over or ended."""
    pid_file: PidFile | None = None
    handed_over: bool = False

    async def pause_old_hub(self) -> bool:
        """Make the old hub stop accepting, and return whether there is one; raises HandoverError."""
        if self.predecessor is None:
            return False
        try:
            await self.predecessor.pause_old_hub()
        except GoneError:
            await self._wait_for_end_of(self.predecessor)
        self.lock.sign()
        return True

    async def confirm(self) -> None:
        """Report to the old hub that this one accepts; raises HandoverError when the old hub continues."""
        if self.predecessor is not None:
            try:
                await self.predecessor.confirm()
            except GoneError:
                await self._wait_for_end_of(self.predecessor)
            else:
                _log.info("took over from the hub that ran here; it finishes its open calls")
                self.predecessor = None
        if self.pid_file is not None:
            self.pid_file.write()

    async def _wait_for_end_of(self, predecessor: HandoverClient) -> None:
        """Wait until the old hub has ended, and take its restart socket.

        Raises HandoverError when it does not end within ENDS_WITHIN_S. Cancelled, the lock is still the old
        hub's.
        """
        instances = HubInstances(self.data.instances_dir)
        try:
            with trio.fail_after(ENDS_WITHIN_S):
                await instances.wait_ended(predecessor.boot)
        except trio.TooSlowError:
            raise HandoverError(
                f"the hub that runs on {self.data.path} has closed the handover, and still runs "
                f"{ENDS_WITHIN_S:.0f} s later: stop it, and start this one again"
            ) from None
        # The old hub may have removed the socket's file.
        self.restart_socket.close()
        self.restart_socket = open_restart_socket(self.data)
        predecessor.close()
        self.predecessor = None
        _log.warning("the hub that ran here ended during the handover: this one has taken over")

    def handover_server(
        self, pause: Callable[[], Awaitable[None]], resume: Callable[[], None]
    ) -> HandoverServer:
        """Return the server that offers these to a new hub; it calls `pause` and `resume` of this hub."""
        return HandoverServer(
            data=self.data,
            lock=self.lock,
            restart_socket=self.restart_socket,
            listeners={name: (str(address), sockets) for name, _, (address, sockets) in self.listeners()},
            boot=self.boot,
            pause=pause,
            resume=resume,
            log=_log.warning,
        )

    def listeners(self) -> list[tuple[str, str, tuple[Address, list[socket.socket]]]]:
        """Return each listener: its name in a handover, its key in the configuration, address and sockets."""
        found = [("front", "listen", self.front), ("admin", "admin.listen", self.admin)]
        if self.peer is not None:
            found.append(("peer", "peer.listen", self.peer))
        if self.console is not None:
            found.append(("console", "console.listen", self.console))
        return found

    def close_restart_socket(self) -> None:
        """Take no more handover requests: a new hub waits for this hub's end instead."""
        unlink_restart_socket(self.data)
        self.restart_socket.close()

    def mark_handed_over(self) -> None:
        """Close this process's descriptors, after a new hub has taken over."""
        self.handed_over = True
        self._close()

    def stop_listening(self) -> None:
        """Close the listening sockets: new connections are refused at once, unless a new hub shares them.

        Open sockets would keep new connections in their backlogs until this process ends, unanswered.
        """
        for _, _, (_, sockets) in self.listeners():
            for each in sockets:
                each.close()

    def _close(self) -> None:
        self.stop_listening()
        self.restart_socket.close()
        self.lock.release()

    def leave(self) -> None:
        """Close everything that this process still holds, and remove its files; the lock is released last."""
        if self.predecessor is not None:
            self.predecessor.close()
        elif not self.handed_over:
            unlink_restart_socket(self.data)
            if self.pid_file is not None:
                self.pid_file.remove()
        self._close()


@asynccontextmanager
async def open_instance_lock(
    config: HubConfig, data: DataDir, boot: str, *, replace: bool
) -> AsyncIterator[InstanceLock]:
    """Hold the instance lock for the block: of a free folder, or with `replace` from the hub that runs here.

    Raises FolderInUseError, HandoverError, FileError when its PID file cannot be written, and OSError when it
    cannot listen on an address.
    """
    pid_file = PidFile(config.pid_file) if config.pid_file is not None else None
    if pid_file is not None:
        pid_file.check()
    client, lock, restart_socket = (
        await _wait_for_instance_lock(data) if replace else (None, *_lock_free_folder(data))
    )
    instance = InstanceLock(
        data=data,
        boot=boot,
        lock=lock,
        restart_socket=restart_socket,
        front=(config.listen, []),
        admin=(config.admin.listen, []),
        peer=None if config.peer.listen is None else (config.peer.listen, []),
        console=None if config.console.listen is None else (config.console.listen, []),
        predecessor=client,
        pid_file=pid_file,
    )
    try:
        held = client.ports() if client is not None else {}
        for name, stated, (address, sockets) in instance.listeners():
            found = client.take_listeners(name, str(address)) if client is not None else []
            sockets.extend(found or await _open_listeners(address, stated, held))
        yield instance
    finally:
        instance.leave()


async def _open_listeners(address: Address, stated: str, held: Mapping[int, str]) -> list[socket.socket]:
    """Listen on an address that the old hub does not listen on; raises OSError.

    `held` maps the old hub's ports to its addresses. An overlapping address, such as [::], is free only after
    the old hub has ended, and the old hub ends only after this one listens.
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


async def _request_handover(data: DataDir) -> HandoverClient | None:
    """Ask the running hub for a handover; None when no hub runs, or it ends without an answer."""
    try:
        return await request_handover(data)
    except GoneError:
        return None


def _lock_free_folder(data: DataDir) -> tuple[FolderLock, socket.socket]:
    lock = data.lock()
    try:
        return lock, open_restart_socket(data)
    except BaseException:
        lock.release()
        raise


async def _wait_for_instance_lock(data: DataDir) -> tuple[HandoverClient | None, FolderLock, socket.socket]:
    """Get a handover from the running hub, or lock the folder once it is free; raises HandoverError.

    A hub that stops has closed its restart socket. Another new hub may lock the folder first, and is then the
    one to ask.
    """
    held: FolderInUseError | None = None
    with trio.move_on_after(ENDS_WITHIN_S):
        while True:
            client = await _request_handover(data)
            if client is not None:
                return client, client.lock, client.restart_socket
            try:
                lock, restart_socket = _lock_free_folder(data)
            except FolderInUseError as error:
                if held is None:
                    _log.info("waiting for the end of the process %s that holds %s", error.pid, data.path)
                held = error
            else:
                _log.info("no hub runs on %s: there is none to replace", data.path)
                return None, lock, restart_socket
            await trio.sleep(END_LOOK_S)
    assert held is not None, "otherwise the folder was free at the first attempt"
    raise HandoverError(
        f"the process {held.pid} that holds {data.path} takes no handover request, and still runs "
        f"{ENDS_WITHIN_S:.0f} s later: stop it first (a hub that stops drains for up to stop.grace_s)"
    ) from held
