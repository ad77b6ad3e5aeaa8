"""Behaviour on slow, long and changing links, by two whole connections over a link with an endless buffer."""

from __future__ import annotations

import pytest

from tests.tunnel.protocol.slow_link import SlowLink
from tunnel.protocol.flight import LEAST_BYTES, MESSAGE_LEAST_BYTES, MESSAGE_MOST_BYTES, NEAR_QUEUE_S, Flight
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
        link.dialer.send_data(echo, b"x")
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


def test_a_peer_that_acknowledges_small_messages_late_is_no_slow_link() -> None:
    link = SlowLink(mbit_per_s=1000, rtt_s=0.01)
    typed = link.download()
    (echo,) = link.quiet(typed)
    link.run(1)
    before = link.dialer.flight.limit_bytes
    for _ in range(100):
        link.dialer.send_data(echo, bytes(100))
        link.run(0.1)
    assert link.dialer.flight.limit_bytes >= before


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
    assert link.dialer.flight.limit_bytes < LEDGER_BYTES_MAX
    # No smaller ones: each costs both ends the same.
    assert link.dialer.flight.message_bytes == MESSAGE_MOST_BYTES


def test_a_new_transport_is_measured_anew() -> None:
    link = SlowLink(mbit_per_s=10, rtt_s=0.02)
    link.download()
    link.run(1)
    assert link.dialer.flight.rate
    for connection in (link.dialer, link.listener):
        assert connection.resumable
        connection.detach(link.now)
        connection.attach(connection.sent.acknowledged, connection.received.count, link.now)
        assert not connection.flight.rate
