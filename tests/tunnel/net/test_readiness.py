from __future__ import annotations

import select
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import pairwise

import pytest
import trio
import trio.testing

from tests.tunnel.passes import counted_passes
from tunnel.net import readiness
from tunnel.net.readiness import CALLS_PER_LOOK, Readiness, Watch
from tunnel.net.task_poll import TaskPoll


@pytest.fixture(autouse=True, params=["epoll", "tasks"] if hasattr(select, "epoll") else ["tasks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs on both ways to poll."""
    if request.param == "tasks":
        monkeypatch.setattr(readiness, "open_poll", TaskPoll)


@asynccontextmanager
async def running() -> AsyncIterator[Readiness]:
    watcher = Readiness()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        yield watcher
        nursery.cancel_scope.cancel()


def pair() -> tuple[socket.socket, socket.socket]:
    near, far = socket.socketpair()
    near.setblocking(False)
    return near, far


async def test_each_arrival_is_told_and_one_that_is_not_read_again_and_again() -> None:
    near, far = pair()
    told: list[bytes] = []
    spurious = trio.Event()

    def read() -> None:
        told.append(near.recv(10))

    def leave() -> None:
        told.append(b"left")
        if told.count(b"left") == 3:
            spurious.set()

    async with running() as watcher:
        watch = watcher.watch(near.fileno(), read)
        for piece in (b"a", b"b"):
            far.send(piece)
            await trio.testing.wait_all_tasks_blocked()
        assert told == [b"a", b"b"]
        watch.call = leave
        far.close()
        with trio.fail_after(2):
            await spurious.wait()
    near.close()


async def test_input_shows_before_its_call() -> None:
    near, far = pair()
    async with running() as watcher:
        watch = watcher.watch(near.fileno(), lambda: None)
        assert not watch.has_input()
        far.send(b"a")
        assert watch.has_input()
        assert near.recv(10) == b"a"
        assert not watch.has_input()
        far.close()
        assert watch.has_input()
        watch.end()
    near.close()


async def test_the_peers_end_is_something_to_read() -> None:
    near, far = pair()
    ended = trio.Event()

    def end() -> None:
        watch.end()
        ended.set()

    async with running() as watcher:
        watch = watcher.watch(near.fileno(), end)
        far.close()
        with trio.fail_after(2):
            await ended.wait()
    near.close()


async def test_a_watch_that_an_earlier_call_has_ended_is_not_called() -> None:
    pairs = [pair() for _ in range(3)]
    watches: list[Watch] = []
    called: list[int] = []

    async with running() as watcher:
        for number, (near, _) in enumerate(pairs):

            def call(number: int = number) -> None:
                called.append(number)
                for watch in watches:
                    watch.end()

            watches.append(watcher.watch(near.fileno(), call))
        for _, far in pairs:
            far.send(b"x")
        await trio.testing.wait_all_tasks_blocked()
        assert len(called) == 1
        # And a descriptor can be watched again.
        again = trio.Event()
        watcher.watch(pairs[0][0].fileno(), lambda: (again.set(), pairs[0][0].recv(10), None)[-1])
        with trio.fail_after(2):
            await again.wait()
    for near, far in pairs:
        near.close()
        far.close()


async def test_others_have_their_turn_between_many_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "CALLS_PER_PASS", 2)
    pairs = [pair() for _ in range(6)]
    happened: list[str] = []

    async def another() -> None:
        while len(happened) < 100:
            happened.append("turn")
            await trio.lowlevel.checkpoint()

    async with running() as watcher:
        for near, far in pairs:

            def call(near: socket.socket = near) -> None:
                near.recv(10)
                happened.append("call")

            watcher.watch(near.fileno(), call)
            far.send(b"x")
        await another()
    assert happened.count("call") == 6
    # Two passes may follow one another, as trio shuffles who runs first in each.
    assert "call call call call call" not in " ".join(happened)
    for near, far in pairs:
        near.close()
        far.close()


async def test_all_have_their_turn_where_calls_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "PASS_S", 0.0)
    pairs = [pair() for _ in range(3 * CALLS_PER_LOOK + 1)]
    watches: list[Watch] = []
    called: list[int] = []
    others = {*range(len(pairs))}
    twice = trio.Event()

    def call(number: int) -> None:
        # It does not read, so it is ready again and again.
        passes.note()
        called.append(number)
        if len(called) == CALLS_PER_LOOK:
            # Left for a later pass, and ended by then.
            ended = (others - {*called}).pop()
            others.remove(ended)
            watches[ended].end()
        if len(called) == 2 * len(others):
            twice.set()

    with counted_passes() as passes:
        async with running() as watcher:
            for number, (near, far) in enumerate(pairs):
                watches.append(watcher.watch(near.fileno(), partial(call, number)))
                far.send(b"x")
            with trio.fail_after(2):
                await twice.wait()
    assert set(called) == set(called[: len(others)]) == others
    assert passes.most == CALLS_PER_LOOK
    for near, far in pairs:
        near.close()
        far.close()


