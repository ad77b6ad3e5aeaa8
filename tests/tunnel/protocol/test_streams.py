from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.protocol.streams import EMPTY, SMALL_BYTES, ByteQueue, HeadBuffer

Action = tuple[str, bytes | int | float | str | None]

# No two bytes in a row are alike, and sizes are spread evenly: by itself hypothesis rarely makes long ones.
pieces = st.builds(
    lambda start, size: bytes((start + index) % 251 for index in range(size)),
    st.integers(0, 250),
    st.just(0) | st.integers(1, 3 * SMALL_BYTES),
)
steps = st.lists(
    st.tuples(st.just("append"), pieces)
    | st.tuples(st.just("take"), st.integers(1, 4 * SMALL_BYTES))
    | st.tuples(st.just("move"), st.floats(0, 1))
    | st.tuples(st.just("clear"), st.none())
    | st.tuples(st.just("take all"), st.just("")),
    max_size=40,
)


@given(st.lists(pieces, max_size=3), pieces, steps)
@settings(max_examples=200)
def test_a_byte_queue_is_a_bytearray(queued: list[bytes], first: bytes, actions: list[Action]) -> None:
    queue = ByteQueue()
    for piece in queued:
        queue.append(piece)
    queue.prepend(first)
    model = bytearray(first + b"".join(queued))
    for _, value in actions:
        match value:
            case bytes():
                queue.append(value)
                model += value
            case int():
                taken = queue.take(value)
                assert len(taken) <= value
                assert taken == model[: len(taken)]
                assert bool(taken) == bool(model)
                del model[: len(taken)]
            case float():
                count = int(value * queue.size)
                parts: list[bytes | memoryview] = []
                held = queue.held_bytes
                assert queue.move(count, parts) == held - queue.held_bytes
                assert b"".join(parts) == model[:count]
                del model[:count]
            case str():
                assert queue.take_all() == model
                model.clear()
            case None:
                assert queue.clear() == len(model)
                model.clear()
        assert queue.size == len(model)
        assert queue.held_bytes == sum(map(len, queue._pieces))


def test_a_large_piece_comes_out_as_it_went_in() -> None:
    queue, piece = ByteQueue(), bytes(60_000)
    for limit in (65_536, 60_000, 120_000):
        queue.append(piece)
        queue.append(piece)
        assert queue.take(limit) is piece
        assert queue.take_all() is piece
    queue.append(piece)
    assert queue.take(1_000_000) is piece


def test_a_piece_that_is_little_of_what_is_taken_comes_with_what_is_behind_it() -> None:
    queue = ByteQueue(bytes(30_000))
    queue.append(bytes(30_000))
    queue.append(bytes(30_000))
    assert len(queue.take(64_000)) == 64_000


def test_bytes_that_come_one_by_one_do_not_become_objects_one_by_one() -> None:
    queue = ByteQueue()
    for _ in range(100 * SMALL_BYTES):
        queue.append(b"x")
    assert len(queue._pieces) <= 101


@given(st.binary(max_size=100), st.lists(st.integers(0, 30), max_size=10), st.integers(0, 100))
def test_a_head_takes_what_is_its_own(text: bytes, cuts: list[int], length: int) -> None:
    length = min(length, len(text))
    head, rest = HeadBuffer(length, bytearray()), b""
    start = 0
    for cut in [*cuts, 1000]:
        rest += head.feed(text[start : start + cut])
        start += cut
    assert head.received == text[:length]
    assert rest == text[length:]
    assert head.missing == 0


def test_nothing_gets_into_the_queue_that_streams_share() -> None:
    with pytest.raises(AssertionError):
        EMPTY.append(b"x")
    with pytest.raises(AssertionError):
        EMPTY.prepend(b"x")
    assert EMPTY.take(10) == b""
    assert EMPTY.clear() == EMPTY.size == 0
