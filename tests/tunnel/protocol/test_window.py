from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.protocol.errors import FlowControlError
from tunnel.protocol.window import WINDOW_BYTES_MAX, ReceiveWindow

KIB = 1024


def grant(
    window: ReceiveWindow,
    now: float,
    *,
    rtt_s: float | None = 0.1,
    may_grow: bool = False,
    squeezed: bool = False,
) -> int:
    return window.grant(now, rtt_s, initial=64 * KIB, may_grow=may_grow, squeezed=squeezed)


def test_credit_returns_at_half_a_window() -> None:
    window = ReceiveWindow()
    window.receive(40 * KIB)
    window.consume(32 * KIB - 1)
    assert grant(window, 10.0) == 0
    window.consume(1)
    assert grant(window, 10.0) == 32 * KIB


def test_credit_returns_at_once_when_the_peer_stands_at_zero() -> None:
    window = ReceiveWindow()
    window.receive(64 * KIB)
    assert grant(window, 10.0) == 0
    window.consume(10)
    assert grant(window, 10.0) == 10


def test_a_byte_beyond_the_credit_is_an_error_and_charges_nothing() -> None:
    window = ReceiveWindow(10, 10)
    with pytest.raises(FlowControlError, match="11 bytes exceed the credit of 10"):
        window.receive(11)
    assert (window.credit, window.held) == (10, 0)


def drain(window: ReceiveWindow, now: float, **how: bool) -> int:
    count = window.credit
    window.receive(count)
    window.consume(count)
    return grant(window, now, may_grow=how.get("may_grow", True), squeezed=how.get("squeezed", False))


def test_a_window_that_drains_within_three_round_trips_doubles_up_to_the_limit() -> None:
    window, now = ReceiveWindow(), 0.0
    sizes = []
    for _ in range(8):
        now += 0.29
        drain(window, now)
        sizes.append(window.size // KIB)
    assert sizes == [128, 256, 512, 1024, 2048, 4096, 4096, 4096]
    assert window.credit == WINDOW_BYTES_MAX


def test_a_window_that_drains_slowly_or_without_memory_stays() -> None:
    window = ReceiveWindow()
    drain(window, 0.31)
    assert window.size == 64 * KIB
    drain(window, 0.35, may_grow=False)
    assert window.size == 64 * KIB


def test_a_squeezed_window_is_granted_again_only_up_to_the_initial_one() -> None:
    window = ReceiveWindow(1024 * KIB, 1024 * KIB)
    window.receive(1000 * KIB)
    window.consume(990 * KIB)
    # 24 KiB are granted and 10 are held still: 30 are missing to the initial window, less than half of it.
    assert grant(window, 1.0, squeezed=True) == 0
    window.consume(10 * KIB)
    assert grant(window, 1.0, squeezed=True) == 40 * KIB
    assert window.size == 64 * KIB
    assert drain(window, 2.0, squeezed=True) == 64 * KIB


@given(st.data())
def test_what_a_peer_can_make_us_hold_is_bounded_by_the_largest_window_granted(data: st.DataObject) -> None:
    window, now = ReceiveWindow(), 0.0
    peer_credit = 64 * KIB
    for _ in range(data.draw(st.integers(1, 40))):
        now += data.draw(st.floats(0, 0.2))
        count = data.draw(st.integers(0, window.credit))
        window.receive(count)
        peer_credit -= count
        window.consume(data.draw(st.integers(0, window.held)))
        level = data.draw(st.integers(0, 2))
        peer_credit += grant(window, now, may_grow=level == 0, squeezed=level == 2)
        assert peer_credit == window.credit >= 0
        assert window.credit + window.held <= WINDOW_BYTES_MAX
        # A reader that has taken everything never leaves its peer without credit.
        if window.held == 0:
            assert window.credit >= 32 * KIB
