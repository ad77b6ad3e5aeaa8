from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.backoff import (
    AT_ONCE_MAX,
    AT_ONCE_WINDOW_S,
    RETRY_AFTER_MAX_S,
    RETRY_AFTER_SPREAD_S,
    Backoff,
)

# A live session in seconds, or None for a dial that failed.
HISTORIES = st.lists(st.none() | st.floats(0, 100), max_size=30)
CHANCES = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(
    ("chance", "waits"), [(0.0, [5, 10, 20, 30, 30, 30]), (1.0, [10, 20, 40, 60, 60, 60])]
)
def test_the_waits_are_drawn_between_half_the_delay_and_all_of_it(chance: float, waits: list[float]) -> None:
    backoff = Backoff(lambda: chance)
    assert [backoff.next_wait_s() for _ in waits] == waits


@given(history=HISTORIES, chances=st.lists(CHANCES, min_size=1))
def test_each_wait_is_between_5_and_60_s(history: list[float | None], chances: list[float]) -> None:
    draws = iter(chances * 100)
    backoff = Backoff(lambda: next(draws))
    for lived_s in history:
        if lived_s is not None:
            backoff.note_session(lived_s)
        assert 5 <= backoff.next_wait_s() <= 60


@given(history=HISTORIES, chance=CHANCES)
def test_only_a_session_of_10_s_begins_anew(history: list[float | None], chance: float) -> None:
    backoff = Backoff(lambda: chance)
    failures = 0
    for lived_s in history:
        if lived_s is not None:
            backoff.note_session(lived_s)
            if lived_s >= 10:
                failures = 0
        delay_s = min(10 * 2**failures, 60)
        assert backoff.next_wait_s() == pytest.approx(delay_s * (1 + chance) / 2)
        failures += 1


@given(asked_s=st.floats(0, 1e9), chance=CHANCES)
def test_retry_after_is_obeyed_up_to_its_bound_and_spread(asked_s: float, chance: float) -> None:
    wait_s = Backoff(lambda: chance).next_wait_s(asked_s)
    assert wait_s >= min(asked_s, RETRY_AFTER_MAX_S)
    assert wait_s >= 5
    assert wait_s <= max(10, min(asked_s, RETRY_AFTER_MAX_S) + RETRY_AFTER_SPREAD_S)


def test_a_hub_that_says_when_it_has_room_is_no_hub_that_fails() -> None:
    backoff = Backoff(lambda: 0.0)
    assert [backoff.next_wait_s(3.0) for _ in range(4)] == [5, 5, 5, 5]
    assert [backoff.next_wait_s(30.0) for _ in range(2)] == [30, 30]
    assert [backoff.next_wait_s() for _ in range(3)] == [5, 10, 20]


def test_a_goodbye_is_followed_at_once_but_not_for_ever() -> None:
    backoff = Backoff(lambda: 0.0)
    assert [backoff.wait_after_goaway_s(now_s) for now_s in range(6)] == [0] * 6
    # That is no hub that is restarted any more.
    assert [backoff.wait_after_goaway_s(now_s) for now_s in (6, 30, 59.9)] == [5, 10, 20]
    # Those of a minute ago do not count.
    assert [backoff.wait_after_goaway_s(now_s) for now_s in (60, 61)] == [0, 0]


def test_a_goodbye_that_asks_for_patience_gets_it() -> None:
    backoff = Backoff(lambda: 0.0)
    assert [backoff.wait_after_goaway_s(now_s, 2.5) for now_s in range(6)] == [2.5] * 6
    assert backoff.wait_after_goaway_s(6, 2.5) == 5
    assert backoff.wait_after_goaway_s(100, 1e9) == RETRY_AFTER_MAX_S


@given(
    pauses_s=st.lists(st.floats(0, 70), max_size=60),
    lived_s=st.floats(0, 100),
    chance=CHANCES,
)
def test_however_a_hub_says_goodbye_a_minute_has_six_dials_at_once(
    pauses_s: list[float], lived_s: float, chance: float
) -> None:
    """The rest back off as from a link that breaks; and nobody backs off before the sixth."""
    backoff, now_s = Backoff(lambda: chance), 0.0
    at_once: list[float] = []
    for pause_s in pauses_s:
        now_s += pause_s
        backoff.note_session(lived_s)
        lately = [at for at in at_once if now_s - at < AT_ONCE_WINDOW_S]
        assert len(lately) <= AT_ONCE_MAX
        wait_s = backoff.wait_after_goaway_s(now_s)
        if len(lately) < AT_ONCE_MAX:
            assert wait_s == 0
            at_once.append(now_s)
        else:
            assert 5 <= wait_s <= 60
            now_s += wait_s
