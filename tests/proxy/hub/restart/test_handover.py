"""The two ends of a handover in one process: real Unix sockets, real descriptors."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from proxy.hub.home.datadir import DataDir
from proxy.hub.home.files.folder_lock import FolderInUseError, FolderLock
from proxy.hub.restart import handover
from proxy.hub.restart.handover import (
    GoneError,
    HandoverClient,
    HandoverError,
    HandoverServer,
    SilentError,
    open_restart_socket,
    request_handover,
    unlink_restart_socket,
)

REFUSAL = b'{"is": "refused", "why": "no"}'


@attrs.define(eq=False)
class Old:
    """The old hub, with a record of its pauses and log lines."""

    data: DataDir
    lock: FolderLock
    restart_socket: socket.socket
    front: socket.socket
    admin: socket.socket
    did: list[str] = attrs.Factory(list)
    said: list[str] = attrs.Factory(list)
    refused: trio.Event = attrs.Factory(trio.Event)
    given: trio.Event = attrs.Factory(trio.Event)

    def log(self, line: str) -> None:
        self.said.append(line)
        if "this one continues" in line:
            self.refused.set()

    async def pause(self) -> None:
        await trio.lowlevel.checkpoint()
        self.did.append("pause")

    async def hand_over(self) -> None:
        server = HandoverServer(
            data=self.data,
            lock=self.lock,
            restart_socket=self.restart_socket,
            listeners={"front": ("127.0.0.1:1", [self.front]), "admin": ("127.0.0.1:2", [self.admin])},
            boot="old",
            pause=self.pause,
            resume=lambda: self.did.append("resume"),
            log=self.log,
        )
        await server.hand_over()
        self.given.set()


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    # Longer than the path of a Unix socket may be, which is 107 bytes.
    return DataDir.open(tmp_path / ("a" * 60) / ("b" * 60))


@pytest.fixture
def old(data: DataDir) -> Iterator[Old]:
    lock = data.lock()
    with (
        open_restart_socket(data) as restart_socket,
        socket.create_server(("127.0.0.1", 0)) as front,
        socket.create_server(("127.0.0.1", 0)) as admin,
    ):
        yield Old(data, lock, restart_socket, front, admin)
    lock.release()


@asynccontextmanager
async def giving(old: Old) -> AsyncIterator[None]:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(old.hand_over)
            yield
            nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while True:
            if condition():
                return
            await trio.sleep(0.005)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_a_handover_passes_the_lock_and_all_sockets(old: Old) -> None:
    assert stat.S_IMODE(old.data.restart_socket_file.stat().st_mode) == 0o600
    async with giving(old):
        client = await request_handover(old.data)
        assert client is not None
        assert client.boot == "old"
        # The old hub still serves.
        assert old.did == []
        [front] = client.take_listeners("front", "127.0.0.1:1")
        assert front.getsockname() == old.front.getsockname()
        # A socket for another address is closed.
        assert client.take_listeners("admin", "127.0.0.1:3") == []
        await client.pause_old_hub()
        assert old.did == ["pause"]
        assert not old.given.is_set()
        await client.confirm()
        await old.given.wait()
        assert old.did == ["pause"]
    # The lock is held until both have released it.
    old.lock.release()
    with pytest.raises(FolderInUseError):
        old.data.lock()
    client.lock.release()
    old.data.lock().release()
    # The new hub listens on the same restart socket.
    with front, client.restart_socket:
        assert client.restart_socket.getsockname() == old.restart_socket.getsockname()


@pytest.mark.parametrize("paused", [False, True])
async def test_an_aborted_handover_changes_nothing(old: Old, paused: bool) -> None:
    before = descriptors()
    async with giving(old):
        for _ in range(2):
            client = await request_handover(old.data)
            assert client is not None
            if paused:
                await client.pause_old_hub()
            client.close()
            client.restart_socket.close()
            client.lock.release()
            await until(lambda: any("this one continues" in line for line in old.said))
            assert old.did == (["pause", "resume"] if paused else [])
            old.did.clear()
            old.said.clear()
    assert descriptors() == before


async def test_a_new_hub_that_is_too_slow_is_refused(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "PREPARE_S", 0.05)
    async with giving(old):
        client = await request_handover(old.data)
        assert client is not None
        await until(lambda: any("sent nothing for" in line for line in old.said))
        with pytest.raises(HandoverError, match="continues: the other hub sent nothing"):
            await client.pause_old_hub()
        client.close()
        client.restart_socket.close()
        client.lock.release()


async def test_a_stop_in_the_middle_waits_for_the_outcome(old: Old) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(old.hand_over)
        client = await request_handover(old.data)
        assert client is not None
        await client.pause_old_hub()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await client.confirm()
            await old.given.wait()
    client.close()
    client.restart_socket.close()
    client.lock.release()


async def test_a_stop_in_the_middle_still_sends_the_refusal(
    old: Old, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(old.hand_over)
        client = await request_handover(old.data)
        assert client is not None
        monkeypatch.setattr(handover, "ANSWER_S", 0.05)
        await client.pause_old_hub()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await old.refused.wait()
            with pytest.raises(HandoverError, match="continues: the other hub sent nothing"):
                await client.confirm()
    leave(client)


async def test_only_one_hub_serves_when_accepting_crosses_the_refusal(
    old: Old, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with giving(old):
        client = await request_handover(old.data)
        assert client is not None
        monkeypatch.setattr(handover, "ANSWER_S", 0.05)
        await client.pause_old_hub()
        # The old hub's timeout has just expired: its end is still open.
        await old.refused.wait()
        with pytest.raises(HandoverError, match="continues: the other hub sent nothing"):
            await client.confirm()
        assert not old.given.is_set()
        leave(client)


def paired(old: Old) -> tuple[HandoverClient, trio.socket.SocketType]:
    """A client, and the old hub's end of its connection."""
    here, there = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return HandoverClient(
        FolderLock(os.dup(old.lock.descriptor)), old.restart_socket.dup(), {}, "old", here
    ), there


