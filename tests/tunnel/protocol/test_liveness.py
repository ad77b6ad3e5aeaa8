from __future__ import annotations

import math

from tunnel.protocol.liveness import Liveness, RoundTrips


def test_a_ping_is_due_at_once_at_first_then_every_30_s_or_5_s_with_streams() -> None:
    liveness = Liveness()
    assert liveness.ping_at(busy=False) == -math.inf
    liveness.pinged(100.0)
    assert liveness.ping_at(busy=False) == 130.0
    assert liveness.ping_at(busy=True) == 105.0
    # As it is set; with streams it is the same.
    liveness = Liveness(60.0)
    liveness.pinged(100.0)
    assert (liveness.ping_at(busy=False), liveness.ping_at(busy=True)) == (160.0, 105.0)


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
    assert liveness.received_at == 109.9
    liveness.pinged(112.0)
    assert liveness.dead_at == 122.0
    # On a new transport the peer has just been heard, and is asked at once.
    liveness.restart(115.0)
    assert (liveness.received_at, liveness.dead_at) == (115.0, math.inf)
    assert liveness.ping_at(busy=False) == -math.inf


def test_in_doubt_after_five_seconds_of_silence_in_which_a_ping_was_not_answered() -> None:
    liveness = Liveness(received_at=100.0)
    liveness.pinged(103.9)
    assert liveness.doubt_at(attached=True) == 105.0
    liveness.received(104.0)
    assert liveness.doubt_at(attached=True) == math.inf
    # The PING that is due then has a moment for its answer.
    liveness.pinged(108.9)
    assert liveness.doubt_at(attached=True) == 109.9
    # Before a stream is open, silence is what is expected.
    idle = Liveness(received_at=100.0, busy_since=120.0)
    idle.pinged(120.0)
    assert idle.doubt_at(attached=True) == 125.0
    # Without a transport there is no PING; and it is told once, until something comes.
    away = Liveness(received_at=100.0)
    assert away.doubt_at(attached=False) == 105.0
    away.doubted = True
    assert away.doubt_at(attached=False) == math.inf
    away.restart(107.0)
    assert not away.doubted


def round_trip(trips: RoundTrips, sent_at: float, answered_at: float, *, quiet: bool) -> float | None:
    number = trips.next()
    assert number is not None
    trips.sent(sent_at, quiet=quiet)
    return trips.answered(number, answered_at)


def test_the_round_trip_is_the_least_of_quiet_pings() -> None:
    trips = RoundTrips()
    assert round_trip(trips, 1.0, 1.5, quiet=False) == 0.5
    # For want of a better one.
    assert trips.least_s == 0.5
    round_trip(trips, 2.0, 2.25, quiet=True)
    round_trip(trips, 3.0, 3.125, quiet=True)
    assert round_trip(trips, 4.0, 4.0625, quiet=False) == 0.0625
    assert trips.least_s == 0.125


def test_three_in_a_row_that_are_all_late_tell_of_a_longer_path() -> None:
    trips = RoundTrips()
    for took_s, least_s in (
        (0.125, 0.125),
        (0.5, 0.125),
        (0.5, 0.125),
        (0.21875, 0.125),
        (0.5, 0.125),
        (0.375, 0.125),
        (0.4375, 0.375),
        (0.25, 0.25),
    ):
        round_trip(trips, 1.0, 1.0 + took_s, quiet=True)
        assert trips.least_s == least_s


def test_what_an_old_transport_took_tells_nothing_of_the_next_one() -> None:
    trips = RoundTrips()
    for took_s in (0.125, 0.5, 0.5):
        round_trip(trips, 1.0, 1.0 + took_s, quiet=True)
    number = trips.next()
    assert number is not None
    trips.sent(2.0, quiet=True)
    trips.restart()
    assert trips.answered(number, 2.5) is None
    for took_s in (0.125, 0.5):
        round_trip(trips, 3.0, 3.0 + took_s, quiet=True)
        assert trips.least_s == 0.125


def test_another_transport_is_measured_again() -> None:
    trips = RoundTrips()
    round_trip(trips, 1.0, 1.125, quiet=True)
    trips.restart()
    assert trips.least_s is None
    round_trip(trips, 2.0, 2.25, quiet=True)
    assert trips.least_s == 0.25


def test_there_is_no_second_ping_before_the_answer_to_the_first() -> None:
    trips = RoundTrips()
    number = trips.next()
    assert number is not None
    assert trips.next() is None
    trips.sent(1.0, quiet=True)
    assert trips.next() is None
    assert trips.answered(number, 2.0) == 1.0
    assert trips.next() == number + 1


def test_an_unexpected_answer_is_ignored() -> None:
    trips = RoundTrips()
    assert trips.answered(7, 1.0) is None
    number = trips.next()
    assert number is not None
    assert trips.answered(number, 1.0) is None
    trips.sent(1.0, quiet=True)
    assert trips.answered(number + 1, 2.0) is None
    assert trips.answered(number, 2.0) == 1.0
    assert trips.answered(number, 3.0) is None