async def test_no_socket_that_is_always_ready_keeps_others_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "CALLS_PER_PASS", 2)
    pairs = [pair() for _ in range(7)]
    called: list[int] = []
    enough = trio.Event()

    def call(number: int) -> None:
        # It does not read, so it is ready again and again.
        passes.note()
        called.append(number)
        if len(called) == 20 * len(pairs):
            enough.set()

    with counted_passes() as passes:
        async with running() as watcher:
            for number, (near, far) in enumerate(pairs):
                watcher.watch(near.fileno(), partial(call, number))
                far.send(b"x")
            with trio.fail_after(2):
                await enough.wait()
    assert passes.most == 2
    for number in range(len(pairs)):
        at = [place for place, each in enumerate(called) if each == number]
        for before, after in pairwise([-1, *at, len(called)]):
            between = Counter(called[before + 1 : after])
            assert not between or max(between.values()) <= 2
    for near, far in pairs:
        near.close()
        far.close()


async def test_what_was_taken_in_meanwhile_is_not_told_in_a_later_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(readiness, "PASS_S", 0.0)
    pairs = [pair() for _ in range(CALLS_PER_LOOK + 1)]
    called: list[int] = []

    def call(number: int) -> None:
        called.append(number)
        if len(called) == 1:
            for near, _ in pairs:
                near.recv(10)

    async with running() as watcher:
        for number, (near, far) in enumerate(pairs):
            watcher.watch(near.fileno(), partial(call, number))
            far.send(b"x")
        await trio.testing.wait_all_tasks_blocked()
    # The first pass does not look again, but the one for the rest does.
    assert len(called) == CALLS_PER_LOOK
    for near, far in pairs:
        near.close()
        far.close()


async def test_a_watch_may_be_ended_after_all_watching_has() -> None:
    near, far = pair()
    async with running() as watcher:
        watch = watcher.watch(near.fileno(), lambda: None)
    watch.end()
    watch.end()
    near.close()
    far.close()


async def test_the_end_of_a_pass_is_behind_all_of_its_calls() -> None:
    pairs = [pair() for _ in range(3)]
    happened: list[str] = []

    async with running() as watcher:

        def end() -> None:
            happened.append("end")
            # It belongs to no pass, so what it begins cannot wait for the end of one.
            assert not watcher.at_end(end)

        for near, _ in pairs:

            def call(near: socket.socket = near) -> None:
                near.recv(10)
                happened.append("call")
                assert watcher.at_end(end)

            watcher.watch(near.fileno(), call)
        assert not watcher.at_end(end)
        for _, far in pairs:
            far.send(b"x")
        await trio.testing.wait_all_tasks_blocked()
        assert happened == ["call"] * 3 + ["end"] * 3
    for near, far in pairs:
        near.close()
        far.close()


@pytest.mark.parametrize("calls", [1, 3])
async def test_what_is_ready_waits_for_the_end_of_a_pass_that_has_other_calls(calls: int) -> None:
    pairs = [pair() for _ in range(calls)]
    happened: list[str] = []

    async with running() as watcher:
        for near, _ in pairs:

            def call(near: socket.socket = near) -> None:
                near.recv(10)
                assert watcher.at_end(lambda: happened.append("sent"), ready=True)
                happened.append("behind it")

            watcher.watch(near.fileno(), call)
        assert not watcher.at_end(lambda: happened.append("sent"), ready=True)
        for _ in range(2):
            for _, far in pairs:
                far.send(b"x")
            await trio.testing.wait_all_tasks_blocked()
    once = ["sent", "behind it"] if calls == 1 else ["behind it"] * calls + ["sent"] * calls
    assert happened == once * 2
    for near, far in pairs:
        near.close()
        far.close()


async def test_what_is_not_listened_to_is_not_called_and_neither_is_its_end() -> None:
    near, far = pair()
    told: list[bytes] = []

    def read() -> None:
        told.append(near.recv(10))
        if not told[-1]:
            watch.end()

    async with running() as watcher:
        watch = watcher.watch(near.fileno(), read)
        watch.listen(False)
        far.send(b"a")
        await trio.testing.wait_all_tasks_blocked()
        assert told == []
        # A socket that is watched for nothing would tell this again and again.
        far.close()
        await trio.testing.wait_all_tasks_blocked()
        assert told == []
        watch.listen(True)
        await trio.testing.wait_all_tasks_blocked()
        assert told == [b"a", b""]
    near.close()


