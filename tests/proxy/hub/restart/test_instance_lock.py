"""The instance lock, with real sockets, real locks, and a real process that is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import cast

import attrs
import pytest
import trio
import trio.testing

from proxy.hub.accept import Acceptor
from proxy.hub.admin.front import AdminFront
from proxy.hub.front import Front
from proxy.hub.home.config import AdminConfig, HubConfig
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.files.folder_lock import FolderInUseError
from proxy.hub.home.hub_instances import HubInstances
from proxy.hub.home.sections.console import ConsoleConfig
from proxy.hub.home.sections.peer import PeerConfig
from proxy.hub.peers.listener import PeerListener
from proxy.hub.restart import instance_lock as instance_lock_module
from proxy.hub.restart.handover import (
    HandoverError,
    HandoverServer,
    open_restart_socket,
    request_handover,
    unlink_restart_socket,
)
from proxy.hub.restart.instance_lock import InstanceLock, open_instance_lock
from proxy.process.config import Address
from proxy.process.files import FileError
from tunnel.net.connect import close_forcefully

# A hub that hands over until it is killed. With "given", its pause never ends.
OLD = """
import sys
from pathlib import Path
import trio
from proxy.process.config import Address
from proxy.hub.home.hub_instances import HubInstances
from proxy.hub.home.sections.peer import PeerConfig
from proxy.hub.home.datadir import DataDir
from proxy.hub.restart.handover import HandoverServer, open_restart_socket
from proxy.listener.accept import open_sockets

data = DataDir(Path(sys.argv[1]))

async def nothing():
    pass

async def main():
    [front] = await open_sockets(Address("127.0.0.1", 0), "listen")
    lock, restart_socket = data.lock(), open_restart_socket(data)
    pause = trio.sleep_forever if sys.argv[2] == "given" else nothing
    listeners = {"front": ("127.0.0.1:0", [front])}
    server = HandoverServer(data, lock, restart_socket, listeners, "old", pause, int, print)
    print(front.getsockname()[1], flush=True)
    await server.hand_over()

with HubInstances(data.instances_dir).registered("old"):
    trio.run(main)
"""


@attrs.define(eq=False)
class Handler:
    """Both listeners' handler: holds each connection until `may_go`, even when cancelled."""

    ready: bool = False
    holds: trio.Event = attrs.Factory(trio.Event)
    may_go: trio.Event = attrs.Factory(trio.Event)
    leaves: trio.Event = attrs.Factory(trio.Event)
    has_peers: bool = False

    async def leave(self) -> None:
        """As a hub without peers, or as one with them, which drains until `may_go`."""
        self.leaves.set()
        if self.has_peers:
            await self.may_go.wait()

    async def handle_client(self, stream: trio.abc.Stream) -> None:
        self.holds.set()
        # As a change of the store in a thread does.
        with trio.CancelScope(shield=True):
            await self.may_go.wait()
        await close_forcefully(stream)


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    return DataDir.open(tmp_path / "data")


def configured(data: DataDir, pid_file: Path | None = None) -> HubConfig:
    anywhere = Address("127.0.0.1", 0)
    return HubConfig(
        listen=anywhere, admin=AdminConfig(listen=anywhere), data_dir=data.path, pid_file=pid_file
    )


@asynccontextmanager
async def instance_lock_of(
    data: DataDir, *, replace: bool = False, pid_file: Path | None = None
) -> AsyncIterator[InstanceLock]:
    with trio.fail_after(20):
        async with open_instance_lock(configured(data, pid_file), data, "new", replace=replace) as instance:
            yield instance


def acceptor_of(instance: InstanceLock, handler: Handler, handlers: trio.Nursery) -> Acceptor:
    front, admin, peers = cast("Front", handler), cast("AdminFront", handler), cast("PeerListener", handler)
    return Acceptor(instance, front, admin, handlers, handler.leave, peers, handler.handle_client)


@attrs.define(eq=False)
class Hub:
    """A hub that accepts, and how it ended."""

    acceptor: Acceptor
    signals: trio.MemorySendChannel[int]
    replaced: bool | None = None
    ended: trio.Event = attrs.Factory(trio.Event)


