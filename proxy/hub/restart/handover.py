"""How one hub gives its place to the next: the listening sockets and the folder's lock, by a Unix socket.

Both processes then hold the same sockets, so nothing that waits in their backlogs is lost, and there is no
moment in which nobody listens. (With SO_REUSEPORT each process has a backlog of its own, and the kernel
resets what waits in one that is closed.)

    new                                     old
    asks                              →     goes on as before
    has the descriptors               ←     gives them
    opens the stores, gets ready
    says that it is ready             →     accepts no more, lets nobody change the store
    it is the new one's turn          ←     waits
    accepts
    says that it accepts              →     says that its place is taken
    serves                            ←     tells its relays to go, and finishes what it has begun

Until its last word the new one may end at any step, however it ends: the old one sees the socket close, and
accepts again. One that goes on says so (`refused`) before it closes the socket. So a socket that closes
without a word means that the old one ends, however it ends, and the new one goes on as soon as it has ended
(premises.py). The last message is the old one's: its patience may have run out while the new one's word that
it accepts was on its way, and then both would serve. The folder's lock belongs to an open file, so the two
hold it together and the last one to end frees it.
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

from proxy.hub.home.datadir import DataDir, DataDirError, FolderLock, explained
from proxy.process.untrusted_json import read_json

VERSION: Final = 1
# Lines of a few names; the descriptors come beside them.
MESSAGE_BYTES_MAX: Final = 16 * 1024
# The lock, this socket, and the addresses that two names resolve to.
DESCRIPTORS_MAX: Final = 32
# A process that is there answers at once; the old one may be busy.
ANSWER_S: Final = 10.0
# The new one opens the stores and closes what earlier hubs left, which may be much.
PREPARE_S: Final = 120.0
# One takes over, and another one is told so.
BACKLOG: Final = 4

_CREDENTIALS = struct.Struct("3i")


class HandoverError(DataDirError):
    """One hub cannot take the place of the other; the message says what stands, and the next step."""


class GoneError(HandoverError):
    """The other one has closed its end, and all that it said before has been read."""

    def __init__(self) -> None:
        super().__init__("the other hub is gone")


class SilentError(HandoverError):
    """The other one has said nothing for as long as it had."""


# --- the old one ---


@attrs.define(eq=False)
class Place:
    """What the hub that listens can give away."""

    data: DataDir
    lock: FolderLock
    door: socket.socket
    """Where it can be asked for."""
    listeners: Mapping[str, tuple[str, Sequence[socket.socket]]]
    """By what they are for: the address as it was configured, and the sockets."""
    boot: str
    pause: Callable[[], Awaitable[None]]
    """Accept no more, and let nobody change the store."""
    resume: Callable[[], None]
    """Go on as before."""
    log: Callable[[str], None]

    async def give(self) -> None:
        """Wait for one that takes this place, and return when it has; raises nothing of its making.

        Cancelled in the middle of it, it waits for the outcome, ANSWER_S at most.
        """
        door = trio.socket.from_stdlib_socket(self.door)
        while True:
            try:
                guest, _ = await door.accept()
            except OSError as error:
                # Out of descriptors, mostly, and then for a while.
                self.log(f"cannot answer at {self.data.door_file}: {error.strerror}")
                await trio.sleep(ANSWER_S)
                continue
            with guest:
                if await self._serve(guest):
                    return

    async def _serve(self, guest: trio.socket.SocketType) -> bool:
        """Give the place to a guest; returns whether that came to its end."""
        paused = False
        try:
            pid = _check_peer(guest)
            asked = await _receive(guest, ANSWER_S)
            if asked.get("version") != VERSION:
                raise HandoverError(f"it speaks version {asked.get('version')!r} of the handover")
            self.log(f"a new hub (process {pid}) prepares to take over")
            await _send(guest, self._gift(), self._descriptors())
            _expect(await _receive(guest, PREPARE_S), "ready")
            paused = True
            # Whoever stops this one now must not leave the other one without its answer.
            with trio.CancelScope(shield=True):
                await self.pause()
                await _send(guest, {"is": "yours"})
                _expect(await _receive(guest, ANSWER_S), "accepting")
                await _send(guest, {"is": "taken"})
        except (HandoverError, OSError) as error:
            self.log(f"the new hub did not take over, this one goes on: {error}")
            if paused:
                self.lock.sign()
                self.resume()
            # One that is being stopped says it too: silence would mean that it ends at once.
            with trio.move_on_after(ANSWER_S, shield=True), suppress(OSError, HandoverError):
                await _send(guest, {"is": "refused", "why": str(error)})
            return False
        return True

    def _gift(self) -> dict[str, object]:
        names = [[name, address] for name, (address, sockets) in self.listeners.items() for _ in sockets]
        return {"is": "given", "boot": self.boot, "listeners": names}

    def _descriptors(self) -> list[int]:
        sockets = [each for _, found in self.listeners.values() for each in found]
        return [self.lock.descriptor, self.door.fileno(), *(each.fileno() for each in sockets)]


def open_door(data: DataDir) -> socket.socket:
    """Listen for one that takes over, while the folder's lock is held; raises DataDirError."""
    with _short(data.path) as folder:
        name = f"{folder}/{data.door_file.name}"
        door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # What an earlier hub has left: nobody else may be there, since this one holds the lock.
            with suppress(FileNotFoundError):
                os.unlink(name)
            door.bind(name)
            os.chmod(name, 0o600)
            door.listen(BACKLOG)
            door.setblocking(False)
        except OSError as error:
            door.close()
            raise DataDirError(f"cannot listen on {data.door_file}: {explained(error)}") from error
    return door


