from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.upstream.events import EVENT_BYTES, Pace, chunk, event, take_times


def test_an_event_is_a_line_of_json_of_its_size() -> None:
    made = event(123456789)
    assert len(made) == EVENT_BYTES
    assert made.endswith(b"}\n")
    assert made.count(b"\n") == 1
    assert int(json.loads(made)["object"]["metadata"]["annotations"]["sentAt"]) == 123456789


@given(st.lists(st.integers(0, 10**19), max_size=20), st.data())
def test_the_times_come_out_however_the_bytes_are_cut(times: list[int], data: st.DataObject) -> None:
    stream = b"".join(chunk(event(at)) for at in times)
    found: list[int] = []
    partial = b""
    position = 0
    while position < len(stream):
        size = data.draw(st.integers(1, 2000))
        came, partial = take_times(partial + stream[position : position + size])
        found += came
        position += size
    assert found == times


def test_what_is_kept_of_a_stream_is_less_than_an_event() -> None:
    _, partial = take_times(b"".join(chunk(event(at)) for at in range(10)) + event(10)[:500])
    assert len(partial) < EVENT_BYTES


def test_a_pace_makes_due_what_its_rate_says_and_no_event_twice() -> None:
    pace = Pace(per_s=1000, began_s=5.0)
    assert [pace.due(5.0), pace.due(5.0101), pace.due(5.0101), pace.due(6.0001)] == [0, 10, 0, 990]
    assert pace.next_s() == pytest.approx(6.001)
