from __future__ import annotations

import json

from benchmarks.figures import Found
from benchmarks.gate import BASELINE, COMPARED, ratios
from benchmarks.result import Measurement, Sample, group


def sample(system: str, us: float) -> Sample:
    return Sample(Measurement("small", system, 64, cpu_us_per_request=us))


def test_a_ratio_is_that_of_the_least_disturbed_runs() -> None:
    samples = [sample("plain", 20), sample("hawse", 150), sample("plain", 16), sample("hawse", 80)]
    assert ratios(Found(group(samples))) == {"small 64: cpu_us_per_request": 5.0}


def test_the_committed_baseline_has_every_line() -> None:
    baseline = json.loads(BASELINE.read_text())
    assert list(baseline) == [f"{workload} {variant}: {name}" for workload, variant, name in COMPARED]
