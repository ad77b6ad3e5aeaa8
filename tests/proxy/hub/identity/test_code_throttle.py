from __future__ import annotations

import pytest

from proxy.hub.identity.code_throttle import FAILURES_MAX, FORGIVEN_AFTER_S, NETWORKS_MAX, CodeThrottle

NOW = 1_800_000_000.0


def fail(throttle: CodeThrottle, address: str, times: int = FAILURES_MAX) -> None:
    for _ in range(times):
        throttle.failed(address, NOW)


def test_an_address_that_fails_too_often_is_not_listened_to_for_a_while() -> None:
    throttle = CodeThrottle()
    fail(throttle, "192.0.2.1", FAILURES_MAX - 1)
    assert not throttle.refuses("192.0.2.1", NOW)
    throttle.failed("192.0.2.1", NOW)
    assert throttle.refuses("192.0.2.1", NOW)
    assert not throttle.refuses("192.0.2.2", NOW)
    assert throttle.refuses("192.0.2.1", NOW + FORGIVEN_AFTER_S / FAILURES_MAX / 2)
    # One is forgiven, so one more is heard.
    assert not throttle.refuses("192.0.2.1", NOW + FORGIVEN_AFTER_S / FAILURES_MAX + 0.1)
    assert not throttle.refuses("192.0.2.1", NOW + FORGIVEN_AFTER_S)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("a closed connection", "192.0.2.1", False),
    ],
)
def test_what_one_subscriber_has_is_one_place(one: str, other: str, same: bool) -> None:
    throttle = CodeThrottle()
    fail(throttle, one)
    assert throttle.refuses(other, NOW) is same


def test_as_many_places_are_remembered_as_the_bound_says() -> None:
    throttle = CodeThrottle()
    fail(throttle, "192.0.2.1")
    for number in range(NETWORKS_MAX):
        throttle.failed(f"10.0.{number >> 8}.{number & 255}", NOW)
    assert len(throttle._networks) == NETWORKS_MAX
    assert not throttle.refuses("192.0.2.1", NOW)
