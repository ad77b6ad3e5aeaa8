"""Streams that wait to be accepted, or are handed over at once."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from tests.tunnel.pairs import open_pair, read_all
from tests.tunnel.trio_stream import accept, accept_nowait
from tunnel import Processed, SessionClosed, Settings, Stream, StreamCode, StreamReset, TooManyStreams


async def test_streams_beyond_the_accept_queue_are_refused_as_not_processed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair(Settings(accept_queue_max=10, max_streams=100)) as pair:
        streams = [pair.open_stream(eof=True) for _ in range(100)]
        with pytest.raises(TooManyStreams):
            pair.open_stream()
        await trio.sleep(1)
        assert pair.listener.stream_count == 10
        for stream in streams[10:]:
            with pytest.raises(StreamReset) as caught:
                await stream.receive_head()
            assert (caught.value.code, caught.value.processed) == (StreamCode.REFUSED, Processed.NO)
        for _ in range(10):
            await accept(pair.dialer)


async def test_a_stream_that_was_reset_before_it_was_accepted_is_dropped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        first = pair.open_stream(b"first")
        await wait_all_tasks_blocked()
        await first.aclose()
        pair.open_stream(b"second")
        await wait_all_tasks_blocked()
        assert (await accept(pair.dialer)).head == b"second"


async def test_bytes_of_a_stream_that_is_never_accepted_are_not_kept(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        await wait_all_tasks_blocked()
        before = pair.dialer.memory.used_bytes
        for head in (b"first", b"second"):
            stream = pair.open_stream(head)
            stream.send_nowait(bytes(1000))
            # In line: the bytes before it still arrive.
            stream.reset(StreamCode.UPSTREAM_RESET, in_line=True)
            await wait_all_tasks_blocked()
            assert pair.dialer.memory.used_bytes > before
            if head == b"first":
                assert accept_nowait(pair.dialer) is None
            else:
                pair.dialer.on_stream(lambda stream: stream.close_nowait())
            assert pair.dialer.memory.used_bytes == before


async def test_a_stream_that_came_and_broke_in_one_message_is_handed_over_whole(
    autojump_clock: trio.testing.MockClock,
) -> None:
    got: list[Stream] = []
    async with open_pair() as pair:
        pair.dialer.on_stream(got.append)
        stream = pair.open_stream(b"head")
        stream.send_nowait(b"bytes", eof=True)
        # The RESET goes behind the end, and takes nothing of it back.
        stream.close_nowait()
        await wait_all_tasks_blocked()
        (there,) = got
        assert there.broken
        assert [there.receive_nowait(), there.receive_nowait()] == [b"bytes", b""]


async def test_a_stream_is_accepted_before_its_reset_is_reported(
    autojump_clock: trio.testing.MockClock,
) -> None:
    seen: list[object] = []

    def take(stream: Stream) -> None:
        seen.append(stream.broken)
        stream.on_reset(lambda: seen.append("reset"))

    async with open_pair() as pair:
        pair.dialer.on_stream(take)
        stream = pair.open_stream(b"head")
        stream.send_nowait(b"bytes", eof=True)
        stream.close_nowait()
        await wait_all_tasks_blocked()
        assert seen == [False, "reset"]


async def test_streams_can_be_handed_over_instead_of_accepted(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        got: list[bytes] = []
        for head in (b"waits", b"is gone", b"waits, too"):
            stream = pair.open_stream(head, eof=True)
            await wait_all_tasks_blocked()
            if head == b"is gone":
                stream.reset(StreamCode.CANCEL)
                await wait_all_tasks_blocked()
        pair.dialer.on_stream(lambda stream: got.append(stream.head))
        assert got == [b"waits", b"waits, too"]
        pair.open_stream(b"comes", eof=True)
        await wait_all_tasks_blocked()
        assert got[2:] == [b"comes"]
        pair.dialer.on_stream(None)
        pair.open_stream(b"is accepted", eof=True)
        assert (await accept(pair.dialer)).head == b"is accepted"
        assert len(got) == 3


async def test_a_handed_over_stream_may_be_answered_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:

        def answer(stream: Stream) -> None:
            stream.send_answer_nowait(b"200", stream.head, eof=True)
            stream.close_nowait()

        pair.dialer.on_stream(answer)
        for size in (0, 10, 100_000):
            asking = pair.open_stream(bytes(size), eof=True)
            assert await asking.receive_head() == b"200"
            assert await read_all(asking) == bytes(size)
            asking.close_nowait()
        assert pair.listener.stream_count == pair.dialer.stream_count == 0


async def test_streams_that_wait_to_be_accepted_end_with_the_session(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        broken = pair.open_stream(b"is not whole")
        broken.send_nowait(bytes(1000))
        whole = pair.open_stream(b"is whole")
        whole.send_nowait(bytes(1000), eof=True)
        await wait_all_tasks_blocked()
        pair.dialer.end(1000, "enough")
        assert pair.dialer.memory.used_bytes == 0
        with pytest.raises(SessionClosed, match="enough"):
            await accept(pair.dialer)
