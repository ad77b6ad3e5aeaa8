"""The handover from a running hub to its replacement, over a Unix socket.

It passes the descriptors of the listening sockets and of the folder's lock, so both processes share them. No
connection in a backlog is lost, and at every moment some process listens. (With SO_REUSEPORT each process has
its own backlog, and the kernel resets the connections that wait in a closed one.)

    new hub                                 old hub
    `asked`                           →     serves as before
    receives the descriptors          ←     `given`, with the descriptors
    opens the stores, prepares
    `ready`                           →     stops accepting, blocks changes of the store
    may accept                        ←     `yours`
    accepts
    `accepting`                       →
    serves                            ←     `taken`; drains its relays and calls

Until it sends `accepting`, the new hub may fail at any step: the old hub sees the socket close and accepts
again. An old hub that continues sends `refused` before it closes the socket. If the socket closes without
`refused`, the old hub is ending, and the new hub continues once it has ended (instance_lock.py). The last
message comes from the old hub: its timeout may expire while `accepting` is on the way, and without `taken`
both hubs would serve. The folder's lock belongs to an open file that both hubs share, so it is free when
both have ended.
"""

from __future__ import annotations

import array
import json
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import attrs
import trio

from proxy.hub.home.datadir import DataDir
from proxy.hub.home.files.folder_lock import FolderLock
from proxy.hub.home.files.private_files import DataDirError, explained
from proxy.process.untrusted_json import read_json

VERSION: Final = 1
# A message holds a few names; descriptors are ancillary data.
MESSAGE_BYTES_MAX: Final = 16 * 1024
# The lock, the restart socket, and a socket for each address that two names resolve to.
DESCRIPTORS_MAX: Final = 32
# A live process answers at once, or somewhat later when it is busy.
ANSWER_S: Final = 10.0
# The new hub opens the stores and closes the calls that earlier hubs left open. There may be many.
PREPARE_S: Final = 120.0
# One new hub takes over; a second one gets an answer.
BACKLOG: Final = 4

_CREDENTIALS = struct.Struct("3i")


class HandoverError(DataDirError):
    """The handover failed; the message names the cause and the next step."""


class GoneError(HandoverError):
    """The other hub has closed its end, and all its messages were read."""

    def __init__(self) -> None:
        super().__init__("the other hub is gone")


class SilentError(HandoverError):
    """No message came within the time limit."""


# --- the old hub ---


@attrs.define(eq=False)
class HandoverServer:
    """The old hub's side: offers its lock and sockets on the restart socket."""

    data: DataDir
    lock: FolderLock
    restart_socket: socket.socket
    """New hubs connect here."""
    listeners: Mapping[str, tuple[str, Sequence[socket.socket]]]
    """By purpose: the address as configured, and its sockets."""
    boot: str
    pause: Callable[[], Awaitable[None]]
    """Stops accepting, and blocks changes of the store."""
    resume: Callable[[], None]
    """Undoes `pause`."""
    log: Callable[[str], None]

    async def hand_over(self) -> None:
        """Wait for a new hub, hand over to it, and return once it has taken over.

        A new hub that fails raises nothing here: the next one is awaited. Cancelled during a handover, this
        waits for the outcome, ANSWER_S at most.
        """
        restart_socket = trio.socket.from_stdlib_socket(self.restart_socket)
        while True:
            try:
                connection, _ = await restart_socket.accept()
            except OSError as error:
                # Mostly out of descriptors, which lasts a while.
                self.log(f"cannot accept on {self.data.restart_socket_file}: {error.strerror}")
                await trio.sleep(ANSWER_S)
                continue
            with connection:
                if await self._serve(connection):
                    return

    async def _serve(self, connection: trio.socket.SocketType) -> bool:
        """Hand over on one connection; returns whether the new hub has taken over."""
        paused = False
        try:
            pid = _check_peer(connection)
            asked = await _receive(connection, ANSWER_S)
            if asked.get("version") != VERSION:
                raise HandoverError(
                    f"it uses version {asked.get('version')!r} of the handover, this hub version {VERSION}"
                )
            self.log(f"a new hub (process {pid}) prepares to take over")
            await _send(connection, self._offer(), self._descriptors())
            _expect(await _receive(connection, PREPARE_S), "ready")
            paused = True
            # A stop during this step must not leave the new hub without an answer.
            with trio.CancelScope(shield=True):
                await self.pause()
                await _send(connection, {"is": "yours"})
                _expect(await _receive(connection, ANSWER_S), "accepting")
                await _send(connection, {"is": "taken"})
        except (HandoverError, OSError) as error:
            self.log(f"the new hub did not take over, this one continues: {error}")
            if paused:
                self.lock.sign()
                self.resume()
            # Also sent while this hub is being stopped: a close without it means that the hub has ended.
            with trio.move_on_after(ANSWER_S, shield=True), suppress(OSError, HandoverError):
                await _send(connection, {"is": "refused", "why": str(error)})
            return False
        return True

    def _offer(self) -> dict[str, object]:
        names = [[name, address] for name, (address, sockets) in self.listeners.items() for _ in sockets]
        return {"is": "given", "boot": self.boot, "listeners": names}

    def _descriptors(self) -> list[int]:
        sockets = [each for _, found in self.listeners.values() for each in found]
        return [self.lock.descriptor, self.restart_socket.fileno(), *(each.fileno() for each in sockets)]


