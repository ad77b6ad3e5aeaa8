from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.dialing.backoff import (
    BUSY_MAX_S,
    REDIAL_REFILL_S,
    REDIAL_S,
    REDIAL_SPREAD,
    REDIALS_MAX,
    RETRY_AFTER_MAX_S,
    RETRY_AFTER_SPREAD_S,
    Backoff,
)

CHANCES = st.floats(0, 1, exclude_max=True)
# What happens before a wait, and what a session lived for. `down` has no answer, `refused` has one, and
# `busy` that of one of several hubs.
STEPS = st.tuples(
    st.sampled_from(["goaway", "lost", "down", "down", "down", "busy", "draining", "refused"]),
    st.floats(0, 100),
)


def wait_s(backoff: Backoff, what: str, now_s: float) -> float:
    match what:
        case "goaway":
            return backoff.wait_after_goaway_s(now_s)
        case "lost":
            return backoff.wait_after_tunnel_s(now_s)
        case "down":
            return backoff.wait_after_dial_s(now_s)
        case "busy":
            return backoff.wait_after_dial_s(now_s, 1.0)
        case "draining":
            return backoff.wait_while_draining_s()
        case _:
            return backoff.wait_after_refusal_s()


@pytest.mark.parametrize(
    ("chance", "waits"), [(0.0, [5, 10, 20, 30, 30, 30]), (1.0, [10, 20, 40, 60, 60, 60])]
)
def test_the_waits_are_drawn_between_half_the_delay_and_all_of_it(chance: float, waits: list[float]) -> None:
    """No tunnel was up yet, so no dial is a redial."""
    backoff = Backoff(lambda: chance)
    assert [backoff.wait_after_dial_s(now_s) for now_s in range(len(waits))] == waits


@pytest.mark.parametrize(("chance", "first_s", "further_s"), [(0.0, 0, 0.75), (0.5, 0.5, 1), (1.0, 1, 1.25)])
def test_after_a_tunnel_the_dials_follow_each_second_until_the_budget_is_empty(
    chance: float, first_s: float, further_s: float
) -> None:
    backoff, now_s = Backoff(lambda: chance), 100.0
    assert backoff.wait_after_tunnel_s(now_s) == first_s
    assert [backoff.wait_after_dial_s(now_s) for _ in range(19)] == [further_s] * 19
    slow_s = 5 * (1 + chance)
    assert backoff.wait_after_dial_s(now_s) == slow_s
    # What the budget gains meanwhile is for the next tunnel.
    assert backoff.wait_after_dial_s(now_s + 1000) == 2 * slow_s
    assert backoff.wait_after_tunnel_s(now_s + 1000) == first_s
    assert backoff.wait_after_dial_s(now_s + 1000) == further_s


@pytest.mark.parametrize("lived_s", [0.0, 9.0, 1000.0])
def test_the_budget_gains_a_dial_in_10_s_whatever_the_age_of_the_sessions(lived_s: float) -> None:
    backoff = Backoff(lambda: 0.5)
    for _ in range(REDIALS_MAX):
        backoff.note_session(lived_s)
        assert backoff.wait_after_tunnel_s(0.0) <= REDIAL_S
    for now_s in (10.0, 20.0, 30.0):
        backoff.note_session(lived_s)
        assert backoff.wait_after_tunnel_s(now_s) <= REDIAL_S
        backoff.note_session(lived_s)
        assert backoff.wait_after_tunnel_s(now_s) >= 5


@given(steps=st.lists(STEPS, max_size=200), chances=st.lists(CHANCES, min_size=1))
def test_within_any_time_no_more_dials_follow_at_once_than_the_budget_has(
    steps: list[tuple[str, float]], chances: list[float]
) -> None:
    draws = iter(chances * 500)
    backoff, now_s, quick_at = Backoff(lambda: next(draws)), 0.0, []
    for what, lived_s in steps:
        if what in ("goaway", "lost"):
            now_s += lived_s
            backoff.note_session(lived_s)
        waits_s = wait_s(backoff, what, now_s)
        assert waits_s <= 60
        if waits_s < 5:
            assert waits_s <= REDIAL_S * (1 + 2 * REDIAL_SPREAD)
            quick_at.append(now_s)
        now_s += waits_s
    for first, began_s in enumerate(quick_at):
        for count, at_s in enumerate(quick_at[first:], 1):
            assert count <= REDIALS_MAX + (at_s - began_s) / REDIAL_REFILL_S + 1e-6


