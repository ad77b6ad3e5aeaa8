from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.hubtime import hub_time, seconds_of
from auth.jws import TokenError
from auth.keys import SigningKey
from auth.tokens import HelloClaims, issue_hello
from proxy.hub.relays.dial_auth import WrongClockError, check_hello
from proxy.hub.store.directory import open_directory
from proxy.hub.store.entities import Snapshot
from tunnel.dialing.failure import WARNING_CHARACTERS_MAX

NOW = 1_800_000_000
URL = "https://hub.example"
PEPPER = b"p" * 32
KEY = SigningKey.generate()


@pytest.fixture
async def snapshot(tmp_path: Path) -> AsyncIterator[Snapshot]:
    """Of a hub with one cluster, `prod`, whose relays have KEY."""
    async with open_directory(tmp_path / "hub.db", org="acme", clock=lambda: NOW) as directory:
        await directory.change(lambda store: store.add_cluster("prod", teams=[], relay_key=KEY.public))
        yield directory.current


def hello(
    snapshot: Snapshot, at: float, hub_time: str = "", *, key: SigningKey = KEY, hub_url: str = URL
) -> str:
    [cluster_id] = snapshot.clusters_by_id
    return issue_hello(
        key, cluster_id=cluster_id, hub_url=hub_url, instance="r", jti="j", now=at, hub_time=hub_time
    )


def check(snapshot: Snapshot, token: str, now: float = NOW) -> HelloClaims:
    return check_hello(token, snapshot, hub_url=URL, pepper=PEPPER, now=now)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        # As after a restore from before the key was made.
        (
            {"key": SigningKey.generate()},
            "the hub does not know this relay's key: replaced, removed, or newer than a restored backup; "
            "apply what `hawse admin cluster key NAME` prints, or `cluster add NAME` if it is gone",
        ),
        (
            {"hub_url": "https://else.example"},
            f"this hub calls itself {URL}: set the relay's hub.url to that",
        ),
    ],
)
async def test_a_refused_relay_gets_the_next_step_and_its_log_shows_all_of_it(
    snapshot: Snapshot, fields: Mapping[str, Any], told: str
) -> None:
    with pytest.raises(TokenError) as refused:
        check(snapshot, hello(snapshot, NOW, **fields))
    assert str(refused.value) == told
    assert len(told) <= WARNING_CHARACTERS_MAX
    # Only the holder of a known key learns the hub's URL.
    with pytest.raises(TokenError) as unknown:
        check(snapshot, hello(snapshot, NOW, **{**fields, "key": SigningKey.generate()}))
    assert URL not in str(unknown.value)


@pytest.mark.parametrize("ahead_s", [-5, 0, 5])
async def test_whose_clock_is_right_needs_no_time_of_the_hub(snapshot: Snapshot, ahead_s: int) -> None:
    claims = check(snapshot, hello(snapshot, NOW + ahead_s))
    assert (claims.issued_at, claims.hub_time) == (NOW + ahead_s, "")


@pytest.mark.parametrize("ahead_s", [-(10**9), -90, 6, 90, 10**9])
async def test_a_relay_with_a_wrong_clock_gets_the_hubs_time_and_signs_by_it(
    snapshot: Snapshot, ahead_s: int
) -> None:
    with pytest.raises(WrongClockError, match="clocks differ") as refused:
        check(snapshot, hello(snapshot, NOW + ahead_s))
    told = refused.value.hub_time
    assert seconds_of(told) == NOW
    side = "ahead of" if ahead_s > 0 else "behind"
    seems = f"the clock of a relay of cluster prod seems to be {abs(ahead_s)} s {side} this hub's: "
    assert refused.value.advice.startswith(seems)
    assert check(snapshot, hello(snapshot, NOW, told), NOW + 10).hub_time == told


async def test_only_a_key_holder_gets_the_hubs_time(snapshot: Snapshot) -> None:
    for token in (
        hello(snapshot, NOW - 90, key=SigningKey.generate()),
        hello(snapshot, NOW - 90, hub_url="https://else.example"),
        "x.y.z",
    ):
        with pytest.raises(TokenError) as refused:
            check(snapshot, token)
        assert not isinstance(refused.value, WrongClockError)


async def test_a_hello_is_valid_by_a_time_that_this_hub_issued_for_that_second_and_lately(
    snapshot: Snapshot,
) -> None:
    """Who stands in the hub's place can have a relay sign any time and any text, and keep that for later."""

    @given(
        told_at=st.integers(NOW, NOW + 10**6),
        later_s=st.integers(-80, 80) | st.integers(-(10**6), 10**6),
        moved_s=st.just(0) | st.integers(-10, 10) | st.integers(-(10**6), 10**6),
        of_this_hub=st.booleans(),
    )
    def holds(told_at: int, later_s: int, moved_s: int, of_this_hub: bool) -> None:
        text = hub_time(PEPPER if of_this_hub else b"q" * 32, told_at)
        token = hello(snapshot, told_at + moved_s, text)
        if of_this_hub and not moved_s and -5 <= later_s < 65:
            assert check(snapshot, token, told_at + later_s).issued_at == told_at
        else:
            with pytest.raises(TokenError):
                check(snapshot, token, told_at + later_s)

    holds()


async def test_a_time_that_another_hub_issued_is_refused(snapshot: Snapshot) -> None:
    later = NOW + 3600
    mac = hub_time(PEPPER, NOW).partition(".")[2]
    for text in (hub_time(PEPPER, NOW), f"{later}.{mac}", hub_time(b"q" * 32, later), str(later), "x"):
        with pytest.raises(TokenError, match="which has not told it") as refused:
            check(snapshot, hello(snapshot, later, text), later)
        # Or an attacker could collect them and exchange them later.
        assert not isinstance(refused.value, WrongClockError)
    assert check(snapshot, hello(snapshot, later, hub_time(PEPPER, later)), later).issued_at == later
