"""The bounded log of a container: its readers, and when the container waits for them."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from sandbox.logs import FOLLOWER_PATIENCE_S, LINE_BYTES_MAX, Chunk, LineSplitter, Log, LogReader

SECOND = 1_000_000_000


class Clock:
    def __init__(self) -> None:
        self.seconds = 0

    def __call__(self) -> int:
        self.seconds += 1
        return self.seconds * SECOND


def log_of(*reads: bytes, bytes_max: int = 10_000) -> Log:
    log = Log(bytes_max=bytes_max, clock_ns=Clock())
    lines = LineSplitter(log)
    for read in reads:
        lines.feed(read)
    lines.finish()
    return log


async def text_of(reader: LogReader) -> bytes:
    with reader:
        return b"".join([data async for data in reader])


async def test_reading_gives_everything_and_ends() -> None:
    log = log_of(b"one\ntwo\nth", b"ree\n", b"four")
    assert await text_of(log.read()) == b"one\ntwo\nthree\nfour"


@pytest.mark.parametrize(
    ("tail", "expected"),
    [(0, b""), (1, b"four"), (2, b"three\nfour"), (3, b"two\nthree\nfour"), (9, b"one\ntwo\nthree\nfour")],
)
async def test_tail_counts_lines_from_the_end(tail: int, expected: bytes) -> None:
    log = log_of(b"one\ntwo\nth", b"ree\n", b"four")
    assert await text_of(log.read(tail=tail)) == expected


@given(st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\r", b"\n")), max_size=8), st.integers(0, 9))
def test_tail_agrees_with_cutting_the_whole_text(reads: list[bytes], tail: int) -> None:
    log = log_of(*reads)
    lines = b"".join(reads).split(b"\n")
    ends = [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    expected = b"".join(ends[len(ends) - min(tail, len(ends)) :])
    assert trio.run(text_of, log.read(tail=tail)) == expected


async def test_timestamps_stand_before_each_line() -> None:
    log = log_of(b"one\ntwo\n", b"10 %\r20 %\n")
    assert await text_of(log.read(timestamps=True)) == (
        b"1970-01-01T00:00:01.000000000Z one\n"
        b"1970-01-01T00:00:01.000000000Z two\n"
        b"1970-01-01T00:00:02.000000000Z 10 %\r20 %\n"
    )


async def test_an_overlong_line_comes_in_pieces_with_one_timestamp() -> None:
    start = b"x" * (LINE_BYTES_MAX + 5)
    log = log_of(start, b"end\nnext\n", bytes_max=100_000)
    assert await text_of(log.read(timestamps=True)) == (
        b"1970-01-01T00:00:01.000000000Z " + start + b"end\n1970-01-01T00:00:02.000000000Z next\n"
    )
    assert await text_of(log.read(tail=2)) == start + b"end\nnext\n"


def test_a_timestamp_keeps_its_nanoseconds() -> None:
    assert Chunk(7, b"x\n").with_timestamps() == b"1970-01-01T00:00:00.000000007Z x\n"


async def test_since_leaves_out_what_is_older() -> None:
    log = log_of(b"one\n", b"two\n", b"three\n")
    assert await text_of(log.read(since_ns=2 * SECOND)) == b"two\nthree\n"


async def test_limit_bytes_cuts_and_ends() -> None:
    log = log_of(b"one\n", b"two\n")
    assert await text_of(log.read(limit_bytes=6)) == b"one\ntw"
    assert await text_of(log.read(limit_bytes=0)) == b""
    assert await text_of(log.read(limit_bytes=2, follow=True)) == b"on"


async def test_the_oldest_chunks_make_room() -> None:
    log = Log(bytes_max=8)
    for text in (b"aaaa", b"bbbb", b"cccc"):
        log.append(text)
    assert await text_of(log.read()) == b"bbbbcccc"


async def test_following_gives_what_comes_and_ends_with_the_run() -> None:
    log = Log()
    log.append(b"before\n")
    seen: list[bytes] = []

    async def follow() -> None:
        with log.read(follow=True) as reader:
            seen.extend([data async for data in reader])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await wait_all_tasks_blocked()
        assert seen == []
        log.append(b"after\n")
        await wait_all_tasks_blocked()
        log.append(b"end\n")
        log.close()
    assert seen == [b"before\n", b"after\n", b"end\n"]


async def test_a_burst_waits_for_a_follower_that_reads_and_is_complete() -> None:
    log = Log(bytes_max=100)
    seen: list[bytes] = []

    async def follow() -> None:
        with log.read(follow=True) as reader:
            async for data in reader:
                seen.append(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await wait_all_tasks_blocked()
        for number in range(1000):
            log.append(b"line %04d\n" % number)
            await log.writable()
        log.close()
    assert b"".join(seen) == b"".join(b"line %04d\n" % number for number in range(1000))


async def test_a_follower_that_does_not_read_loses_lines_and_holds_nobody_up(
    autojump_clock: MockClock,
) -> None:
    log = Log(bytes_max=100)
    with log.read(follow=True) as reader:
        start = trio.current_time()
        for number in range(1000):
            log.append(b"line %04d\n" % number)
            await log.writable()
        assert trio.current_time() - start == FOLLOWER_PATIENCE_S
        log.close()
        text = b"".join([data async for data in reader])
    assert text.endswith(b"line 0999\n")
    assert len(text) <= 200


async def test_a_follower_that_leaves_releases_the_container() -> None:
    log = Log(bytes_max=10)
    async with trio.open_nursery() as nursery:
        with log.read(follow=True):
            log.append(b"x" * 20)
            nursery.start_soon(log.writable)
            await wait_all_tasks_blocked()