def close_door(data: DataDir) -> None:
    """Take the name of the door away: nobody is behind it any more."""
    data.door_file.unlink(missing_ok=True)


# --- the new one ---


@attrs.define(eq=False)
class Succession:
    """The place of another hub, while this one prepares to take it."""

    lock: FolderLock
    door: socket.socket
    listeners: dict[str, tuple[str, list[socket.socket]]]
    boot: str
    """The other one's."""
    _host: trio.socket.SocketType

    async def claim(self) -> None:
        """Have the other one accept no more; from here on it is this one's turn.

        Raises GoneError when the other one ends, and HandoverError when it goes on.
        """
        await self._say("ready")
        _expect(await _receive(self._host, PREPARE_S), "yours")

    async def confirm(self) -> None:
        """Say that this one accepts, and hear that its place is taken; raises like `claim`."""
        await self._say("accepting")
        try:
            answer = await _receive(self._host, ANSWER_S)
        except SilentError as silent:
            # From here on it cannot say it any more, and takes its place back. Unless it just has.
            self._host.shutdown(socket.SHUT_RDWR)
            try:
                answer = await _receive(self._host, ANSWER_S)
            except GoneError:
                raise silent from None
        _expect(answer, "taken")
        self._host.close()

    async def _say(self, word: str) -> None:
        # To one that has gone too: whether it goes on is what it has said last, and that is still to be read.
        with suppress(GoneError):
            await _send(self._host, {"is": word})

    def ports(self) -> dict[int, str]:
        """The ports that the other one listens on, each with the address as it was configured there."""
        return {
            each.getsockname()[1]: address for address, sockets in self.listeners.values() for each in sockets
        }

    def take(self, name: str, address: str) -> list[socket.socket]:
        """The sockets of a purpose, which are the caller's then; none if they listen elsewhere."""
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
        """Let go of what was not taken; the other one sees it, and goes on if it may."""
        self._host.close()
        for _, sockets in self.listeners.values():
            for each in sockets:
                each.close()
        self.listeners.clear()


async def take_over(data: DataDir) -> Succession | None:
    """Ask the hub that runs on the folder for its place; None when none is there.

    Raises HandoverError. What it returns is to be closed; its lock and its door are the caller's.
    """
    host = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _short(data.path) as folder:
            await host.connect(f"{folder}/{data.door_file.name}")
    except (FileNotFoundError, ConnectionRefusedError):
        host.close()
        return None
    except OSError as error:
        host.close()
        raise HandoverError(f"cannot ask the hub that runs on {data.path}: {error.strerror}") from error
    try:
        _check_peer(host)
        await _send(host, {"is": "asked", "version": VERSION})
        gift, descriptors = await _receive_with_descriptors(host, ANSWER_S)
        return _unpack(data, host, gift, descriptors)
    except BaseException:
        host.close()
        raise


