"""The buffer between a connection's reader and a stream's consumer."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sandbox.inbox import PROBE_S, Inbox


async def test_a_full_inbox_makes_the_feeder_wait_until_it_is_read() -> None:
    inbox = Inbox(bytes_max=4)
    fed: list[bytes] = []

    async def feed() -> None:
        for chunk in (b"abcd", b"efgh", b"ij"):
            await inbox.feed(chunk)
            fed.append(chunk)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        await wait_all_tasks_blocked()
        assert fed == [b"abcd"]
        assert await inbox.receive_some() == b"abcd"
        await wait_all_tasks_blocked()
        assert fed == [b"abcd", b"efgh"]
        assert await inbox.receive_some(3) == b"efg"
        assert await inbox.receive_some() == b"h"
        assert await inbox.receive_some() == b"ij"


async def test_the_end_is_read_after_what_came_before_it() -> None:
    inbox = Inbox()
    await inbox.feed(b"last")
    inbox.feed_eof()
    await inbox.feed(b"too late")
    assert [await inbox.receive_some(), await inbox.receive_some()] == [b"last", b""]


async def test_the_end_wakes_a_waiting_reader() -> None:
    inbox = Inbox()
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            assert await inbox.receive_some() == b""

        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        inbox.feed_eof()


async def test_closing_releases_the_feeder_and_the_reader() -> None:
    full, empty = Inbox(bytes_max=1), Inbox()
    await full.feed(b"x")

    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await empty.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(full.feed, b"thrown away")
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        await full.aclose()
        empty.close()
    with pytest.raises(trio.ClosedResourceError):
        await full.receive_some()


async def test_a_feeder_that_is_cancelled_has_added_nothing() -> None:
    inbox = Inbox(bytes_max=1)
    await inbox.feed(b"x")
    with trio.CancelScope() as scope:
        scope.cancel()
        await inbox.feed(b"y")
    inbox.feed_eof()
    assert [await inbox.receive_some(), await inbox.receive_some()] == [b"x", b""]


async def test_a_waiting_feeder_probes_its_client(autojump_clock: MockClock) -> None:
    inbox = Inbox(bytes_max=1)
    await inbox.feed(b"x")
    times: list[float] = []

    async def probe() -> None:
        await trio.lowlevel.checkpoint()
        times.append(trio.current_time())
        if len(times) == 3:
            raise trio.BrokenResourceError

    start = trio.current_time()
    with pytest.raises(trio.BrokenResourceError):
        await inbox.feed_probing(b"y", probe)
    assert times == [start + PROBE_S, start + 2 * PROBE_S, start + 3 * PROBE_S]
