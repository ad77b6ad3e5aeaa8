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

from proxy.hub.home.datadir import DataDir, FolderInUseError, FolderLock
from proxy.hub.restart import handover
from proxy.hub.restart.handover import (
    GoneError,
    HandoverError,
    Place,
    SilentError,
    Succession,
    close_door,
    open_door,
    take_over,
)

REFUSAL = b'{"is": "refused", "why": "no"}'


@attrs.define(eq=False)
class Old:
    """A hub that listens, and what it did."""

    data: DataDir
    lock: FolderLock
    door: socket.socket
    front: socket.socket
    admin: socket.socket
    did: list[str] = attrs.Factory(list)
    said: list[str] = attrs.Factory(list)
    refused: trio.Event = attrs.Factory(trio.Event)
    given: trio.Event = attrs.Factory(trio.Event)

    def log(self, line: str) -> None:
        self.said.append(line)
        if "this one goes on" in line:
            self.refused.set()

    async def pause(self) -> None:
        await trio.lowlevel.checkpoint()
        self.did.append("pause")

    async def give(self) -> None:
        place = Place(
            data=self.data,
            lock=self.lock,
            door=self.door,
            listeners={"front": ("127.0.0.1:1", [self.front]), "admin": ("127.0.0.1:2", [self.admin])},
            boot="old",
            pause=self.pause,
            resume=lambda: self.did.append("resume"),
            log=self.log,
        )
        await place.give()
        self.given.set()


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    # Longer than the path of a Unix socket may be.
    return DataDir.open(tmp_path / ("a" * 60) / ("b" * 60))


@pytest.fixture
def old(data: DataDir) -> Iterator[Old]:
    lock = data.lock()
    with (
        open_door(data) as door,
        socket.create_server(("127.0.0.1", 0)) as front,
        socket.create_server(("127.0.0.1", 0)) as admin,
    ):
        yield Old(data, lock, door, front, admin)
    lock.release()


@asynccontextmanager
async def giving(old: Old) -> AsyncIterator[None]:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(old.give)
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


async def test_the_place_goes_over_whole(old: Old) -> None:
    assert stat.S_IMODE(old.data.door_file.stat().st_mode) == 0o600
    async with giving(old):
        succession = await take_over(old.data)
        assert succession is not None
        assert succession.boot == "old"
        # Nothing has happened to the old one yet.
        assert old.did == []
        [front] = succession.take("front", "127.0.0.1:1")
        assert front.getsockname() == old.front.getsockname()
        # One that is configured elsewhere now is not listened on any more.
        assert succession.take("admin", "127.0.0.1:3") == []
        await succession.claim()
        assert old.did == ["pause"]
        assert not old.given.is_set()
        await succession.confirm()
        await old.given.wait()
        assert old.did == ["pause"]
    # The lock is held until both have let go.
    old.lock.release()
    with pytest.raises(FolderInUseError):
        old.data.lock()
    succession.lock.release()
    old.data.lock().release()
    # The door is the new one's: the next one finds it behind it.
    with front, succession.door:
        assert succession.door.getsockname() == old.door.getsockname()


@pytest.mark.parametrize("claimed", [False, True])
async def test_a_new_one_that_leaves_changes_nothing(old: Old, claimed: bool) -> None:
    before = descriptors()
    async with giving(old):
        for _ in range(2):
            succession = await take_over(old.data)
            assert succession is not None
            if claimed:
                await succession.claim()
            succession.close()
            succession.door.close()
            succession.lock.release()
            await until(lambda: any("this one goes on" in line for line in old.said))
            assert old.did == (["pause", "resume"] if claimed else [])
            old.did.clear()
            old.said.clear()
    assert descriptors() == before


async def test_one_that_comes_too_late_learns_that_the_old_one_goes_on(
    old: Old, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "PREPARE_S", 0.05)
    async with giving(old):
        succession = await take_over(old.data)
        assert succession is not None
        await until(lambda: any("said nothing for" in line for line in old.said))
        with pytest.raises(HandoverError, match="goes on: the other hub said nothing"):
            await succession.claim()
        succession.close()
        succession.door.close()
        succession.lock.release()


async def test_a_stop_in_the_middle_waits_for_the_outcome(old: Old) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(old.give)
        succession = await take_over(old.data)
        assert succession is not None
        await succession.claim()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await succession.confirm()
            await old.given.wait()
    succession.close()
    succession.door.close()
    succession.lock.release()