def open_restart_socket(data: DataDir) -> socket.socket:
    """Listen for new hubs. The caller holds the folder's lock. Raises DataDirError."""
    with _short_path(data.path) as folder:
        name = f"{folder}/{data.restart_socket_file.name}"
        restart_socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # Left by an earlier hub. This process holds the lock, so no other hub uses the name.
            with suppress(FileNotFoundError):
                os.unlink(name)
            restart_socket.bind(name)
            os.chmod(name, 0o600)
            restart_socket.listen(BACKLOG)
            restart_socket.setblocking(False)
        except OSError as error:
            restart_socket.close()
            raise DataDirError(f"cannot listen on {data.restart_socket_file}: {explained(error)}") from error
    return restart_socket


def unlink_restart_socket(data: DataDir) -> None:
    """Remove the socket's file, so that new hubs no longer connect."""
    data.restart_socket_file.unlink(missing_ok=True)


# --- the new hub ---


@attrs.define(eq=False)
class HandoverClient:
    """The new hub's side: the lock and the sockets of the old hub, and the connection to it."""

    lock: FolderLock
    restart_socket: socket.socket
    listeners: dict[str, tuple[str, list[socket.socket]]]
    boot: str
    """The old hub's boot id."""
    _connection: trio.socket.SocketType

    async def pause_old_hub(self) -> None:
        """Make the old hub stop accepting, so that this one may start.

        Raises GoneError when the old hub ends, and HandoverError when it continues.
        """
        await self._send("ready")
        _expect(await _receive(self._connection, PREPARE_S), "yours")

    async def confirm(self) -> None:
        """Report that this hub accepts, and wait for `taken`; raises like `pause_old_hub`."""
        await self._send("accepting")
        try:
            answer = await _receive(self._connection, ANSWER_S)
        except SilentError as silent:
            # After the shutdown the old hub can't send `taken`: it continues, unless it has sent it already.
            self._connection.shutdown(socket.SHUT_RDWR)
            try:
                answer = await _receive(self._connection, ANSWER_S)
            except GoneError:
                raise silent from None
        _expect(answer, "taken")
        self._connection.close()

    async def _send(self, word: str) -> None:
        # A closed connection is no error here: the old hub's last message is still unread, and decides.
        with suppress(GoneError):
            await _send(self._connection, {"is": word})

    def ports(self) -> dict[int, str]:
        """The ports that the old hub listens on, each with the address in its configuration."""
        return {
            each.getsockname()[1]: address for address, sockets in self.listeners.values() for each in sockets
        }

    def take_listeners(self, name: str, address: str) -> list[socket.socket]:
        """Return the sockets of a purpose, which the caller then owns; none if the address is another one."""
        found = self.listeners.pop(name, None)
        if found is None:
            return []
        configured, sockets = found
        if configured == address:
            return sockets
        for each in sockets:
            each.close()
        return []

    def close(self) -> None:
        """Close the connection and the sockets that were not taken; an unfinished handover is then off."""
        self._connection.close()
        for _, sockets in self.listeners.values():
            for each in sockets:
                each.close()
        self.listeners.clear()


async def request_handover(data: DataDir) -> HandoverClient | None:
    """Ask the hub that runs on the folder for a handover; None when no hub listens.

    Raises HandoverError. The caller closes the result, and owns its lock and its restart socket.
    """
    connection = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _short_path(data.path) as folder:
            await connection.connect(f"{folder}/{data.restart_socket_file.name}")
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError as error:
        connection.close()
        raise HandoverError(f"cannot ask the hub that runs on {data.path}: {error.strerror}") from error
    try:
        _check_peer(connection)
        await _send(connection, {"is": "asked", "version": VERSION})
        offer, descriptors = await _receive_with_descriptors(connection, ANSWER_S)
        return _unpack(data, connection, offer, descriptors)
    except BaseException:
        connection.close()
        raise


