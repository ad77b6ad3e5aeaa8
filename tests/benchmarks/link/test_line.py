from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.link.line import QUEUE_BYTES, Flow, Line

MBIT_100 = 12_500_000.0


def test_a_byte_takes_the_delay_and_its_time_on_the_line() -> None:
    line = Line(bytes_per_s=1000.0, delay_s=0.5)
    assert line.put(100, now=10.0) == pytest.approx(10.6)


def test_what_comes_behind_waits_until_the_line_is_free() -> None:
    line = Line(bytes_per_s=1000.0, delay_s=0.5)
    line.put(100, now=10.0)
    assert line.put(100, now=10.0) == pytest.approx(10.7)
    assert line.put(100, now=20.0) == pytest.approx(20.6)


def test_two_flows_share_the_rate_of_their_line() -> None:
    line = Line(bytes_per_s=1000.0, delay_s=0.0)
    one, other = Flow(line), Flow(line)
    one.put(b"x" * 500, 0.0)
    other.put(b"x" * 500, 0.0)
    assert other.arrives_at() == pytest.approx(1.0)


def test_nothing_is_read_while_the_queue_of_the_line_is_full() -> None:
    flow = Flow(Line(MBIT_100, 0.01))
    flow.put(b"x" * 2 * QUEUE_BYTES, 0.0)
    assert flow.wants_at() == pytest.approx(QUEUE_BYTES / MBIT_100)


def test_a_receiver_that_does_not_read_stops_the_sender_at_a_round_trips_worth() -> None:
    flow = Flow(Line(MBIT_100, 0.01))
    held = 0
    while flow.wants_at() < math.inf:
        flow.put(b"x" * 16384, now := flow.wants_at() + 0.01)
        assert flow.arrives_at() <= now + 1
        held += 16384
    assert held - 16384 < flow.line.held_bytes_max <= held
    while flow.arrives_at() < math.inf:
        flow.take()
    assert flow.wants_at() < math.inf


def test_what_the_sink_did_not_take_comes_again_before_the_rest() -> None:
    flow = Flow(Line(MBIT_100, 0.0))
    flow.put(b"first", 0.0)
    flow.put(b"second", 0.0)
    assert flow.take() == b"first"
    flow.put_back(b"st")
    assert flow.arrives_at() == -math.inf
    assert [flow.take(), flow.take()] == [b"st", b"second"]


def test_the_end_travels_behind_the_bytes_and_takes_as_long() -> None:
    flow = Flow(Line(1000.0, 0.5))
    flow.put(b"x" * 100, 0.0)
    flow.put(b"", 0.0)
    assert flow.wants_at() == math.inf
    assert flow.take() != b""
    assert not flow.over
    assert flow.arrives_at() == pytest.approx(0.6)
    assert flow.take() == b""
    assert flow.over


def test_an_abandoned_flow_delivers_and_wants_nothing_more() -> None:
    flow = Flow(Line(1000.0, 0.5))
    flow.put(b"x", 0.0)
    flow.abandon()
    assert flow.over
    assert flow.arrives_at() == flow.wants_at() == math.inf


@given(st.lists(st.tuples(st.integers(1, 65536), st.floats(0, 0.1)), min_size=1, max_size=50))
def test_no_more_arrives_in_any_time_than_the_rate_allows(puts: list[tuple[int, float]]) -> None:
    line = Line(MBIT_100, 0.075)
    now, total, first = 0.0, 0, math.nan
    for size, pause_s in puts:
        now += pause_s
        arrives_at = line.put(size, now)
        total += size
        first = now if math.isnan(first) else first
        assert arrives_at >= now + 0.075 + size / MBIT_100 - 1e-9
    assert total <= (arrives_at - 0.075 - first) * MBIT_100 * (1 + 1e-9) + 1
