from __future__ import annotations

import pytest

from benchmarks.workloads.memory import Phases, sample


def test_the_figure_is_what_the_larger_process_still_holds_by_watch() -> None:
    phases = Phases(
        before={"hub": 1024, "relay": 2048},
        peak={"hub": 8192, "relay": 8192},
        after={5.0: {"hub": 4096, "relay": 8192}, 60.0: {"hub": 2048, "relay": 2148}},
    )
    taken = sample("hawse", 100, phases, {})
    assert taken.measurement.rss_kb_per_stream == pytest.approx(10.24)
    assert {name: value for name, value in taken.notes.items() if name.startswith("hub")} == {
        "hub_before_mb": 1.0,
        "hub_peak_mb": 8.0,
        "hub_after_5_s_mb": 4.0,
        "hub_after_60_s_mb": 2.0,
        "hub_after_over_before": 2.0,
    }
