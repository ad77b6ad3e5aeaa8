from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.net.ratelimit import TokenBucket

MOMENTS = st.lists(st.floats(0, 100), min_size=1, max_size=60)


def test_a_burst_is_allowed_at_once_and_then_the_rate() -> None:
    limit = TokenBucket(10.0, 10.0)
    assert [limit.allows(5.0) for _ in range(11)] == [True] * 10 + [False]
    assert limit.allows(5.11)
    assert not limit.allows(5.11)
    assert [limit.allows(60.0) for _ in range(11)] == [True] * 10 + [False]


@given(moments=MOMENTS, per_s=st.floats(0.1, 20), burst=st.integers(1, 20))
def test_no_stretch_of_time_allows_more_than_the_burst_and_the_rate(
    moments: list[float], per_s: float, burst: int
) -> None:
    limit = TokenBucket(per_s, burst)
    allowed = [now for now in sorted(moments) if limit.allows(now)]
    for first, start in enumerate(allowed):
        for last in range(first, len(allowed)):
            assert last - first + 1 <= burst + (allowed[last] - start) * per_s + 1e-6


@given(moments=MOMENTS)
def test_a_clock_that_goes_back_brings_no_tokens_and_takes_none(moments: list[float]) -> None:
    limit = TokenBucket(1.0, 5)
    latest = 0.0
    for now in moments:
        before = limit.left(latest)
        latest = max(latest, now)
        assert limit.left(now) >= before - 1e-9
        assert limit.left(min(moments)) == limit.left(latest)


def test_a_debt_is_paid_back_by_time() -> None:
    limit = TokenBucket(2.0, 4)
    assert limit.left(0.0) == 4
    limit.take(10)
    assert limit.left(0.0) == -6
    assert not limit.allows(3.0)
    assert limit.left(3.5) == 1
    assert limit.allows(3.5)


def test_a_debt_from_before_the_first_look_stands() -> None:
    limit = TokenBucket(2.0, 4, 10.0)
    limit.take(6)
    assert limit.left(10.5) == -1


def test_a_token_that_is_given_back_can_be_taken_again() -> None:
    limit = TokenBucket(1.0, 1)
    assert limit.allows(0.0)
    limit.take(-1)
    assert limit.allows(0.0)
    # Never more than the burst, once time has passed.
    limit.take(-5)
    assert limit.left(1.0) == pytest.approx(1)
