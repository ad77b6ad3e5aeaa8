"""The figures as a table for people: the ratios to the yardsticks first."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.result import Series, ratio

YARDSTICKS = ("nginx", "ssh", "direct")
_FIGURES = (
    ("cpu_us_per_request", "CPU µs/request"),
    ("cpu_s_per_gb", "CPU s/GB"),
    ("p50_ms", "p50 ms"),
    ("p99_ms", "p99 ms"),
    ("mb_per_s", "MB/s"),
    ("rss_kb_per_stream", "RSS KB/stream"),
)


def table(found: Sequence[Series]) -> str:
    lines = []
    for series in found:
        of = series.samples[0].measurement
        cells = [
            f"{title} {series.minimum(name):.4g} (median {series.median(name):.4g})"
            for name, title in _FIGURES
            if series.values(name)
        ]
        others = {
            other.samples[0].measurement.system: other
            for other in found
            if (other.samples[0].measurement.workload, other.samples[0].measurement.variant)
            == (of.workload, of.variant)
        }
        ratios = [
            f"{value:.2f}x {name}"
            for name in YARDSTICKS
            if name in others
            and name != of.system
            and (value := ratio(series, others[name], "cpu_us_per_request")) is not None
        ]
        lines.append(f"{of.workload:<8} {of.variant:>5} {of.system:<10} {', '.join([*ratios, *cells])}")
    return "\n".join(lines)
