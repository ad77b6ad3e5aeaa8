"""Which figures there are: what they are called, which one a workload is about, and how they are written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

from benchmarks.result import Series


@attrs.frozen
class Figure:
    """A figure of benchmarks.result.Measurement as people read it."""

    name: str
    title: str
    compared: bool = True
    """Whether a ratio of it to a yardstick says something: less is better, and it is more than noise."""


FIGURES = (
    Figure("cpu_us_per_request", "CPU µs a request"),
    Figure("cpu_s_per_gb", "CPU s a GB"),
    Figure("rss_kb_per_stream", "RSS KB a stream"),
    Figure("p50_ms", "p50 ms"),
    Figure("p99_ms", "p99 ms"),
    Figure("mb_per_s", "MB/s", compared=False),
)


class Found:
    """The series of a run, by workload, system and variant."""

    def __init__(self, series: Sequence[Series]) -> None:
        self._series = {(each.workload, each.system, each.variant): each for each in series}

    def __iter__(self) -> Iterator[Series]:
        return iter(self._series.values())

    def get(self, workload: str, system: str, variant: int) -> Series | None:
        return self._series.get((workload, system, variant))

    def beside(self, series: Series, system: str) -> Series | None:
        """Another system's series of the same workload and variant."""
        return self.get(series.workload, system, series.variant)

    def workloads(self) -> list[str]:
        """In the order in which they were run."""
        return list(dict.fromkeys(workload for workload, _, _ in self._series))

    def of(self, workload: str) -> list[Series]:
        return [each for each in self if each.workload == workload]

    def figures(self, workload: str) -> list[Figure]:
        """Those that the workload has, the one that it is about first."""
        return [each for each in FIGURES if any(series.values(each.name) for series in self.of(workload))]


def brief(value: float | None) -> str:
    """Three digits, without an exponent; nothing for what there is not."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
