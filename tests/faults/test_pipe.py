from __future__ import annotations

import math

from tests.faults.pipe import End, Pipe, Road


def drained(pipe: Pipe, now: float) -> bytes:
    """What the sink gets by now, if it takes all."""
    got = b""
    while pipe.arrives_at() <= now and not pipe.cut_is_due:
        piece = pipe.front()
        assert isinstance(piece, bytes)
        pipe.advance(len(piece))
        got += piece
    return got


def test_bytes_arrive_in_order_after_the_delay() -> None:
    pipe = Pipe(Road(delay_s=0.5))
    pipe.put(b"one", 10.0)
    pipe.put(b"two", 10.2)
    assert drained(pipe, 10.49) == b""
    assert drained(pipe, 10.5) == b"one"
    assert drained(pipe, 10.7) == b"two"


def test_a_rate_is_kept_by_all_pipes_of_a_road_together() -> None:
    road = Road(bytes_per_s=1000)
    first, second = Pipe(road), Pipe(road)
    first.put(b"x" * 500, 0.0)
    second.put(b"y" * 500, 0.0)
    assert first.arrives_at() == 0.5
    assert second.arrives_at() == 1.0


def test_a_slow_road_is_read_no_faster_than_it_carries() -> None:
    road = Road(bytes_per_s=1_000_000)
    pipe = Pipe(road)
    now = sent = 0.0
    while now < 1.0:
        if pipe.wants_at() <= now:
            pipe.put(b"x" * road.read_bytes, now)
            sent += road.read_bytes
        drained(pipe, now)
        now += 0.001
    assert 0.95e6 < sent < 1.02e6


def test_what_waits_for_the_road_stays_small() -> None:
    road = Road(bytes_per_s=1_250_000)
    pipe = Pipe(road)
    read = 0
    while pipe.wants_at() <= 0.0:
        pipe.put(b"x" * road.read_bytes, 0.0)
        read += road.read_bytes
    # 10 ms at 10 Mbit/s.
    assert read <= 12_500


def test_nothing_moves_while_stalled_and_all_of_it_afterwards() -> None:
    pipe = Pipe(Road())
    pipe.put(b"before", 0.0)
    pipe.stalled = True
    assert pipe.arrives_at() == pipe.wants_at() == math.inf
    pipe.stalled = False
    assert drained(pipe, 0.0) == b"before"


def test_a_cut_is_exact_to_the_byte() -> None:
    pipe = Pipe(Road())
    pipe.put(b"0123456789", 0.0)
    pipe.cut_at = 7
    assert drained(pipe, 0.0) == b"0123456"
    assert pipe.cut_is_due


def test_pieces_are_no_larger_than_asked_for() -> None:
    pipe = Pipe(Road(piece_bytes=3))
    pipe.put(b"0123456", 0.0)
    pieces = []
    while pipe.arrives_at() <= 0.0:
        pieces.append(pipe.front())
        pipe.advance(len(pieces[-1]))  # type: ignore[arg-type]
    assert pieces == [b"012", b"345", b"6"]


def test_what_the_sink_does_not_take_stays_first() -> None:
    pipe = Pipe(Road())
    pipe.put(b"abcdef", 0.0)
    pipe.advance(2)
    assert drained(pipe, 0.0) == b"cdef"


def test_the_end_comes_behind_the_bytes_and_as_late() -> None:
    pipe = Pipe(Road(delay_s=1.0))
    pipe.put(b"last", 0.0)
    pipe.end(End.RST, 0.0)
    assert drained_until_end(pipe, 0.5) == (b"", None)
    assert drained_until_end(pipe, 1.0) == (b"last", End.RST)
    assert pipe.wants_at() == math.inf


def drained_until_end(pipe: Pipe, now: float) -> tuple[bytes, End | None]:
    got = b""
    while pipe.arrives_at() <= now:
        what = pipe.front()
        if isinstance(what, End):
            pipe.finish()
            return got, what
        pipe.advance(len(what))
        got += what
    return got, None
