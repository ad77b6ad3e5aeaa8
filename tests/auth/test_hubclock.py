from __future__ import annotations

import math
import random

import pytest

from auth import hubclock
from auth.hubclock import DRIFT, HubClocks, RisingClock, SessionClock, is_time, issue_time
from auth.jws import TokenError
from auth.key_rotation import TrustedKeys, issue_rotation
from auth.keys import KeySet, SigningKey
from auth.tokens import issue_hello

HUB = "https://hub.example"
CLUSTER_ID = "0193-c1"
KEY = SigningKey.generate()
NONCE = "0123456789abcdef" * 2
OTHER_NONCE = NONCE[::-1]
NOW = 1_800_000_000
BOUND_S = 900.0
DAY_S = 86_400


def clocks(keys: TrustedKeys | None = None) -> HubClocks:
    return HubClocks(keys or TrustedKeys(KeySet([KEY.public]), HUB), HUB, CLUSTER_ID, BOUND_S)


def told(
    at: float,
    *,
    key: SigningKey = KEY,
    issuer: str = HUB,
    cluster_id: str = CLUSTER_ID,
    nonce: str = NONCE,
    hub: str = "hub-1",
) -> str:
    return issue_time(key, issuer=issuer, cluster_id=cluster_id, nonce=nonce, hub=hub, now=at)


def test_no_time_is_known_before_the_hub_has_signed_one() -> None:
    clock = SessionClock(clocks(), NONCE)
    assert not clock.known
    with pytest.raises(TokenError, match="upgrade the hub first"):
        clock.at(NOW, 0.0)


@pytest.mark.parametrize("own_ahead_s", [-BOUND_S, 0, BOUND_S])
def test_the_hubs_time_goes_on_by_the_steady_clock(own_ahead_s: float) -> None:
    clock = SessionClock(clocks(), NONCE)
    clock.update(told(NOW), own_s=NOW + own_ahead_s, steady_s=50.0)
    assert clock.known
    # The relay's own clock may be set meanwhile, within the bound.
    assert clock.at(NOW - 800, 60.0) == NOW + 10
    assert clock.at(NOW + 800, 60.0) == NOW + 10


@pytest.mark.parametrize(("own_s", "way"), [(NOW + 901, "behind"), (NOW - 901, "ahead of")])
def test_beyond_the_bound_nothing_counts_and_the_offset_is_named(own_s: float, way: str) -> None:
    offset = f"the hub's clock is 901 s {way} this relay's, more than the 900 s of tunnel.clock_bound_s: set"
    clock = SessionClock(clocks(), NONCE)
    with pytest.raises(TokenError, match=offset):
        clock.update(told(NOW), own_s=own_s, steady_s=0.0)
    assert not clock.known
    clock.update(told(NOW), own_s=NOW, steady_s=0.0)
    with pytest.raises(TokenError, match=offset):
        clock.at(own_s, 0.0)


