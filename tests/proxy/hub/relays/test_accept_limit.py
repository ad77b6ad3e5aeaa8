from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.hub.relays.accept_limit import (
    ACCEPTS_PER_S,
    BURST,
    CLUSTER_ACCEPTS_PER_S,
    CLUSTER_ARRIVALS_MAX,
    CLUSTER_BURST,
    RESERVED,
    RETRY_AFTER_MAX_S,
    AcceptLimit,
    Arrival,
    TooManyDialsError,
)


def test_a_small_fleet_never_meets_it() -> None:
    limit = AcceptLimit()
    assert all(limit.admit(100.0, resumes=False) == 0 for _ in range(BURST - RESERVED))


def test_those_that_resume_have_a_share_of_their_own() -> None:
    limit = AcceptLimit()
    while limit.admit(100.0, resumes=False) == 0:
        pass
    assert all(limit.admit(100.0, resumes=True) == 0 for _ in range(RESERVED))
    assert limit.admit(100.0, resumes=True) >= 1


def test_unauthenticated_dials_use_no_tokens() -> None:
    limit = AcceptLimit()
    for _ in range(10 * BURST):
        assert limit.admit(100.0, resumes=False) == 0
        limit.refund()


def test_the_retries_of_a_large_fleet_are_spread_and_end_in_time() -> None:
    limit = AcceptLimit()
    # Each relay dials at once, and again at its retry time; those of one second arrive together.
    due = dict.fromkeys(range(5000), 0.0)
    accepted_at: list[float] = []
    now = 0.0
    while due:
        now = min(due.values())
        asking = [relay for relay, at in due.items() if at == now]
        for relay in asking:
            wait_s = limit.admit(now, resumes=False)
            if wait_s:
                due[relay] = now + wait_s
            else:
                del due[relay]
                accepted_at.append(now)
    assert len(accepted_at) == 5000
    assert accepted_at[-1] <= 120
    for second in range(int(accepted_at[-1])):
        assert sum(second <= at < second + 1 for at in accepted_at) <= ACCEPTS_PER_S + BURST


@given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=600))
def test_it_never_lets_in_more_than_its_rate(steps: list[tuple[float, bool]]) -> None:
    limit = AcceptLimit()
    now, accepted = 1000.0, 0
    for pause_s, resumes in steps:
        now += pause_s / 100
        wait_s = limit.admit(now, resumes=resumes)
        assert 0 <= wait_s <= RETRY_AFTER_MAX_S
        accepted += not wait_s
    assert accepted <= BURST + (now - 1000.0) * ACCEPTS_PER_S + 1


def test_a_cluster_that_dials_without_end_is_slowed_down_alone() -> None:
    limit = AcceptLimit()

    def dial(cluster_id: str, name: str, now: float) -> None:
        arrival = limit.arrive()
        try:
            limit.admit_cluster(arrival, cluster_id, name, now)
        finally:
            arrival.settle()

    for _ in range(CLUSTER_BURST):
        dial("c1", "prod", 100.0)
    with pytest.raises(TooManyDialsError, match=r"cluster prod dialled 64 times .* 8 times a second"):
        dial("c1", "prod", 100.0)
    dial("c2", "staging", 100.0)
    # A second later it is as many as eight relays need whose connections are cut all the time.
    for _ in range(CLUSTER_ACCEPTS_PER_S):
        dial("c1", "prod", 101.0)
    with pytest.raises(TooManyDialsError):
        dial("c1", "prod", 101.0)


def test_a_cluster_whose_relays_never_greet_takes_a_small_share() -> None:
    limit = AcceptLimit()
    arrivals = [limit.arrive() for _ in range(CLUSTER_ARRIVALS_MAX + 1)]
    for arrival in arrivals[:-1]:
        limit.admit_cluster(arrival, "c1", "prod", 100.0)
    with pytest.raises(TooManyDialsError, match=r"16 relays of cluster prod have dialled"):
        limit.admit_cluster(arrivals[-1], "c1", "prod", 100.0)
    limit.admit_cluster(arrivals[-1], "c2", "staging", 100.0)
    arrivals[0].settle()
    limit.admit_cluster(limit.arrive(), "c1", "prod", 100.0)


@given(st.lists(st.tuples(st.floats(0, 200), st.booleans(), st.integers(0, 3)), max_size=300))
def test_a_slow_hub_has_no_more_dials_at_once_than_a_burst(steps: list[tuple[float, bool, int]]) -> None:
    limit = AcceptLimit()
    now, arrivals = 1000.0, [limit.arrive() for _ in range(BURST - RESERVED - 5)]
    for pause_s, resumes, settled in steps:
        now += pause_s
        wait_s = limit.admit(now, resumes=resumes)
        if len(arrivals) >= (BURST if resumes else BURST - RESERVED):
            assert wait_s >= 1
        if not wait_s:
            arrivals.append(limit.arrive())
        for _ in range(min(settled, len(arrivals))):
            ended = arrivals.pop()
            ended.settle()
            ended.settle()
        assert limit.arrivals == len(arrivals)


def test_a_fleet_comes_back_to_a_hub_that_serves_fewer_than_it_may_accept() -> None:
    """Every accepted relay has its session within the 10 s of its dial, so none dials in vain."""
    limit, served_per_s = AcceptLimit(), 40
    due = dict.fromkeys(range(2000), 0)
    queue: list[tuple[int, Arrival]] = []
    for second in range(120):
        for relay in [relay for relay, at in due.items() if at <= second]:
            wait_s = limit.admit(float(second), resumes=False)
            if wait_s:
                due[relay] = second + wait_s
            else:
                del due[relay]
                queue.append((second, limit.arrive()))
        for began, arrival in queue[:served_per_s]:
            assert second - began < 10
            arrival.settle()
        del queue[:served_per_s]
    assert not due
    assert not queue
