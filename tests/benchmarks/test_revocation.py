"""That what is open ends in time, with as many streams as the goal speaks of; the figures themselves vary."""

from __future__ import annotations

import pytest

from benchmarks.revocation import LIMIT_S, MODES, STREAMS, Figures, run


def test_a_share_of_the_streams_has_ended_within_its_time() -> None:
    figures = Figures("tunnel", tuple(number / 100 for number in range(200)))
    assert figures.share(0.5) == 1.0
    assert figures.share(0.99) == 1.98
    assert figures.share(1.0) == 1.99


@pytest.mark.timeout(180)
@pytest.mark.long
def test_200_live_streams_end_within_two_seconds_of_the_lock_in_both_modes() -> None:
    measured = run(STREAMS, 1, tuple(MODES))
    assert [each.mode for each in measured] == ["tunnel", "direct"]
    for each in measured:
        assert len(each.ended_s) == STREAMS
        assert each.share(0.99) < LIMIT_S, each.mode
