"""Samples made up for tests."""

from __future__ import annotations

from benchmarks.figures import Found
from benchmarks.result import Measurement, Sample, group

# The keys of a measurement, in the order of its JSON.
KEYS = [
    "workload",
    "system",
    "variant",
    "cpu_us_per_request",
    "cpu_s_per_gb",
    "p50_ms",
    "p99_ms",
    "mb_per_s",
    "rss_kb_per_stream",
]


def sample(
    system: str = "hawse",
    variant: int = 64,
    workload: str = "small",
    *,
    cpu_us: float | None = None,
    p50_ms: float | None = None,
    p99_ms: float | None = None,
    rss_kb: float | None = None,
    cpu_s: dict[str, float] | None = None,
    requests: int = 1000,
) -> Sample:
    measurement = Measurement(
        workload,
        system,
        variant,
        cpu_us_per_request=cpu_us,
        p50_ms=p50_ms,
        p99_ms=p99_ms,
        rss_kb_per_stream=rss_kb,
    )
    return Sample(measurement, cpu_s or {}, {"requests": requests})


def found(*samples: Sample) -> Found:
    return Found(group(samples))
