"""Where a hub lives, with real sockets, real locks, and a real process that is killed."""

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
from proxy.hub.home.datadir import DataDir, FolderInUseError
from proxy.hub.home.hub_instances import HubInstances
from proxy.hub.restart import instance_lock as premises_module
from proxy.hub.restart.handover import HandoverError, Place, close_door, open_door, take_over
from proxy.hub.restart.instance_lock import Premises, open_premises
from proxy.process.config import Address
from proxy.process.files import FileError

# A hub that gives its place away, until it is killed: it is never done with its pause if told so.
OLD = """
import sys
from pathlib import Path
import trio
from proxy.process.config import Address
from proxy.hub.home.hub_instances import HubInstances
from proxy.hub.home.datadir import DataDir
from proxy.hub.restart.handover import Place, open_door
from proxy.listener.accept import open_sockets

data = DataDir(Path(sys.argv[1]))

async def nothing():
    pass

async def main():
    [front] = await open_sockets(Address("127.0.0.1", 0), "listen")
    lock, door = data.lock(), open_door(data)
    pause = trio.sleep_forever if sys.argv[2] == "given" else nothing
    place = Place(data, lock, door, {"front": ("127.0.0.1:0", [front])}, "old", pause, int, print)
    print(front.getsockname()[1], flush=True)
    await place.give()

with HubInstances(data.instances_dir).registered("old"):
    trio.run(main)
"""


@attrs.define(eq=False)
class Handler:
    """Both fronts: it holds each connection until it may go, even when it is cancelled."""

    ready: bool = False
    holds: trio.Event = attrs.Factory(trio.Event)
    may_go: trio.Event = attrs.Factory(trio.Event)

    async def handle_client(self, _: trio.abc.Stream) -> None:
        self.holds.set()
        # As a change of the store in a thread does.
        with trio.CancelScope(shield=True):
            await self.may_go.wait()


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    return DataDir.open(tmp_path / "data")


def configured(data: DataDir, pid_file: Path | None = None) -> HubConfig:
    anywhere = Address("127.0.0.1", 0)
    return HubConfig(
        listen=anywhere, admin=AdminConfig(listen=anywhere), data_dir=data.path, pid_file=pid_file
    )


@asynccontextmanager
async def premises_of(
    data: DataDir, *, replace: bool = False, pid_file: Path | None = None
) -> AsyncIterator[Premises]:
    with trio.fail_after(20):
        async with open_premises(configured(data, pid_file), data, "new", replace=replace) as premises:
            yield premises


def acceptor_of(premises: Premises, handler: Handler, handlers: trio.Nursery) -> Acceptor:
    return Acceptor(premises, cast("Front", handler), cast("AdminFront", handler), handlers)


@attrs.define(eq=False)
class Hub:
    """One that accepts, and how it ended."""

    acceptor: Acceptor
    signals: trio.MemorySendChannel[int]
    replaced: bool | None = None
    ended: trio.Event = attrs.Factory(trio.Event)


@asynccontextmanager
async def accepting(premises: Premises, handler: Handler) -> AsyncIterator[Hub]:
    async with trio.open_nursery() as handlers:
        send, receive = trio.open_memory_channel[int](1)
        hub = Hub(acceptor_of(premises, handler, handlers), send)

        async def run() -> None:
            hub.replaced = await hub.acceptor.accept_until_told(receive, "url")
            hub.ended.set()

        handlers.start_soon(run)
        while not handler.ready:
            await trio.testing.wait_all_tasks_blocked()
        yield hub
        handler.may_go.set()
        handlers.cancel_scope.cancel()


async def test_a_stop_during_the_pause_does_not_keep_the_successor_waiting(data: DataDir) -> None:
    handler = Handler()
    async with premises_of(data) as premises, accepting(premises, handler) as hub:
        operator = await trio.open_tcp_stream(*premises.admin[1][0].getsockname())
        await handler.holds.wait()
        succession = await take_over(data)
        assert succession is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(succession.claim)
            # The operator's change is in the way of the pause.
            await trio.testing.wait_all_tasks_blocked()
            await hub.signals.send(signal.SIGTERM)
            await trio.testing.wait_all_tasks_blocked()
            handler.may_go.set()
        await succession.confirm()
        await hub.ended.wait()
        assert hub.replaced
        succession.close()
        succession.door.close()
        succession.lock.release()
        await operator.aclose()


