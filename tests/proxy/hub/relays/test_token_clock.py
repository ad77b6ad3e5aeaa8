from __future__ import annotations

import attrs
import pytest

from auth.hubclock import DRIFT, RisingClock
from proxy.hub.relays.token_clock import HUB_DRIFT, SET_BACK_MAX_S, TokenClock
from proxy.relay.config import CLOCK_BOUND_S

NOW = 1_800_000_000.0
DAY_S = 86_400


@attrs.define
class Machine:
    """A wall clock that is set, and a steady one that is not."""

    steady_s: float = 0.0
    ahead_s: float = NOW

    def wall(self) -> float:
        return self.steady_s + self.ahead_s

    def steady(self) -> float:
        return self.steady_s


def test_it_is_the_wall_clock_unless_that_is_set_back() -> None:
    machine = Machine()
    clock = TokenClock(machine.wall, machine.steady)
    for ahead_s in (0.0, 5.0, 3600.0):
        machine.steady_s += 10
        machine.ahead_s += ahead_s
        assert clock() == machine.wall()


def test_what_is_set_back_is_neared_slowly_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    clock = TokenClock(machine.wall, machine.steady)
    clock()
    machine.ahead_s -= 120
    for second in range(DAY_S // 60):
        machine.steady_s = 60.0 * second
        assert clock() - machine.wall() == pytest.approx(120 - 60.0 * second * HUB_DRIFT, abs=0.01)
    assert caplog.text.count("this hub's clock was set back by 120 s") == 1
    machine.steady_s = 20 * DAY_S
    assert clock() == machine.wall()


def test_a_wall_clock_that_is_slewed_back_is_followed_no_faster_than_a_relay_can(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As chrony does it: by up to 8 % of a second in each."""
    machine = Machine()
    clock, relay = TokenClock(machine.wall, machine.steady), RisingClock(DRIFT)
    for second in range(2000):
        machine.steady_s = float(second)
        machine.ahead_s = NOW - 0.08 * second
        told_s = clock()
        # Its own oscillator is fast by what those of both may differ by.
        relays_s = second * (1 + 200e-6)
        relay.update(told_s, relays_s)
        assert relay.at(relays_s) - told_s < 0.01


def test_what_no_relay_would_have_believed_is_followed_at_once(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    clock = TokenClock(machine.wall, machine.steady)
    machine.ahead_s += 3600
    assert clock() == machine.wall()
    machine.ahead_s -= 3600
    assert clock() == machine.wall()
    assert "set back by 3600 s" in caplog.text
    assert SET_BACK_MAX_S == CLOCK_BOUND_S