async def test_room_is_told_once_and_not_before_there_is_some() -> None:
    near, far = pair()
    told: list[str] = []
    async with running() as watcher:
        watch = watcher.watch(near.fileno(), lambda: told.append("input"))
        while True:
            try:
                near.send(bytes(100_000))
            except BlockingIOError:
                break
        watch.when_room(lambda: told.append("room"))
        await trio.testing.wait_all_tasks_blocked()
        assert told == []
        far.setblocking(False)
        with trio.fail_after(2):
            while told != ["room"]:
                with suppress(BlockingIOError):
                    far.recv(1_000_000)
                await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        assert told == ["room"]
        assert watch.room is None
    near.close()
    far.close()


@pytest.mark.parametrize("listening", [True, False])
async def test_room_and_input_are_told_together_where_both_are_wanted(listening: bool) -> None:
    near, far = pair()
    told: list[str] = []

    def read() -> None:
        near.recv(10)
        told.append("input")

    async with running() as watcher:
        watch = watcher.watch(near.fileno(), read)
        watch.listen(listening)
        watch.when_room(lambda: told.append("room"))
        far.send(b"a")
        await trio.testing.wait_all_tasks_blocked()
        assert told == ["room", "input"] if listening else told == ["room"]
        if not listening:
            watch.listen(True)
            await trio.testing.wait_all_tasks_blocked()
            assert told == ["room", "input"]
    near.close()
    far.close()


async def test_a_watch_that_is_ended_within_its_own_call_for_room_is_called_no_more() -> None:
    near, far = pair()
    async with running() as watcher:
        watch = watcher.watch(near.fileno(), lambda: pytest.fail("it was ended"))
        far.send(b"a")
        watch.when_room(lambda: watch.end())
        await trio.testing.wait_all_tasks_blocked()
        assert watch.ended
        # Another one may be made for the descriptor.
        watcher.watch(near.fileno(), lambda: None).end()
        silent = watcher.watch(near.fileno(), lambda: None)
        silent.listen(False)
        silent.end()
    near.close()
    far.close()


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("stop", ["end", "listen"])
async def test_a_descriptor_is_free_for_another_task_at_once(begun: bool, stop: str) -> None:
    near, far = pair()
    async with running() as watcher:
        watch = watcher.watch(near.fileno(), lambda: pytest.fail("it is watched no more"))
        if begun:
            await trio.testing.wait_all_tasks_blocked()
        if stop == "end":
            watch.end()
        else:
            watch.listen(False)
        far.send(b"x")
        with trio.fail_after(2):
            await trio.lowlevel.wait_readable(near)
        await trio.testing.wait_all_tasks_blocked()
    near.close()
    far.close()


@pytest.mark.parametrize("begun", [True, False])
async def test_a_descriptor_may_be_closed_and_be_another_sockets_at_once(begun: bool) -> None:
    near, far = pair()
    told: list[bytes] = []
    async with running() as watcher:
        descriptor = near.fileno()
        watch = watcher.watch(descriptor, lambda: pytest.fail("it is watched no more"))
        if begun:
            await trio.testing.wait_all_tasks_blocked()
        # Its socket has room, and its input is here.
        watch.when_room(lambda: pytest.fail("it is watched no more"))
        far.send(b"x")
        watch.end()
        near.close()
        far.close()
        near, far = pair()
        assert near.fileno() == descriptor
        watch = watcher.watch(descriptor, lambda: told.append(near.recv(10)))
        await trio.testing.wait_all_tasks_blocked()
        far.send(b"y")
        await trio.testing.wait_all_tasks_blocked()
        assert told == [b"y"]
        watch.end()
    near.close()
    far.close()


async def test_a_watch_that_another_task_ends_as_its_input_comes_is_not_called_after_that() -> None:
    ended = False

    def call() -> None:
        assert not ended

    # trio shuffles the tasks that run in one pass, so the other task is before or behind the watch.
    for _ in range(20):
        near, far = pair()
        other, other_far = pair()
        async with running() as watcher:
            ended = False
            watch = watcher.watch(near.fileno(), call)
            await trio.testing.wait_all_tasks_blocked()
            far.send(b"x")
            other_far.send(b"x")
            await trio.lowlevel.wait_readable(other)
            watch.end()
            ended = True
            near.close()
            await trio.testing.wait_all_tasks_blocked()
        for each in (far, other, other_far):
            each.close()


async def test_nothing_is_watched_after_all_watching_has_ended() -> None:
    near, far = pair()
    async with running() as watcher:
        watch = watcher.watch(near.fileno(), lambda: None)
        await trio.testing.wait_all_tasks_blocked()
    watch.listen(False)
    watch.end()
    with pytest.raises(ValueError, match="closed"):
        watcher.watch(near.fileno(), lambda: None)
    with trio.move_on_after(0):
        await trio.lowlevel.wait_readable(near)
    near.close()
    far.close()


async def test_what_is_watched_before_watching_begins_is_called() -> None:
    near, far = pair()
    told: list[bytes] = []
    watcher = Readiness()
    watcher.watch(near.fileno(), lambda: told.append(near.recv(10)))
    far.send(b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert told == [b"x"]
    near.close()
    far.close()