REFUSED = {
    "another key": told(NOW, key=SigningKey.generate()),
    "another issuer": told(NOW, issuer=HUB + "/"),
    "another cluster": told(NOW, cluster_id="0193-c2"),
    "another session": told(NOW, nonce=OTHER_NONCE),
    "another kind": issue_hello(
        KEY, cluster_id=CLUSTER_ID, hub_url=HUB, instance="relay-0", jti="j", now=float(NOW)
    ),
    "no statement": "x",
    "cut": told(NOW)[:-4],
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_the_hub_has_not_signed_for_this_session_is_no_time(kind: str) -> None:
    clock = SessionClock(clocks(), NONCE)
    with pytest.raises(TokenError):
        clock.update(REFUSED[kind], own_s=NOW, steady_s=0.0)
    assert not clock.known


def test_a_statement_that_was_held_up_changes_nothing() -> None:
    clock = SessionClock(clocks(), NONCE)
    clock.update(told(NOW), own_s=NOW, steady_s=0.0)
    held_up = told(NOW + 10)
    clock.update(held_up, own_s=NOW + 300, steady_s=300.0)
    assert clock.at(NOW + 300, 300.0) == pytest.approx(NOW + 300, abs=0.2)


def test_for_one_hub_the_clock_does_not_go_back_in_any_session_and_another_has_its_own() -> None:
    known = clocks()
    SessionClock(known, NONCE).update(told(NOW + 600), own_s=NOW, steady_s=0.0)
    again = SessionClock(known, OTHER_NONCE)
    again.update(told(NOW + 10, nonce=OTHER_NONCE), own_s=NOW + 10, steady_s=10.0)
    assert again.at(NOW + 10, 10.0) == pytest.approx(NOW + 610, abs=0.1)
    replaced = SessionClock(known, OTHER_NONCE)
    replaced.update(told(NOW + 10, nonce=OTHER_NONCE, hub="hub-2"), own_s=NOW + 10, steady_s=10.0)
    assert replaced.at(NOW + 10, 10.0) == NOW + 10


def test_a_session_has_one_hub() -> None:
    clock = SessionClock(clocks(), NONCE)
    clock.update(told(NOW), own_s=NOW, steady_s=0.0)
    with pytest.raises(TokenError, match="another hub than"):
        clock.update(told(NOW + 60, hub="hub-2"), own_s=NOW, steady_s=0.0)
    assert clock.at(NOW, 0.0) == NOW


def test_the_hubs_that_are_remembered_are_bounded() -> None:
    known = clocks()
    for number in range(3 * hubclock.HUBS_MAX):
        SessionClock(known, NONCE).update(told(NOW, hub=f"hub-{number}"), own_s=NOW, steady_s=0.0)
    assert len(known._clocks) == hubclock.HUBS_MAX


# --- retired keys ---


def rotated(retires_at: float) -> tuple[SigningKey, TrustedKeys]:
    """The successor of KEY, and the trusted keys of a relay that is pinned to KEY and has learned the
    rotation.
    """
    successor = SigningKey.generate()
    keys = TrustedKeys(KeySet([KEY.public]), HUB)
    keys.learn(issue_rotation(KEY, issuer=HUB, successor=successor.public, now=NOW, retires_at=retires_at))
    return successor, keys


def test_a_retired_key_names_no_time_at_which_it_was_good() -> None:
    """The key has expired by the relay's own clock; its statement's time does not matter."""
    _, keys = rotated(NOW + 120)
    clock = SessionClock(clocks(keys), NONCE)
    own_s = NOW + 120 + BOUND_S
    # Within the bound around the relay's own clock.
    with pytest.raises(TokenError, match="does not trust: restart the relay; if that does not help, apply"):
        clock.update(told(own_s - BOUND_S), own_s=own_s, steady_s=0.0)
    assert not clock.known


def test_a_retired_key_is_refused_by_the_time_that_it_states() -> None:
    _, keys = rotated(NOW + 120)
    clock = SessionClock(clocks(keys), NONCE)
    with pytest.raises(TokenError, match="does not trust: restart the relay"):
        clock.update(told(NOW + 120), own_s=NOW, steady_s=0.0)
    assert not clock.known


def test_a_retired_key_is_refused_by_the_time_that_another_one_has_stated() -> None:
    successor, keys = rotated(NOW + 120)
    clock = SessionClock(clocks(keys), NONCE)
    clock.update(told(NOW, key=KEY), own_s=NOW, steady_s=0.0)
    clock.update(told(NOW + 120, key=successor), own_s=NOW, steady_s=120.0)
    with pytest.raises(TokenError):
        clock.update(told(NOW + 60, key=KEY), own_s=NOW, steady_s=121.0)
    clock.update(told(NOW + 121, key=successor), own_s=NOW, steady_s=121.0)


# --- clocks that drift ---


@pytest.mark.parametrize("every_s", [45, 3600, 30 * DAY_S])
@pytest.mark.parametrize("ppm", [-200, -20, 20, 200])
def test_a_session_of_months_stays_in_step_with_a_clock_that_drifts(ppm: int, every_s: int) -> None:
    """The hub's clock is right, the relay's steady clock drifts, and statements come at this interval."""
    chance = random.Random(28)
    clock = RisingClock(DRIFT)
    worst_s = 0.0
    for number in range(min(20_000, 90 * DAY_S // every_s)):
        right_s = NOW + number * every_s
        delay_s = chance.random() * 0.2
        clock.update(math.floor(right_s), (right_s + delay_s - NOW) * (1 + ppm / 1e6))
        worst_s = max(worst_s, abs(clock.at((right_s + delay_s - NOW) * (1 + ppm / 1e6)) - right_s))
    # Of the leeway of 5 s: one second for the rounding of a statement, and its travel time.
    assert worst_s <= 1.3


def test_who_holds_every_statement_back_gains_no_more_than_the_drift() -> None:
    clock = RisingClock(DRIFT)
    clock.update(NOW, 0.0)
    for day in range(1, 11):
        # Each statement is as late as the relay still accepts.
        clock.update(NOW, day * DAY_S)
        assert NOW + day * DAY_S - clock.at(day * DAY_S) == pytest.approx(day * DAY_S * DRIFT)


def test_a_statement_about_the_time_is_told_from_one_about_a_key() -> None:
    successor = SigningKey.generate()
    key = issue_rotation(KEY, issuer=HUB, successor=successor.public, now=NOW, retires_at=NOW)
    assert is_time(told(NOW))
    assert not any(is_time(other) for other in (key, "", "x", "a.b.c"))
