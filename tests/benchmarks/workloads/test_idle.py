from __future__ import annotations

import pytest

from benchmarks.workloads.idle import sample


def test_the_figure_is_that_of_the_dearer_process_and_the_notes_have_both() -> None:
    taken = sample("idle", "hawse", 100, {"hub": 1000, "relay": 500}, {"hub": 2000, "relay": 3000}, {})
    assert taken.measurement.rss_kb_per_stream == pytest.approx(25.0)
    assert taken.notes == {"hub_kb": 10.0, "relay_kb": 25.0}
    assert (taken.measurement.workload, taken.measurement.variant) == ("idle", 100)
