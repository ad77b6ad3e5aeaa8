from __future__ import annotations

from benchmarks.workloads.rtt import LINK_BYTES_PER_S, ROUND_TRIPS, download_bytes


def test_a_download_takes_many_round_trips_at_every_length_of_the_way() -> None:
    for rtt_ms in (20, 150, 600):
        seconds = download_bytes(rtt_ms, quick=False) / LINK_BYTES_PER_S
        assert seconds >= ROUND_TRIPS * rtt_ms / 1000


def test_a_short_way_has_a_download_of_seconds_too() -> None:
    assert download_bytes(1, quick=False) / LINK_BYTES_PER_S >= 4


def test_a_quick_run_moves_the_same_at_every_length_of_the_way() -> None:
    assert download_bytes(20, quick=True) == download_bytes(150, quick=True) < download_bytes(20, quick=False)