async def test_one_whose_place_was_not_taken_after_all_accepts_again(data: DataDir) -> None:
    handler = Handler()
    async with premises_of(data) as premises, accepting(premises, handler) as hub:
        await hub.acceptor.pause()
        agent = await trio.open_tcp_stream(*premises.front[1][0].getsockname())
        await trio.testing.wait_all_tasks_blocked()
        assert not handler.holds.is_set()
        hub.acceptor.resume()
        await handler.holds.wait()
        await agent.aclose()


async def test_nothing_is_left_to_pause_once_the_accepting_has_ended(data: DataDir) -> None:
    handler = Handler()
    async with premises_of(data) as premises, accepting(premises, handler) as hub:
        await hub.signals.send(signal.SIGTERM)
        await hub.ended.wait()
        with trio.fail_after(1):
            await hub.acceptor.pause()
        assert hub.replaced is False


async def test_who_comes_while_one_that_was_told_to_stop_finishes_is_refused_at_once(data: DataDir) -> None:
    handler = Handler()
    async with premises_of(data) as premises, accepting(premises, handler) as hub:
        places = [sockets[0].getsockname() for _, sockets in (premises.front, premises.admin)]
        await hub.signals.send(signal.SIGTERM)
        await hub.ended.wait()
        for place in places:
            with pytest.raises(OSError, match="all attempts to connect"):
                await trio.open_tcp_stream(*place)