def _unpack(
    data: DataDir, connection: trio.socket.SocketType, offer: dict[str, object], descriptors: list[int]
) -> HandoverClient:
    with ExitStack() as undo:
        for each in descriptors:
            undo.callback(os.close, each)
        _expect(offer, "given")
        names, boot = offer.get("listeners"), offer.get("boot")
        if (
            not isinstance(names, list)
            or not all(isinstance(pair, list) and len(pair) == 2 for pair in names)
            or not isinstance(boot, str)
            or len(descriptors) != len(names) + 2
        ):
            raise HandoverError("the running hub sent an invalid list of listeners: stop it first")
        if not os.path.samestat(os.fstat(descriptors[0]), data.lock_file.stat()):
            raise HandoverError(f"the running hub sent another lock than {data.lock_file}: stop it first")
        if not all(_listens(each) for each in descriptors[1:]):
            raise HandoverError("the running hub sent a descriptor that does not listen: stop it first")
        undo.pop_all()
    lock = FolderLock(descriptors[0])
    restart_socket = socket.socket(fileno=descriptors[1])
    listeners: dict[str, tuple[str, list[socket.socket]]] = {}
    for (name, address), descriptor in zip(names, descriptors[2:], strict=True):
        listeners.setdefault(str(name), (str(address), []))[1].append(socket.socket(fileno=descriptor))
    return HandoverClient(lock, restart_socket, listeners, boot, connection)


def _listens(descriptor: int) -> bool:
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return False
    with socket.socket(fileno=os.dup(descriptor)) as found:
        return bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


# --- messages ---


async def _send(
    connection: trio.socket.SocketType, message: dict[str, object], descriptors: Sequence[int] = ()
) -> None:
    """Send one message; raises GoneError, or HandoverError when it cannot be sent."""
    ancillary = []
    if descriptors:
        ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors)))
    try:
        await connection.sendmsg([json.dumps(message).encode()], ancillary)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise GoneError from error
    except OSError as error:
        raise HandoverError(f"cannot send to the other hub: {error.strerror}") from error


async def _receive(connection: trio.socket.SocketType, patience_s: float) -> dict[str, object]:
    message, descriptors = await _receive_with_descriptors(connection, patience_s)
    for each in descriptors:
        os.close(each)
    return message


async def _receive_with_descriptors(
    connection: trio.socket.SocketType, patience_s: float
) -> tuple[dict[str, object], list[int]]:
    """Receive one message; raises SilentError, GoneError, or HandoverError when it cannot be read."""
    room = socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)
    limits = (MESSAGE_BYTES_MAX, room, socket.MSG_CMSG_CLOEXEC)
    try:
        with trio.fail_after(patience_s):
            try:
                data, ancillary, flags, _ = await connection.recvmsg(*limits)
            except ConnectionResetError:
                # The peer closed without reading everything. Linux reports that once; its messages follow.
                data, ancillary, flags, _ = await connection.recvmsg(*limits)
    except trio.TooSlowError:
        raise SilentError(f"the other hub sent nothing for {patience_s:.0f} s") from None
    except OSError as error:
        raise HandoverError(f"cannot receive from the other hub: {error.strerror}") from error
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
    try:
        if not data:
            raise GoneError
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise HandoverError("the other hub sent a message that is too long")
        try:
            message = read_json(data)
        except ValueError as error:
            raise HandoverError("the other hub sent an invalid message") from error
        if not isinstance(message, dict):
            raise HandoverError("the other hub sent an invalid message")
    except HandoverError:
        for each in descriptors:
            os.close(each)
        raise
    return message, list(descriptors)


def _expect(message: Mapping[str, object], what: str) -> None:
    if message.get("is") == "refused":
        raise HandoverError(f"the running hub continues: {message.get('why')}")
    if message.get("is") != what:
        raise HandoverError(f"expected {what!r}, got {message.get('is')!r}")


def _check_peer(connection: trio.socket.SocketType) -> int:
    """Return the peer's process id; raises HandoverError when it belongs to another user.

    The folder's mode excludes other users already; this check does not depend on it.
    """
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    if uid != os.geteuid():
        raise HandoverError(
            f"the process {pid} at the other end runs as user {uid}, and this one as user {os.geteuid()}"
        )
    return int(pid)


@contextmanager
def _short_path(folder: Path) -> Iterator[str]:
    """A short path of a folder: a Unix socket's path has 107 bytes at most, a folder's may have more."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