def _unpack(
    data: DataDir, host: trio.socket.SocketType, gift: dict[str, object], descriptors: list[int]
) -> Succession:
    with ExitStack() as doomed:
        for each in descriptors:
            doomed.callback(os.close, each)
        _expect(gift, "given")
        names, boot = gift.get("listeners"), gift.get("boot")
        if (
            not isinstance(names, list)
            or not all(isinstance(pair, list) and len(pair) == 2 for pair in names)
            or not isinstance(boot, str)
            or len(descriptors) != len(names) + 2
        ):
            raise HandoverError("the hub that runs gave something else than its listeners: stop it first")
        if not os.path.samestat(os.fstat(descriptors[0]), data.lock_file.stat()):
            raise HandoverError(f"the hub that runs gave another lock than {data.lock_file}: stop it first")
        if not all(_listens(each) for each in descriptors[1:]):
            raise HandoverError("the hub that runs gave something that does not listen: stop it first")
        doomed.pop_all()
    lock = FolderLock(descriptors[0])
    door = socket.socket(fileno=descriptors[1])
    listeners: dict[str, tuple[str, list[socket.socket]]] = {}
    for (name, address), descriptor in zip(names, descriptors[2:], strict=True):
        listeners.setdefault(str(name), (str(address), []))[1].append(socket.socket(fileno=descriptor))
    return Succession(lock, door, listeners, boot, host)


def _listens(descriptor: int) -> bool:
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return False
    with socket.socket(fileno=os.dup(descriptor)) as found:
        return bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


# --- messages ---


async def _send(
    there: trio.socket.SocketType, message: dict[str, object], descriptors: Sequence[int] = ()
) -> None:
    """Send one message; raises GoneError, or HandoverError when it cannot be sent."""
    ancillary = []
    if descriptors:
        ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors)))
    try:
        await there.sendmsg([json.dumps(message).encode()], ancillary)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise GoneError from error
    except OSError as error:
        raise HandoverError(f"cannot tell the other hub: {error.strerror}") from error


async def _receive(there: trio.socket.SocketType, patience_s: float) -> dict[str, object]:
    message, descriptors = await _receive_with_descriptors(there, patience_s)
    for each in descriptors:
        os.close(each)
    return message


async def _receive_with_descriptors(
    there: trio.socket.SocketType, patience_s: float
) -> tuple[dict[str, object], list[int]]:
    """Receive one message; raises SilentError, GoneError, or HandoverError when it cannot be read."""
    room = socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)
    limits = (MESSAGE_BYTES_MAX, room, socket.MSG_CMSG_CLOEXEC)
    try:
        with trio.fail_after(patience_s):
            try:
                data, ancillary, flags, _ = await there.recvmsg(*limits)
            except ConnectionResetError:
                # It has gone without reading all, which Linux tells once, before what it had said.
                data, ancillary, flags, _ = await there.recvmsg(*limits)
    except trio.TooSlowError:
        raise SilentError(f"the other hub said nothing for {patience_s:.0f} s") from None
    except OSError as error:
        raise HandoverError(f"cannot hear the other hub: {error.strerror}") from error
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
    try:
        if not data:
            raise GoneError
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise HandoverError("the other hub sent more than fits")
        try:
            message = read_json(data)
        except ValueError as error:
            raise HandoverError("the other hub sent what cannot be read") from error
        if not isinstance(message, dict):
            raise HandoverError("the other hub sent what cannot be read")
    except HandoverError:
        for each in descriptors:
            os.close(each)
        raise
    return message, list(descriptors)


def _expect(message: Mapping[str, object], what: str) -> None:
    if message.get("is") == "refused":
        raise HandoverError(f"the hub that runs goes on: {message.get('why')}")
    if message.get("is") != what:
        raise HandoverError(f"expected {what!r}, got {message.get('is')!r}")


def _check_peer(there: trio.socket.SocketType) -> int:
    """The other one's process id; raises HandoverError when it is another user's.

    The folder keeps others out already; the kernel's word is asked all the same.
    """
    raw = there.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    if uid != os.geteuid():
        raise HandoverError(
            f"the process {pid} at the other end is user {uid}'s, and this one user {os.geteuid()}'s"
        )
    return int(pid)


@contextmanager
def _short(folder: Path) -> Iterator[str]:
    """A short name: the path of a Unix socket has room for 107 bytes, and a data folder may need more."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