@contextmanager
def old_hub(data: DataDir, dies: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    argv = [sys.executable, "-c", OLD, str(data.path), dies]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


async def claim(premises: Premises) -> None:
    assert await premises.claim()


@pytest.mark.parametrize("dies", ["given", "yours"])
async def test_a_hub_that_is_killed_while_another_prepares_leaves_its_place_to_it(
    data: DataDir, dies: str, tmp_path: Path
) -> None:
    pid_file = tmp_path / "hub.pid"
    with old_hub(data, dies) as (process, port):
        async with premises_of(data, replace=True, pid_file=pid_file) as premises:
            if dies == "yours":
                assert await premises.claim()
                process.kill()
            else:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(claim, premises)
                    await trio.testing.wait_all_tasks_blocked()
                    process.kill()
            await premises.confirm()
            await check_owner(premises, port)
            assert pid_file.read_text() == f"{os.getpid()}\n"
    assert not pid_file.exists()
    data.lock().release()


async def check_owner(premises: Premises, port: int) -> None:
    """Everything is this process's: the socket, the lock, and the name of the door."""
    assert premises.predecessor is None
    assert [each.getsockname()[1] for each in premises.front[1]] == [port]
    with pytest.raises(FolderInUseError) as caught:
        premises.data.lock()
    assert caught.value.pid == str(os.getpid())
    async with trio.open_nursery() as nursery:
        acceptor = acceptor_of(premises, Handler(), nursery)
        place = premises.place(acceptor.pause, acceptor.resume)
        nursery.start_soon(place.give)
        succession = await take_over(premises.data)
        assert succession is not None
        assert succession.boot == "new"
        nursery.cancel_scope.cancel()
    succession.close()
    succession.door.close()
    succession.lock.release()


@asynccontextmanager
async def old_place(data: DataDir) -> AsyncIterator[trio.CancelScope]:
    """A hub in this process that gives its place away, until the scope is cancelled; and it lives on then."""
    lock = data.lock()
    with (
        HubInstances(data.instances_dir).registered("old"),
        open_door(data) as door,
        socket.create_server(("127.0.0.1", 0)) as front,
    ):
        listeners = {"front": ("127.0.0.1:0", [front])}
        place = Place(
            data, lock, door, listeners, "old", trio.lowlevel.checkpoint, lambda: None, lambda _: None
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(place.give)
            yield nursery.cancel_scope
    lock.release()


async def test_one_that_is_told_to_stop_takes_the_name_of_its_door_with_it(data: DataDir) -> None:
    async with AsyncExitStack() as stack:
        async with old_place(data) as old:
            taking = open_premises(configured(data), data, "new", replace=True)
            premises = await stack.enter_async_context(taking)
            old.cancel()
        close_door(data)
        assert await premises.claim()
        await premises.confirm()
        await check_owner(premises, premises.front[1][0].getsockname()[1])


@pytest.mark.parametrize("asked", ["before it was told", "after it was told"])
async def test_one_that_comes_while_the_other_one_stops_has_the_place_after_it(
    data: DataDir, asked: str
) -> None:
    has_it = trio.Event()

    async def come() -> None:
        async with premises_of(data, replace=True) as premises:
            assert premises.predecessor is None
            has_it.set()

    async with trio.open_nursery() as nursery:
        async with premises_of(data) as premises:
            if asked == "before it was told":
                # It does not come to the answer any more.
                nursery.start_soon(come)
                await trio.testing.wait_all_tasks_blocked(0.01)
            else:
                async with accepting(premises, Handler()) as hub:
                    await hub.signals.send(signal.SIGTERM)
                    await hub.ended.wait()
                    nursery.start_soon(come)
                    await trio.testing.wait_all_tasks_blocked(0.01)
            assert not has_it.is_set()
        with trio.fail_after(2):
            await has_it.wait()


async def test_of_two_that_come_while_the_other_one_stops_the_slower_asks_the_faster(data: DataDir) -> None:
    asked: list[bool] = []
    faster_ended = trio.Event()

    async def come() -> None:
        async with premises_of(data, replace=True) as premises:
            asked.append(await premises.claim())
            async with accepting(premises, Handler()) as hub:
                if not asked[-1]:
                    await hub.ended.wait()
                    assert hub.replaced
                    faster_ended.set()
                await faster_ended.wait()

    async with trio.open_nursery() as nursery:
        async with premises_of(data):
            close_door(data)
            for _ in range(2):
                nursery.start_soon(come)
            await trio.testing.wait_all_tasks_blocked(0.01)
    assert asked == [False, True]


async def test_a_folder_that_somebody_keeps_is_not_waited_for_without_end(
    data: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(premises_module, "ENDS_WITHIN_S", 0.1)
    with data.locked(), pytest.raises(HandoverError, match=f"process {os.getpid()} .* stop it first"):
        async with premises_of(data, replace=True):
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
        # The old one is not what stands in its way.
        (
            "192.0.2.1",
            "Cannot assign requested address: "
            "give listen an address of this machine, or [::] for all that it has",
        ),
    ],
)
async def test_an_address_that_overlaps_the_old_one_is_refused_with_a_way_out(
    data: DataDir, host: str, why: str
) -> None:
    async with old_place(data) as old:
        succession = await take_over(data)
        assert succession is not None
        [port] = succession.ports()
        succession.close()
        succession.door.close()
        succession.lock.release()
        overlapping = attrs.evolve(configured(data), listen=Address(host, port))
        with pytest.raises(OSError, match="cannot listen") as caught:
            async with open_premises(overlapping, data, "new", replace=True):
                pass
        assert str(caught.value) == f"cannot listen on {overlapping.listen} (listen): {why}"
        old.cancel()


async def test_one_that_hangs_up_and_lives_on_is_not_succeeded(
    data: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(premises_module, "ENDS_WITHIN_S", 0.05)
    async with old_place(data) as old:
        async with premises_of(data, replace=True) as premises:
            old.cancel()
            with trio.CancelScope(shield=True):
                with pytest.raises(HandoverError, match="hung up, and still runs"):
                    await premises.claim()
        assert data.door_file.exists()


async def test_the_pid_file_names_the_new_one_only_once_it_has_the_place(
    data: DataDir, tmp_path: Path
) -> None:
    pid_file = tmp_path / "hub.pid"
    pid_file.write_text("1\n")
    async with old_place(data) as old:
        for takes in (False, True):
            async with premises_of(data, replace=True, pid_file=pid_file) as premises:
                await premises.claim()
                assert pid_file.read_text() == "1\n"
                if takes:
                    await premises.confirm()
                    assert pid_file.read_text() == f"{os.getpid()}\n"
                    # One that has a successor leaves the file to it.
                    premises.give_away()
            assert pid_file.exists()
        old.cancel()
    assert sorted(os.listdir(tmp_path)) == ["data", "hub.pid"]


async def test_a_pid_file_that_cannot_be_written_is_told_before_the_place_is_asked_for(
    data: DataDir, tmp_path: Path
) -> None:
    with pytest.raises(FileError, match=r"pid_file: cannot write .*/none/hub\.pid"):
        async with premises_of(data, pid_file=tmp_path / "none" / "hub.pid"):
            pass
    data.lock().release()