@asynccontextmanager
async def accepting(instance: InstanceLock, handler: Handler) -> AsyncIterator[Hub]:
    async with trio.open_nursery() as handlers:
        send, receive = trio.open_memory_channel[int](1)
        hub = Hub(acceptor_of(instance, handler, handlers), send)

        async def run() -> None:
            hub.replaced = await hub.acceptor.accept_until_stopped(receive, "url")
            hub.ended.set()

        handlers.start_soon(run)
        while not handler.ready:
            await trio.testing.wait_all_tasks_blocked()
        yield hub
        handler.may_go.set()
        handlers.cancel_scope.cancel()


async def test_a_stop_during_the_pause_does_not_delay_the_new_hub(data: DataDir) -> None:
    handler = Handler()
    async with instance_lock_of(data) as instance, accepting(instance, handler) as hub:
        operator = await trio.open_tcp_stream(*instance.admin[1][0].getsockname())
        await handler.holds.wait()
        client = await request_handover(data)
        assert client is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.pause_old_hub)
            # The pause waits for the operator's change.
            await trio.testing.wait_all_tasks_blocked()
            await hub.signals.send(signal.SIGTERM)
            await trio.testing.wait_all_tasks_blocked()
            handler.may_go.set()
        await client.confirm()
        await hub.ended.wait()
        assert hub.replaced
        client.close()
        client.restart_socket.close()
        client.lock.release()
        await operator.aclose()


async def test_a_hub_accepts_again_after_an_aborted_handover(data: DataDir) -> None:
    handler = Handler()
    async with instance_lock_of(data) as instance, accepting(instance, handler) as hub:
        await hub.acceptor.pause()
        agent = await trio.open_tcp_stream(*instance.front[1][0].getsockname())
        await trio.testing.wait_all_tasks_blocked()
        assert not handler.holds.is_set()
        hub.acceptor.resume()
        await handler.holds.wait()
        await agent.aclose()


def listens_at(instance: InstanceLock, name: str) -> tuple[str, int]:
    (found,) = (sockets for each, _, (_, sockets) in instance.listeners() if each == name)
    host, port = found[0].getsockname()
    return host, port


@pytest.mark.parametrize("listener", ["peer", "console"])
async def test_the_further_listeners_are_handed_on_with_the_others(data: DataDir, listener: str) -> None:
    anywhere = Address("127.0.0.1", 0)
    config = attrs.evolve(
        configured(data),
        peer=PeerConfig(anywhere, Address("127.0.0.1", 1)),
        console=ConsoleConfig(anywhere),
    )
    handler = Handler()
    async with (
        open_instance_lock(config, data, "old", replace=False) as old,
        accepting(old, handler) as hub,
    ):
        address = listens_at(old, listener)
        client = await trio.open_tcp_stream(*address)
        await handler.holds.wait()
        async with open_instance_lock(config, data, "new", replace=True) as new:
            handler.may_go.set()
            assert await new.pause_old_hub()
            handler.holds = trio.Event()
            waiting = await trio.open_tcp_stream(*address)
            await trio.testing.wait_all_tasks_blocked()
            assert not handler.holds.is_set()
            await new.confirm()
            await hub.ended.wait()
            assert hub.replaced
            assert listens_at(new, listener) == address
            successor = Handler()
            async with accepting(new, successor):
                await successor.holds.wait()
                await waiting.aclose()
                await client.aclose()


async def test_a_pause_returns_at_once_when_the_accepting_has_ended(data: DataDir) -> None:
    handler = Handler()
    async with instance_lock_of(data) as instance, accepting(instance, handler) as hub:
        await hub.signals.send(signal.SIGTERM)
        await hub.ended.wait()
        with trio.fail_after(1):
            await hub.acceptor.pause()
        assert hub.replaced is False


async def test_a_stopping_hub_refuses_new_connections_at_once(data: DataDir) -> None:
    handler = Handler()
    async with instance_lock_of(data) as instance, accepting(instance, handler) as hub:
        addresses = [sockets[0].getsockname() for _, _, (_, sockets) in instance.listeners()]
        await hub.signals.send(signal.SIGTERM)
        await hub.ended.wait()
        for address in addresses:
            with pytest.raises(OSError, match="all attempts to connect"):
                await trio.open_tcp_stream(*address)


