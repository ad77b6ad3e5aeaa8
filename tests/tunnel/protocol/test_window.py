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
    worth_asking = window.is_due
    granted = window.grant(now, rtt_s, initial=64 * KIB, may_grow=may_grow, squeezed=squeezed)
    assert worth_asking or not granted
    return granted


def test_credit_returns_at_half_a_window() -> None:
    window = ReceiveWindow()
    window.receive(40 * KIB)
    assert not window.consume(32 * KIB - 1)
    assert grant(window, 10.0) == 0
    assert window.consume(1)
    assert grant(window, 10.0) == 32 * KIB


def test_a_consumed_byte_that_leaves_exactly_half_of_the_credit_returns_the_rest() -> None:
    window = ReceiveWindow()
    window.receive(32 * KIB)
    assert window.consume(32 * KIB)
    assert grant(window, 10.0) == 32 * KIB


def test_credit_returns_at_once_when_the_peer_stands_at_zero() -> None:
    window = ReceiveWindow()
    window.receive(64 * KIB)
    assert grant(window, 0.0) == 0
    window.consume(10)
    # However soon: a reader that holds nearly all of it is not one that the window limits.
    assert grant(window, 0.0, may_grow=True) == 10
    assert window.size == 64 * KIB


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


@pytest.mark.parametrize(
    ("rtt_s", "took_s", "grows"),
    [
        (0.1, 0.149, True),
        (0.1, 0.151, False),
        # A machine's own pace is not taken for the link's.
        (0.001, 0.0074, True),
        (None, 0.0074, True),
        (0.001, 0.0076, False),
    ],
)
def test_half_a_window_tells_as_much_as_all_of_it(rtt_s: float | None, took_s: float, grows: bool) -> None:
    window = ReceiveWindow()
    window.receive(32 * KIB)
    window.consume(32 * KIB)
    granted = grant(window, took_s, rtt_s=rtt_s, may_grow=True)
    assert (granted, window.size) == ((96 * KIB, 128 * KIB) if grows else (32 * KIB, 64 * KIB))


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


def test_nothing_is_taken_back_from_a_peer_that_has_filled_more_than_a_squeezed_window() -> None:
    window = ReceiveWindow(1024 * KIB, 1024 * KIB)
    window.receive(1024 * KIB)
    window.consume(900 * KIB)
    assert grant(window, 1.0, squeezed=True) == 0
    window.consume(60 * KIB + 1)
    assert grant(window, 1.0, squeezed=True) == 1


@given(st.data())
def test_what_a_peer_can_make_us_hold_is_bounded_by_the_largest_window_granted(data: st.DataObject) -> None:
    initial = data.draw(st.sampled_from([1, 2, 64 * KIB]))
    window, now = ReceiveWindow(initial, initial), 0.0
    peer_credit = initial
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
            assert window.credit * 2 >= initial
