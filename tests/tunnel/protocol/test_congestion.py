"""Behaviour on slow, long and changing links, by two whole connections over a link with an endless buffer."""

from __future__ import annotations

import attrs
import pytest

from tests.tunnel.protocol.slow_link import SlowLink
from tunnel.protocol.congestion import (
    LEAST_BYTES,
    MESSAGE_LEAST_BYTES,
    MESSAGE_MOST_BYTES,
    NEAR_QUEUE_S,
    Flight,
    queue_wanted_s,
)
from tunnel.protocol.ledger import ACK_SOON_BYTES, LEDGER_BYTES_MAX
from tunnel.protocol.streams import StreamState


def mbit_per_s(link: SlowLink, seconds: float) -> float:
    before = sum(link.taken.values())
    link.run(seconds)
    return (sum(link.taken.values()) - before) * 8 / seconds / 1e6


def longest_queue_s(link: SlowLink, seconds: float) -> float:
    longest = 0.0
    for _ in range(round(seconds / 0.005)):
        link.run(0.005)
        longest = max(longest, link.down.queue_s(link.now))
    return longest


# The rate in Mbit/s, the round trip, and how long what is sent may wait: 15 ms or a sixth of the round trip,
# and the message that is let go when that is not quite reached, of 16 KiB or 10 ms.
LINKS = [
    (2, 0.05, 0.084),
    (5, 0.2, 0.063),
    (10, 0.02, 0.031),
    (10, 0.1, 0.033),
    (100, 0.02, 0.028),
    (100, 0.15, 0.038),
    (200, 0.002, 0.028),
]


@pytest.mark.parametrize("streams", [1, 8])
@pytest.mark.parametrize(("rate", "rtt_s", "queue_s"), LINKS)
def test_the_link_is_full_and_its_queue_short(
    rate: float, rtt_s: float, queue_s: float, streams: int
) -> None:
    link = SlowLink(mbit_per_s=rate, rtt_s=rtt_s)
    for _ in range(streams):
        link.download()
    link.run(4)
    assert mbit_per_s(link, 1) > 0.88 * rate
    assert longest_queue_s(link, 1) < queue_s


@pytest.mark.parametrize(("rate", "rtt_s", "queue_s"), LINKS)
def test_a_download_that_begins_shows_a_queue_for_a_moment_only(
    rate: float, rtt_s: float, queue_s: float
) -> None:
    """What is sent before anything is known of the link is 128 KiB, and on a long way twice what it holds."""
    link = SlowLink(mbit_per_s=rate, rtt_s=rtt_s)
    link.download()
    first_s = 128 * 1024 / link.down.bytes_per_s
    assert longest_queue_s(link, 2) < max(first_s, 1.25 * rtt_s, 0.065) + 0.003
    link.run(1)
    assert longest_queue_s(link, 1) < queue_s


@pytest.mark.parametrize("jitter_s", [0.0, 0.01, 0.02])
def test_a_long_link_is_full_after_two_seconds_also_between_busy_machines(jitter_s: float) -> None:
    link = SlowLink(mbit_per_s=100, rtt_s=0.15, jitter_s=jitter_s)
    link.download()
    link.run(2)
    assert mbit_per_s(link, 5) > 90


def test_a_keystroke_passes_a_bulk_download() -> None:
    link = SlowLink(mbit_per_s=10, rtt_s=0.1)
    link.download()
    typed = link.download()
    (echo,) = link.quiet(typed)
    link.run(4)
    waits = []

    def note(stream: StreamState) -> None:
        if stream is typed:
            waits.append(link.now - sent_at)

    link.on_data = note
    for number in range(50):
        sent_at = link.now
        link.dialer.streams.send_data(echo, b"x")
        link.run(0.211)
        assert len(waits) == number + 1
    # It shares its message with as much of the download as fits.
    assert max(waits) < 0.05 + 0.033 + MESSAGE_LEAST_BYTES / link.down.bytes_per_s + 0.002


def test_a_link_that_becomes_slow_is_noticed() -> None:
    link = SlowLink(mbit_per_s=100, rtt_s=0.1)
    link.download()
    link.run(3)
    link.down.bytes_per_s = 10e6 / 8
    # What was under way then is 0.1 s of the old link, and 1 s of the new one.
    link.run(3.5)
    assert longest_queue_s(link, 1) < 0.033
    assert mbit_per_s(link, 1) > 8.8


