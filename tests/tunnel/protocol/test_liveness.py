from __future__ import annotations

import math

from tunnel.protocol.liveness import PINGS_KEPT, Liveness, RateLimit, RoundTrips


def test_a_ping_is_due_at_once_at_first_then_every_30_s_or_5_s_with_streams() -> None:
    liveness = Liveness()
    assert liveness.ping_at(busy=False) == -math.inf
    liveness.pinged(100.0)
    assert liveness.ping_at(busy=False) == 130.0
    assert liveness.ping_at(busy=True) == 105.0


def test_dead_ten_seconds_after_the_oldest_unanswered_ping() -> None:
    liveness = Liveness()
    assert liveness.dead_at == math.inf
    liveness.pinged(100.0)
    liveness.pinged(105.0)
    assert liveness.dead_at == 110.0


def test_any_received_byte_is_a_sign_of_life() -> None:
    liveness = Liveness()
    liveness.pinged(100.0)
    liveness.received(109.9)
    assert liveness.dead_at == math.inf
    liveness.pinged(112.0)
    assert liveness.dead_at == 122.0


def test_ten_in_a_second_and_no_more() -> None:
    limit = RateLimit(10.0)
    assert [limit.allows(5.0) for _ in range(11)] == [True] * 10 + [False]
    assert limit.allows(5.11)
    assert not limit.allows(5.11)
    assert [limit.allows(60.0) for _ in range(11)] == [True] * 10 + [False]


def test_the_round_trip_is_the_least_of_quiet_pings() -> None:
    trips = RoundTrips()
    busy, quiet, quicker, busy_again = (trips.next() for _ in range(4))
    trips.sent(busy, 1.0, quiet=False)
    assert trips.answered(busy, 1.5) == 0.5
    # For want of a better one.
    assert trips.least_s == 0.5
    trips.sent(quiet, 2.0, quiet=True)
    trips.answered(quiet, 2.25)
    trips.sent(quicker, 3.0, quiet=True)
    trips.answered(quicker, 3.125)
    trips.sent(busy_again, 4.0, quiet=False)
    assert trips.answered(busy_again, 4.0625) == 0.0625
    assert trips.least_s == 0.125


def test_an_answer_that_nobody_waits_for_is_nothing() -> None:
    trips = RoundTrips()
    assert trips.answered(7, 1.0) is None
    numbers = [trips.next() for _ in range(PINGS_KEPT + 1)]
    for number in numbers:
        trips.sent(number, 1.0, quiet=True)
    assert trips.answered(numbers[0], 2.0) is None
    assert trips.answered(numbers[1], 2.0) == 1.0