async def test_one_that_is_stopped_in_the_middle_still_says_that_it_takes_its_place_back(
    old: Old, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(old.give)
        succession = await take_over(old.data)
        assert succession is not None
        monkeypatch.setattr(handover, "ANSWER_S", 0.05)
        await succession.claim()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await old.refused.wait()
            with pytest.raises(HandoverError, match="goes on: the other hub said nothing"):
                await succession.confirm()
    leave(succession)


async def test_only_one_serves_when_the_new_ones_word_crosses_the_old_ones_decision(
    old: Old, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with giving(old):
        succession = await take_over(old.data)
        assert succession is not None
        monkeypatch.setattr(handover, "ANSWER_S", 0.05)
        await succession.claim()
        # Its patience has run out just now: it has not closed its end yet.
        await old.refused.wait()
        with pytest.raises(HandoverError, match="goes on: the other hub said nothing"):
            await succession.confirm()
        assert not old.given.is_set()
        leave(succession)


def paired(old: Old) -> tuple[Succession, trio.socket.SocketType]:
    """The new one's end, and the socket of the old one that it talks to."""
    here, there = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Succession(FolderLock(os.dup(old.lock.descriptor)), old.door.dup(), {}, "old", here), there


def leave(succession: Succession) -> None:
    succession.close()
    succession.door.close()
    succession.lock.release()


Step = Callable[[Succession], Awaitable[None]]
STEPS = pytest.mark.parametrize("step", [Succession.claim, Succession.confirm])


@STEPS
@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize(("last", "error"), [(REFUSAL, HandoverError), (None, GoneError)])
async def test_one_that_goes_on_has_said_so_before_it_is_gone(
    old: Old, step: Step, when: str, last: bytes | None, error: type[HandoverError]
) -> None:
    succession, there = paired(old)

    async def go() -> None:
        if when == "meanwhile":
            # It goes with the new one's word unread, which the kernel calls a reset.
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
            await step(succession)
    assert type(caught.value) is error
    leave(succession)


async def test_one_that_waited_in_vain_cannot_be_told_any_more_that_the_place_is_its(
    old: Old, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "ANSWER_S", 0.05)
    succession, there = paired(old)
    with there:
        with pytest.raises(SilentError):
            await succession.confirm()
        # It has not even closed its end.
        with pytest.raises(BrokenPipeError):
            await there.send(b'{"is": "taken"}')
    leave(succession)


async def test_where_nobody_is_there_is_nothing_to_take(data: DataDir) -> None:
    assert await take_over(data) is None
    # A hub that was killed leaves its name behind.
    open_door(data).close()
    assert data.door_file.exists()
    assert await take_over(data) is None
    with open_door(data):
        close_door(data)
    assert not data.door_file.exists()


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
    [(lie, "something else"), (babble, "cannot be read"), (nest, "cannot be read"), (hang_up, "is gone")],
)
async def test_what_is_no_place_is_refused(data: DataDir, answer: Answer, why: str) -> None:
    before = descriptors()
    with open_door(data) as door:
        async with trio.open_nursery() as nursery:

            async def host() -> None:
                there, _ = await trio.socket.from_stdlib_socket(door).accept()
                with there:
                    await there.recv(1000)
                    await answer(there)
                    with suppress(OSError):
                        await there.recv(1000)

            nursery.start_soon(host)
            with pytest.raises(HandoverError, match=why):
                await take_over(data)
    assert descriptors() == before


@pytest.mark.parametrize(
    ("names", "given", "why"),
    [
        ([7], ["lock", "door", "door"], "something else"),
        ([["front"]], ["lock", "door", "door"], "something else"),
        ([["front", "a"]], ["lock", "door"], "something else"),
        ([["front", "a"]], ["other", "door", "door"], "another lock"),
        ([["front", "a"]], ["lock", "other", "door"], "does not listen"),
        ([["front", "a"]], ["lock", "door", "deaf"], "does not listen"),
    ],
)
async def test_a_place_with_another_part_is_refused_and_let_go_of(
    data: DataDir, names: list[object], given: list[str], why: str
) -> None:
    lock = data.lock()
    with (
        open_door(data) as door,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as deaf,
        (data.path / "other").open("wb") as other,
    ):
        parts = {
            "lock": lock.descriptor,
            "door": door.fileno(),
            "deaf": deaf.fileno(),
            "other": other.fileno(),
        }
        before = descriptors()
        async with trio.open_nursery() as nursery:

            async def host() -> None:
                there, _ = await trio.socket.from_stdlib_socket(door).accept()
                with there:
                    await there.recv(1000)
                    gift: dict[str, object] = {"is": "given", "boot": "x", "listeners": names}
                    await handover._send(there, gift, [parts[part] for part in given])
                    await there.recv(1000)

            nursery.start_soon(host)
            with pytest.raises(HandoverError, match=why):
                await take_over(data)
        assert descriptors() == before
    lock.release()


async def test_another_version_is_told_that_this_one_goes_on(old: Old) -> None:
    async with giving(old):
        guest = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with guest:
            descriptor = os.open(old.data.path, os.O_PATH)
            await guest.connect(f"/proc/self/fd/{descriptor}/hub.sock")
            os.close(descriptor)
            await guest.send(b'{"is": "asked", "version": 99}')
            assert b"version 99" in await guest.recv(1000)
        assert old.did == []