@given(before=st.lists(STEPS, max_size=30), after=st.lists(st.sampled_from(["down", "draining", "refused"])))
def test_after_a_refusal_no_wait_is_below_5_s_until_a_tunnel_was_up_again(
    before: list[tuple[str, float]], after: list[str]
) -> None:
    backoff, now_s = Backoff(lambda: 0.5), 0.0
    for what, pause_s in before:
        now_s += pause_s + wait_s(backoff, what, now_s)
    assert backoff.wait_after_refusal_s() >= 5
    for what in after:
        waits_s = wait_s(backoff, what, now_s)
        assert waits_s >= 5
        now_s += waits_s
    assert wait_s(backoff, "lost", now_s + REDIAL_REFILL_S) <= REDIAL_S


@pytest.mark.parametrize(("chance", "spread_s"), [(0.0, 0), (1.0, 0.5)])
def test_one_of_several_hubs_that_is_busy_is_obeyed_and_another_one_dialled_soon(
    chance: float, spread_s: float
) -> None:
    backoff = Backoff(lambda: chance)
    # No tunnel was up.
    assert backoff.wait_after_dial_s(0.0, 1.0) == 5 * (1 + chance)
    backoff.wait_after_tunnel_s(0.0)
    for asked_s in (1.0, BUSY_MAX_S):
        assert backoff.wait_after_dial_s(0.0, asked_s) == asked_s + spread_s
    # A longer wait is not one between redials, and takes none from the budget.
    assert backoff.wait_after_dial_s(0.0, 60.0) == 60 + RETRY_AFTER_SPREAD_S * chance
    assert [backoff.wait_after_dial_s(0.0, 1.0) for _ in range(17)] == [1 + spread_s] * 17
    assert backoff.wait_after_dial_s(0.0, 1.0) >= 5


def test_while_a_hub_drains_no_redial_is_spent() -> None:
    backoff = Backoff(lambda: 0.0)
    assert backoff.wait_after_goaway_s(0.0) == 0
    assert [backoff.wait_while_draining_s() for _ in range(3)] == [5, 10, 20]
    assert backoff.wait_after_tunnel_s(0.0) == 0
    assert [backoff.wait_after_dial_s(0.0) for _ in range(18)] == [0.75] * 18
    assert backoff.wait_after_dial_s(0.0) >= 5


@given(history=st.lists(st.none() | st.floats(0, 100), max_size=30), chance=CHANCES)
def test_only_a_session_of_10_s_restarts_the_backoff(history: list[float | None], chance: float) -> None:
    backoff = Backoff(lambda: chance)
    failures = 0
    for lived_s in history:
        if lived_s is not None:
            backoff.note_session(lived_s)
            if lived_s >= 10:
                failures = 0
        delay_s = min(10 * 2**failures, 60)
        assert backoff.wait_after_refusal_s() == pytest.approx(delay_s * (1 + chance) / 2)
        failures += 1


@given(asked_s=st.floats(0, 1e9), chance=CHANCES)
def test_retry_after_is_obeyed_up_to_its_bound_and_spread(asked_s: float, chance: float) -> None:
    waits_s = Backoff(lambda: chance).wait_after_refusal_s(asked_s)
    assert waits_s >= min(asked_s, RETRY_AFTER_MAX_S)
    assert waits_s >= 5
    assert waits_s <= max(10, min(asked_s, RETRY_AFTER_MAX_S) + RETRY_AFTER_SPREAD_S)


def test_a_hub_that_says_when_it_has_room_is_no_hub_that_fails() -> None:
    backoff = Backoff(lambda: 0.0)
    assert [backoff.wait_after_refusal_s(3.0) for _ in range(4)] == [5, 5, 5, 5]
    assert [backoff.wait_after_refusal_s(30.0) for _ in range(2)] == [30, 30]
    assert [backoff.wait_after_refusal_s() for _ in range(3)] == [5, 10, 20]


def test_a_goodbye_is_followed_at_once_but_not_for_ever() -> None:
    backoff = Backoff(lambda: 0.0)
    assert [backoff.wait_after_goaway_s(0.0) for _ in range(20)] == [0] * 20
    assert [backoff.wait_after_goaway_s(now_s) for now_s in (1, 9)] == [5, 10]
    assert [backoff.wait_after_goaway_s(now_s) for now_s in (10, 19)] == [0, 20]


def test_a_goodbye_that_asks_for_patience_gets_it() -> None:
    backoff = Backoff(lambda: 0.0)
    assert [backoff.wait_after_goaway_s(0.0, 2.5) for _ in range(20)] == [2.5] * 20
    assert backoff.wait_after_goaway_s(0.0, 2.5) == 5
    assert backoff.wait_after_goaway_s(100, 1e9) == RETRY_AFTER_MAX_S
