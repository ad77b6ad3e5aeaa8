from __future__ import annotations

import select
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tunnel.net.task_poll import TaskPoll


@asynccontextmanager
async def begun() -> AsyncIterator[tuple[TaskPoll, socket.socket, socket.socket]]:
    poll = TaskPoll()
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        async with trio.open_nursery() as nursery:
            poll.begin(nursery)
            yield poll, near, far
            poll.close()


async def test_a_socket_is_reported_as_long_as_it_is_ready() -> None:
    async with begun() as (poll, near, far):
        poll.register(near.fileno(), select.POLLIN)
        assert poll.poll(0, 10) == []
        far.send(b"x")
        for _ in range(3):
            with trio.fail_after(2):
                await poll.wait()
            assert poll.poll(0, 10) == [(near.fileno(), select.POLLIN)]
        near.recv(10)
        await trio.testing.wait_all_tasks_blocked()
        assert poll.poll(0, 10) == []


async def test_what_another_task_has_read_is_not_reported() -> None:
    async with begun() as (poll, near, far):
        poll.register(near.fileno(), select.POLLIN)
        far.send(b"x")
        await trio.testing.wait_all_tasks_blocked()
        near.recv(10)
        assert poll.poll(0, 10) == []
        far.send(b"y")
        await trio.testing.wait_all_tasks_blocked()
        assert poll.poll(0, 10) == [(near.fileno(), select.POLLIN)]


async def test_one_event_or_both_are_waited_for() -> None:
    async with begun() as (poll, near, far):
        for events in (select.POLLOUT, select.POLLIN, select.POLLIN | select.POLLOUT):
            if events == select.POLLOUT:
                poll.register(near.fileno(), events)
            else:
                poll.modify(near.fileno(), events)
            await trio.testing.wait_all_tasks_blocked()
            expected = [(near.fileno(), select.POLLOUT)] if events & select.POLLOUT else []
            assert poll.poll(0, 10) == expected
        far.send(b"x")
        await trio.testing.wait_all_tasks_blocked()
        assert poll.poll(0, 10) == [(near.fileno(), select.POLLIN | select.POLLOUT)]


async def test_the_first_to_be_ready_are_the_first_to_be_reported() -> None:
    async with begun() as (poll, near, far):
        poll.register(near.fileno(), select.POLLIN)
        poll.register(far.fileno(), select.POLLIN)
        for first, second in ((near, far), (far, near)):
            second.send(b"x")
            await trio.testing.wait_all_tasks_blocked()
            first.send(b"x")
            await trio.testing.wait_all_tasks_blocked()
            assert poll.poll(0, 1) == [(first.fileno(), select.POLLIN)]
            # What was reported and is still ready comes behind the other one.
            await trio.testing.wait_all_tasks_blocked()
            assert poll.poll(0, 1) == [(second.fileno(), select.POLLIN)]
            first.recv(10)
            second.recv(10)
            assert poll.poll(0, 10) == []


async def test_only_one_task_waits() -> None:
    async with begun() as (poll, near, _), trio.open_nursery() as nursery:
        poll.register(near.fileno(), select.POLLIN)
        nursery.start_soon(poll.wait)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await poll.wait()
        nursery.cancel_scope.cancel()