@contextmanager
def old_hub(data: DataDir, dies: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    argv = [sys.executable, "-c", OLD, str(data.path), dies]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


async def pause_old_hub(instance: InstanceLock) -> None:
    assert await instance.pause_old_hub()


@pytest.mark.parametrize("dies", ["given", "yours"])
async def test_a_new_hub_takes_over_when_the_old_one_is_killed_meanwhile(
    data: DataDir, dies: str, tmp_path: Path
) -> None:
    pid_file = tmp_path / "hub.pid"
    with old_hub(data, dies) as (process, port):
        async with instance_lock_of(data, replace=True, pid_file=pid_file) as instance:
            if dies == "yours":
                assert await instance.pause_old_hub()
                process.kill()
            else:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(pause_old_hub, instance)
                    await trio.testing.wait_all_tasks_blocked()
                    process.kill()
            await instance.confirm()
            await check_owner(instance, port)
            assert pid_file.read_text() == f"{os.getpid()}\n"
    assert not pid_file.exists()
    data.lock().release()


async def check_owner(instance: InstanceLock, port: int) -> None:
    """This process owns everything: the socket, the lock, and the restart socket's file."""
    assert instance.predecessor is None
    assert [each.getsockname()[1] for each in instance.front[1]] == [port]
    with pytest.raises(FolderInUseError) as caught:
        instance.data.lock()
    assert caught.value.pid == str(os.getpid())
    async with trio.open_nursery() as nursery:
        acceptor = acceptor_of(instance, Handler(), nursery)
        server = instance.handover_server(acceptor.pause, acceptor.resume)
        nursery.start_soon(server.hand_over)
        client = await request_handover(instance.data)
        assert client is not None
        assert client.boot == "new"
        nursery.cancel_scope.cancel()
    client.close()
    client.restart_socket.close()
    client.lock.release()


@asynccontextmanager
async def old_hub_here(data: DataDir) -> AsyncIterator[trio.CancelScope]:
    """An old hub in this process. Cancelling the scope ends its handovers, but not the hub."""
    lock = data.lock()
    with (
        HubInstances(data.instances_dir).registered("old"),
        open_restart_socket(data) as restart_socket,
        socket.create_server(("127.0.0.1", 0)) as front,
    ):
        listeners = {"front": ("127.0.0.1:0", [front])}
        server = HandoverServer(
            data,
            lock,
            restart_socket,
            listeners,
            "old",
            trio.lowlevel.checkpoint,
            lambda: None,
            lambda _: None,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.hand_over)
            yield nursery.cancel_scope
    lock.release()


async def test_a_new_hub_takes_over_although_the_old_one_removes_its_restart_socket(data: DataDir) -> None:
    async with AsyncExitStack() as stack:
        async with old_hub_here(data) as old:
            taking = open_instance_lock(configured(data), data, "new", replace=True)
            instance = await stack.enter_async_context(taking)
            old.cancel()
        unlink_restart_socket(data)
        assert await instance.pause_old_hub()
        await instance.confirm()
        await check_owner(instance, instance.front[1][0].getsockname()[1])


@pytest.mark.parametrize("asked", ["before it was told", "after it was told"])
async def test_a_new_hub_waits_for_the_end_of_a_stopping_one(data: DataDir, asked: str) -> None:
    has_it = trio.Event()

    async def come() -> None:
        async with instance_lock_of(data, replace=True) as instance:
            assert instance.predecessor is None
            has_it.set()

    async with trio.open_nursery() as nursery:
        async with instance_lock_of(data) as instance:
            if asked == "before it was told":
                # The old hub ends before it answers.
                nursery.start_soon(come)
                await trio.testing.wait_all_tasks_blocked(0.01)
            else:
                async with accepting(instance, Handler()) as hub:
                    await hub.signals.send(signal.SIGTERM)
                    await hub.ended.wait()
                    nursery.start_soon(come)
                    await trio.testing.wait_all_tasks_blocked(0.01)
            assert not has_it.is_set()
        with trio.fail_after(2):
            await has_it.wait()


async def test_of_two_new_hubs_the_slower_one_takes_over_from_the_faster(data: DataDir) -> None:
    asked: list[bool] = []
    faster_ended = trio.Event()

    async def come() -> None:
        async with instance_lock_of(data, replace=True) as instance:
            asked.append(await instance.pause_old_hub())
            async with accepting(instance, Handler()) as hub:
                if not asked[-1]:
                    await hub.ended.wait()
                    assert hub.replaced
                    faster_ended.set()
                await faster_ended.wait()

    async with trio.open_nursery() as nursery:
        async with instance_lock_of(data):
            unlink_restart_socket(data)
            for _ in range(2):
                nursery.start_soon(come)
            await trio.testing.wait_all_tasks_blocked(0.01)
    assert asked == [False, True]


async def test_the_wait_for_a_held_folder_is_bounded(data: DataDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance_lock_module, "ENDS_WITHIN_S", 0.1)
    with data.locked(), pytest.raises(HandoverError, match=f"process {os.getpid()} .* stop it first"):
        async with instance_lock_of(data, replace=True):
            pass


IN_USE = (
    "the hub that is to be replaced listens on 127.0.0.1:0: "
    "keep that address, take another port, or stop that hub first"
)


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("::", IN_USE),
        ("0.0.0.0", IN_USE),
        ("localhost", IN_USE),
        # Not caused by the old hub.
        (
            "192.0.2.1",
            "Cannot assign requested address: "
            "give listen an address of this machine, or [::] for all that it has",
        ),
    ],
)
async def test_an_address_that_overlaps_the_old_hubs_is_refused_with_the_next_step(
    data: DataDir, host: str, why: str
) -> None:
    async with old_hub_here(data) as old:
        client = await request_handover(data)
        assert client is not None
        [port] = client.ports()
        client.close()
        client.restart_socket.close()
        client.lock.release()
        overlapping = attrs.evolve(configured(data), listen=Address(host, port))
        with pytest.raises(OSError, match="cannot listen") as caught:
            async with open_instance_lock(overlapping, data, "new", replace=True):
                pass
        assert str(caught.value) == f"cannot listen on {overlapping.listen} (listen): {why}"
        old.cancel()