def test_a_round_that_is_late_and_has_brought_little_is_not_waited_for() -> None:
    flight = Flight()
    flight.begin_round(1, ACK_SOON_BYTES, 0.0)
    flight.full()
    flight.acknowledged(1, 1_000_000, 0.1)
    assert flight.rate == 10_000_000
    flight.begin_round(10, ACK_SOON_BYTES, 1.0)
    flight.full()
    flight.acknowledged(5, 1000, 1.2)
    assert flight.rate == 10_000_000
    flight.acknowledged(6, 1000, 1.25)
    assert flight.rate == 8000
    assert flight.limit_bytes == LEAST_BYTES


def test_a_link_that_becomes_fast_is_noticed() -> None:
    link = SlowLink(mbit_per_s=10, rtt_s=0.1)
    link.download()
    link.run(3)
    link.down.bytes_per_s = 100e6 / 8
    link.run(2)
    assert mbit_per_s(link, 1) > 88


def test_a_path_that_becomes_longer_is_noticed() -> None:
    link = SlowLink(mbit_per_s=100, rtt_s=0.02)
    link.download()
    link.run(2)
    link.down.delay_s = link.up.delay_s = 0.075
    link.run(25)
    assert mbit_per_s(link, 1) > 88
    assert longest_queue_s(link, 1) < 0.038


def test_a_path_that_was_longer_for_a_while_leaves_no_queue_behind() -> None:
    """As between machines that were busy: what they were late by must not become a queue of our own."""
    link = SlowLink(mbit_per_s=10, rtt_s=0.1)
    link.download()
    link.run(3)
    for _ in range(2):
        link.down.delay_s += 0.15
        link.run(2)
        link.down.delay_s -= 0.15
        link.run(5)
    assert longest_queue_s(link, 1) < 0.05
    assert mbit_per_s(link, 1) > 8.8


def test_a_peer_that_acknowledges_small_messages_late_is_no_slow_link() -> None:
    link = SlowLink(mbit_per_s=1000, rtt_s=0.01)
    typed = link.download()
    (echo,) = link.quiet(typed)
    link.run(1)
    before = link.dialer.drain.flight.limit_bytes
    for _ in range(100):
        link.dialer.streams.send_data(echo, bytes(100))
        link.run(0.1)
    assert link.dialer.drain.flight.limit_bytes >= before


def test_a_peer_that_waits_with_its_word_has_not_gone_further_away() -> None:
    flight = Flight()
    flight.answered(0.02)
    for number, size in enumerate([1000, 20_000, 60_000, 1000] * 5, 1):
        # Whatever has followed meanwhile is acknowledged with it.
        flight.begin_round(number, 1000, float(number))
        flight.acknowledged(number, size, number + 0.5)
    assert flight.least_s == 0.02
    # With so much it does not wait.
    for number in range(100, 120):
        flight.begin_round(number, ACK_SOON_BYTES, float(number))
        flight.acknowledged(number, ACK_SOON_BYTES, number + 0.2)
    assert flight.least_s == pytest.approx(0.2)


def test_a_way_that_is_shorter_than_was_known_is_learnt_from_little_as_well() -> None:
    flight = Flight()
    flight.answered(0.2)
    flight.begin_round(1, 1000, 1.0)
    flight.acknowledged(1, 1000, 1.05)
    assert flight.least_s == pytest.approx(0.05)


@pytest.mark.parametrize("streams", [1, 8])
def test_a_loopback_is_full_though_little_waits_in_its_kernels(streams: int) -> None:
    link = SlowLink(mbit_per_s=8000, rtt_s=0.0001)
    for _ in range(streams):
        link.download()
    link.run(0.2)
    assert mbit_per_s(link, 0.2) > 0.88 * 8000
    assert longest_queue_s(link, 0.1) < 2 * NEAR_QUEUE_S
    assert link.dialer.drain.flight.limit_bytes < LEDGER_BYTES_MAX
    # No smaller ones: each costs both ends the same.
    assert link.dialer.drain.flight.message_bytes == MESSAGE_MOST_BYTES