def leave(client: HandoverClient) -> None:
    client.close()
    client.restart_socket.close()
    client.lock.release()


Step = Callable[[HandoverClient], Awaitable[None]]
STEPS = pytest.mark.parametrize("step", [HandoverClient.pause_old_hub, HandoverClient.confirm])


@STEPS
@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize(("last", "error"), [(REFUSAL, HandoverError), (None, GoneError)])
async def test_a_refusal_is_read_although_the_connection_is_closed(
    old: Old, step: Step, when: str, last: bytes | None, error: type[HandoverError]
) -> None:
    client, there = paired(old)

    async def go() -> None:
        if when == "meanwhile":
            # The old hub closes with a message unread, which the kernel reports as a reset.
            await trio.testing.wait_all_tasks_blocked()
        if last is not None:
            await there.send(last)
        there.close()

    async with trio.open_nursery() as nursery:
        if when == "before":
            await go()
        else:
            nursery.start_soon(go)
        with pytest.raises(HandoverError) as caught:
            await step(client)
    assert type(caught.value) is error
    leave(client)


async def test_after_a_timeout_the_old_hub_can_no_longer_send_taken(
    old: Old, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "ANSWER_S", 0.05)
    client, there = paired(old)
    with there:
        with pytest.raises(SilentError):
            await client.confirm()
        # The client's end is shut down, not closed.
        with pytest.raises(BrokenPipeError):
            await there.send(b'{"is": "taken"}')
    leave(client)


async def test_without_a_running_hub_there_is_no_handover(data: DataDir) -> None:
    assert await request_handover(data) is None
    # A killed hub leaves the socket's file.
    open_restart_socket(data).close()
    assert data.restart_socket_file.exists()
    assert await request_handover(data) is None
    with open_restart_socket(data):
        unlink_restart_socket(data)
    assert not data.restart_socket_file.exists()


Answer = Callable[[trio.socket.SocketType], Awaitable[None]]


async def lie(host: trio.socket.SocketType) -> None:
    await host.send(b'{"is": "given", "boot": "x", "listeners": [["front", "a"]]}')


async def babble(host: trio.socket.SocketType) -> None:
    await host.send(b"hello")


async def nest(host: trio.socket.SocketType) -> None:
    await host.send(b"[" * 16_000)


async def hang_up(host: trio.socket.SocketType) -> None:
    host.close()
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lie, "an invalid list"),
        (babble, "an invalid message"),
        (nest, "an invalid message"),
        (hang_up, "is gone"),
    ],
)
async def test_an_invalid_offer_is_refused(data: DataDir, answer: Answer, why: str) -> None:
    before = descriptors()
    with open_restart_socket(data) as restart_socket:
        async with trio.open_nursery() as nursery:

            async def host() -> None:
                there, _ = await trio.socket.from_stdlib_socket(restart_socket).accept()
                with there:
                    await there.recv(1000)
                    await answer(there)
                    with suppress(OSError):
                        await there.recv(1000)

            nursery.start_soon(host)
            with pytest.raises(HandoverError, match=why):
                await request_handover(data)
    assert descriptors() == before


@pytest.mark.parametrize(
    ("names", "given", "why"),
    [
        ([7], ["lock", "restart_socket", "restart_socket"], "an invalid list"),
        ([["front"]], ["lock", "restart_socket", "restart_socket"], "an invalid list"),
        ([["front", "a"]], ["lock", "restart_socket"], "an invalid list"),
        ([["front", "a"]], ["other", "restart_socket", "restart_socket"], "another lock"),
        ([["front", "a"]], ["lock", "other", "restart_socket"], "does not listen"),
        ([["front", "a"]], ["lock", "restart_socket", "deaf"], "does not listen"),
    ],
)
async def test_an_offer_with_a_wrong_descriptor_is_refused_and_closed(
    data: DataDir, names: list[object], given: list[str], why: str
) -> None:
    lock = data.lock()
    with (
        open_restart_socket(data) as restart_socket,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as deaf,
        (data.path / "other").open("wb") as other,
    ):
        parts = {
            "lock": lock.descriptor,
            "restart_socket": restart_socket.fileno(),
            "deaf": deaf.fileno(),
            "other": other.fileno(),
        }
        before = descriptors()
        async with trio.open_nursery() as nursery:

            async def host() -> None:
                there, _ = await trio.socket.from_stdlib_socket(restart_socket).accept()
                with there:
                    await there.recv(1000)
                    offer: dict[str, object] = {"is": "given", "boot": "x", "listeners": names}
                    await handover._send(there, offer, [parts[part] for part in given])
                    await there.recv(1000)

            nursery.start_soon(host)
            with pytest.raises(HandoverError, match=why):
                await request_handover(data)
        assert descriptors() == before
    lock.release()


async def test_another_version_is_refused(old: Old) -> None:
    async with giving(old):
        connection = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with connection:
            descriptor = os.open(old.data.path, os.O_PATH)
            await connection.connect(f"/proc/self/fd/{descriptor}/hub.sock")
            os.close(descriptor)
            await connection.send(b'{"is": "asked", "version": 99}')
            assert b"version 99" in await connection.recv(1000)
        assert old.did == []