async def test_an_old_hub_that_disconnects_and_keeps_running_is_not_replaced(
    data: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance_lock_module, "ENDS_WITHIN_S", 0.05)
    async with old_hub_here(data) as old:
        async with instance_lock_of(data, replace=True) as instance:
            old.cancel()
            with trio.CancelScope(shield=True):
                with pytest.raises(HandoverError, match="closed the handover, and still runs"):
                    await instance.pause_old_hub()
        assert data.restart_socket_file.exists()


async def test_the_pid_file_names_the_new_hub_only_once_it_has_taken_over(
    data: DataDir, tmp_path: Path
) -> None:
    pid_file = tmp_path / "hub.pid"
    pid_file.write_text("1\n")
    async with old_hub_here(data) as old:
        for takes in (False, True):
            async with instance_lock_of(data, replace=True, pid_file=pid_file) as instance:
                await instance.pause_old_hub()
                assert pid_file.read_text() == "1\n"
                if takes:
                    await instance.confirm()
                    assert pid_file.read_text() == f"{os.getpid()}\n"
                    # A replaced hub leaves the file to its successor.
                    instance.mark_handed_over()
            assert pid_file.exists()
        old.cancel()
    assert sorted(os.listdir(tmp_path)) == ["data", "hub.pid"]


async def test_an_unwritable_pid_file_is_reported_before_the_handover(data: DataDir, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"pid_file: cannot write .*/none/hub\.pid"):
        async with instance_lock_of(data, pid_file=tmp_path / "none" / "hub.pid"):
            pass
    data.lock().release()


async def test_a_hub_that_leaves_its_peers_accepts_until_it_has_left_and_links_for_longer(
    data: DataDir,
) -> None:
    handler = Handler(has_peers=True)
    anywhere = Address("127.0.0.1", 0)
    config = attrs.evolve(configured(data), peer=PeerConfig(anywhere, anywhere))
    async with open_instance_lock(config, data, "new", replace=False) as instance:
        assert instance.peer is not None
        address, links = (each[1][0].getsockname() for each in (instance.front, instance.peer))
        async with accepting(instance, handler) as hub:
            await hub.signals.send(signal.SIGTERM)
            await handler.leaves.wait()
            assert not handler.ready
            assert await request_handover(data) is None
            client = await trio.open_tcp_stream(*address)
            await handler.holds.wait()
            assert not hub.ended.is_set()
            handler.may_go.set()
            await hub.ended.wait()
            assert hub.replaced is False
            with pytest.raises(OSError, match="all attempts to connect"):
                await trio.open_tcp_stream(*address)
            handler.holds = trio.Event()
            link = await trio.open_tcp_stream(*links)
            await handler.holds.wait()
            await client.aclose()
            await link.aclose()
            hub.acceptor.handlers.cancel_scope.cancel()