def test_a_new_transport_is_measured_again() -> None:
    link = SlowLink(mbit_per_s=10, rtt_s=0.02)
    link.download()
    link.run(1)
    assert link.dialer.drain.flight.rate
    for connection in (link.dialer, link.listener):
        assert connection.resumption.resumable
        connection.resumption.detach(link.now)
        connection.resumption.attach(connection.sent.acknowledged, connection.received.count, link.now)
        assert not connection.drain.flight.rate


# --- what one round tells, by PROTOCOL.md, "In flight" ---

KIB = 1024


@attrs.define
class Rounds:
    """One round after the other, on a way of 0.1 s whose wanted queue is a sixth of that."""

    flight: Flight = attrs.Factory(Flight)
    number: int = 0

    def __attrs_post_init__(self) -> None:
        self.flight.answered(0.1)

    def round(self, size: int, took_s: float, *, full: bool = True, under_way: int | None = None) -> None:
        self.number += 1
        now = 1000.0 * self.number
        self.flight.begin_round(self.number, size if under_way is None else under_way, now)
        if full:
            self.flight.full()
        self.flight.acknowledged(self.number, size, now + took_s)

    def settle(self, rate: int) -> None:
        """Know of a link that carries so much a second, and grow no more."""
        self.round(rate // 10, 0.1)
        self.round(rate // 5, 0.2)
        assert self.flight.rate == pytest.approx(rate)
        assert self.flight.limit_bytes == pytest.approx(rate * (0.1 + 0.1 / 6), rel=1e-4)


def test_it_doubles_until_a_round_shows_a_queue_and_is_no_faster() -> None:
    rounds = Rounds()
    flight = rounds.flight
    assert flight.limit_bytes == 128 * KIB
    rounds.round(128 * KIB, 0.1)
    assert flight.limit_bytes == 256 * KIB
    # A queue of 12 ms is what is wanted, and no sign of a full link.
    rounds.round(256 * KIB, 0.112)
    assert flight.limit_bytes == 512 * KIB
    # With a queue as well, as long as it is a quarter faster.
    rounds.round(512 * KIB, 0.15)
    assert flight.limit_bytes == 1024 * KIB
    rounds.round(1024 * KIB, 0.25)
    rate = 1024 * KIB / 0.25
    assert flight.rate == rate
    assert flight.limit_bytes == int(rate * (0.1 + 0.1 / 6))


def test_it_does_not_grow_while_the_limit_is_not_reached_nor_between_two_rounds() -> None:
    flight = Rounds().flight
    flight.acknowledged(1, 50_000, 0.05)
    flight.begin_round(2, 100_000, 0.1)
    flight.acknowledged(1, 50_000, 0.15)
    assert flight.limit_bytes == 128 * KIB
    flight.full()
    flight.acknowledged(1, 30_000, 0.18)
    assert flight.limit_bytes == 128 * KIB + 30_000
    flight.acknowledged(2, 20_000, 0.2)
    assert flight.limit_bytes == 128 * KIB + 50_000
    # What was acknowledged before it began is not the round's.
    assert flight.rate == pytest.approx(1_000_000)
    # It is over.
    flight.acknowledged(3, 40_000, 0.21)
    assert flight.limit_bytes == 128 * KIB + 50_000


@pytest.mark.parametrize(
    ("queue_s", "growth"), [(0.0, 1.25), (0.004, 1.25), (0.0045, 1), (0.016, 1), (0.1, 1)]
)
def test_once_it_is_known_the_limit_is_a_quarter_higher_where_there_is_next_to_no_queue(
    queue_s: float, growth: float
) -> None:
    rounds = Rounds()
    rounds.settle(2_000_000)
    took_s = 0.1 + queue_s
    rounds.round(round(2_000_000 * took_s), took_s)
    assert rounds.flight.rate == pytest.approx(2_000_000)
    assert rounds.flight.limit_bytes == pytest.approx(growth * 2_000_000 * (0.1 + 0.1 / 6), rel=1e-4)


def test_a_link_is_as_fast_as_the_fastest_of_the_last_six_rounds() -> None:
    rounds = Rounds()
    rounds.settle(2_000_000)
    for _ in range(5):
        rounds.round(100_000, 0.1)
        assert rounds.flight.rate == pytest.approx(2_000_000)
    rounds.round(100_000, 0.1)
    assert rounds.flight.rate == pytest.approx(1_000_000)


def test_a_round_in_which_there_was_no_more_to_send_only_raises_the_limit() -> None:
    rounds = Rounds()
    rounds.settle(2_000_000)
    known = rounds.flight.limit_bytes
    for _ in range(10):
        rounds.round(100_000, 0.1, full=False)
    assert rounds.flight.rate == pytest.approx(2_000_000)
    assert rounds.flight.limit_bytes == known
    # One that was faster shows that the link can do this.
    rounds.round(250_000, 0.1, full=False)
    assert rounds.flight.rate == pytest.approx(2_500_000)
    assert rounds.flight.limit_bytes == pytest.approx(2_500_000 * (0.1 + 0.1 / 6), rel=1e-4)
    # While it grows, the limit may be higher than a little traffic could tell.
    rounds = Rounds()
    rounds.round(50_000, 0.1, full=False)
    assert rounds.flight.rate == pytest.approx(500_000)
    assert rounds.flight.limit_bytes == 128 * KIB


def test_a_round_that_shows_a_queue_tells_of_the_link_though_there_was_no_more_to_send() -> None:
    rounds = Rounds()
    rounds.round(100_000, 0.2, full=False)
    # The first one is faster than nothing; the second one is no faster.
    rounds.round(100_000, 0.2, full=False)
    assert rounds.flight.limit_bytes == int(500_000 * (0.1 + 0.1 / 6))
    # Unless it brought next to nothing: then something else was late.
    rounds = Rounds()
    rounds.settle(2_000_000)
    known = rounds.flight.limit_bytes
    for _ in range(10):
        rounds.round(LEAST_BYTES - 1, 0.19, full=False)
    assert rounds.flight.rate == pytest.approx(2_000_000)
    assert rounds.flight.limit_bytes == known
    for _ in range(10):
        rounds.round(LEAST_BYTES, 0.19, full=False)
    assert rounds.flight.rate == pytest.approx(LEAST_BYTES / 0.19)


def test_a_round_that_begins_with_little_does_not_tell_how_fast_the_link_is() -> None:
    rounds = Rounds()
    rounds.settle(2_000_000)
    known = rounds.flight.limit_bytes
    for size in (1000, 1_000_000):
        for _ in range(10):
            rounds.round(size, 0.3, under_way=ACK_SOON_BYTES - 1)
    assert rounds.flight.rate == pytest.approx(2_000_000)
    assert rounds.flight.limit_bytes == known


@pytest.mark.parametrize(
    ("late", "least_s"),
    [
        ([0.25] * 4, 0.1),
        ([0.25, 0.25, 0.21, 0.3, 0.25], 0.21),
        ([0.25, 0.25, 0.19, 0.3, 0.25], 0.1),
        ([0.25, 0.25, 0.1, 0.25, 0.25, 0.25, 0.25], 0.1),
        ([0.25, 0.25, 0.08, 0.25, 0.25], 0.08),
    ],
    ids=["not five", "five", "a queue", "one that was not late", "one that was shorter"],
)
def test_a_way_is_longer_when_five_rounds_in_a_row_are_all_late(late: list[float], least_s: float) -> None:
    rounds = Rounds()
    for took_s in late:
        rounds.round(100_000, took_s)
    assert rounds.flight.least_s == pytest.approx(least_s)


@pytest.mark.parametrize(
    ("full", "late_s", "acknowledged", "noticed"),
    [
        (True, 0.1 + 0.015 + 0.1 + 0.001, 100_000, True),
        (False, 0.1 + 0.015 + 0.1 + 0.001, 100_000, False),
        (True, 0.1 + 0.015 + 0.1 - 0.001, 100_000, False),
        # Half as fast as it was known to be.
        (True, 0.25, 250_000, False),
        (True, 0.25, 249_000, True),
    ],
)
def test_a_round_that_is_not_over_is_judged_when_it_is_late_and_less_than_half_as_fast(
    full: bool, late_s: float, acknowledged: int, noticed: bool
) -> None:
    rounds = Rounds()
    rounds.settle(2_000_000)
    known = rounds.flight.limit_bytes
    flight = rounds.flight
    flight.begin_round(100, 200_000, 0.0)
    if full:
        flight.full()
    flight.acknowledged(99, acknowledged, late_s)
    if noticed:
        assert flight.rate == pytest.approx(acknowledged / late_s)
        assert flight.limit_bytes == pytest.approx(max(LEAST_BYTES, flight.rate * (0.1 + 0.1 / 6)), rel=1e-4)
    else:
        assert flight.rate == pytest.approx(2_000_000)
        assert flight.limit_bytes == known


def test_a_link_that_has_become_slow_while_it_was_measured_is_not_given_twice_as_much() -> None:
    rounds = Rounds()
    rounds.round(128 * KIB, 0.1)
    flight = rounds.flight
    flight.begin_round(100, 256 * KIB, 0.0)
    flight.full()
    flight.acknowledged(98, 20_000, 0.3)
    limit = flight.limit_bytes
    assert limit < 128 * KIB
    flight.acknowledged(99, 20_000, 0.4)
    assert flight.limit_bytes <= limit


def test_a_round_may_be_late_before_any_has_ended() -> None:
    flight = Flight()
    flight.begin_round(2, 128 * KIB, 0.0)
    flight.full()
    flight.acknowledged(1, 1000, 5.0)
    assert flight.limit_bytes == 128 * KIB + 1000
    # Nor is anything known by which a message should be shorter.
    assert flight.message_bytes == 64 * KIB
    flight.acknowledged(2, 127 * KIB, 6.0)
    assert flight.least_s == pytest.approx(6.0)


def test_the_way_is_as_long_as_the_quickest_answer_to_a_ping() -> None:
    flight = Flight()
    for took_s in (0.2, 0.1, 0.3):
        flight.answered(took_s)
    assert flight.least_s == 0.1


def test_the_limit_has_bounds() -> None:
    few = Rounds(Flight(64 * KIB))
    assert few.flight.limit_bytes == few.flight.for_next_transport().limit_bytes == 64 * KIB
    few.round(64 * KIB, 0.1)
    assert few.flight.limit_bytes == 64 * KIB
    rounds = Rounds()
    for _ in range(20):
        rounds.round(rounds.flight.limit_bytes, 0.1)
    assert rounds.flight.limit_bytes == LEDGER_BYTES_MAX
    rounds = Rounds()
    rounds.settle(2_000_000)
    for _ in range(6):
        rounds.round(LEAST_BYTES, 0.19)
    assert rounds.flight.limit_bytes == LEAST_BYTES
    # A clock that has not moved on makes no rate without a bound.
    Rounds(flight := Flight()).round(100_000, 0.0)
    assert 0 < flight.rate < 1e10


@pytest.mark.parametrize(
    ("round_trip_s", "rate", "bytes_"),
    [
        # Nothing is known yet; what the link carries in 10 ms; a quarter of what may be in flight; bounds.
        (0.1, 0, 64 * KIB),
        (0.1, 2_000_000, 20_000),
        (0.02, 3_000_000, 26_250),
        (0.1, 100_000, 16 * KIB),
        (0.1, 50_000_000, 256 * KIB),
        # Near it is half, since the link itself takes no time.
        (0.001, 12_000_000, 96_000),
    ],
)
def test_a_message_is_what_the_link_carries_in_ten_milliseconds_and_a_part_of_what_is_under_way(
    round_trip_s: float, rate: int, bytes_: int
) -> None:
    rounds = Rounds()
    flight = rounds.flight
    flight.answered(round_trip_s)
    if rate:
        # The second one is all queue and no faster, so the limit is known.
        for took_s in (round_trip_s, 21 * round_trip_s):
            rounds.round(round(rate * took_s), took_s, under_way=ACK_SOON_BYTES)
    assert flight.message_bytes == pytest.approx(bytes_, rel=1e-3)


@pytest.mark.parametrize(
    ("round_trip_s", "bytes_per_s", "queue_s"),
    [
        (0.002, 1e9, 0.015),
        (0.09, 1e6, 0.015),
        (0.12, 1e6, 0.020),
        # Within a machine: 512 KiB, or 4 ms if that is more, and never more than elsewhere.
        (0.0019, 1e9, 0.004),
        (0.001, 1e8, 512 * KIB / 1e8),
        (0.001, 1e7, 0.015),
        (0.001, 0, 0.015),
    ],
)
def test_a_queue_that_is_not_felt(round_trip_s: float, bytes_per_s: float, queue_s: float) -> None:
    assert queue_wanted_s(round_trip_s, bytes_per_s) == pytest.approx(queue_s)
