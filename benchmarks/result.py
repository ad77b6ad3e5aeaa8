"""The result of a run, and of several runs together."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs


@attrs.frozen
class Measurement:
    """One line of the results, as `--json` writes it; None where a workload has no such figure."""

    workload: str
    system: str
    variant: int
    """The connections or streams."""
    cpu_us_per_request: float | None = None
    cpu_s_per_gb: float | None = None
    """GB is 1e9 bytes."""
    p50_ms: float | None = None
    p99_ms: float | None = None
    mb_per_s: float | None = None
    rss_kb_per_stream: float | None = None


@attrs.frozen
class Sample:
    """One short run of a workload against a system."""

    measurement: Measurement
    cpu_s: Mapping[str, float] = attrs.Factory(dict)
    """By process: the system's, which the measurement counts; `load` and `upstream`, which it does not."""
    notes: Mapping[str, float] = attrs.Factory(dict)
    """What else the workload counted, by name with the unit last: `{"served": 50, "events_per_s": 900.0}`."""


@attrs.frozen
class Series:
    """The samples of one workload, system and variant, in the order in which they were taken.

    The n-th samples of two systems are neighbours in time, so that their ratio is of one moment.
    """

    samples: tuple[Sample, ...] = attrs.field(validator=attrs.validators.min_len(1))

    @property
    def workload(self) -> str:
        return self.samples[0].measurement.workload

    @property
    def system(self) -> str:
        return self.samples[0].measurement.system

    @property
    def variant(self) -> int:
        return self.samples[0].measurement.variant

    def values(self, name: str) -> list[float]:
        """A figure's values, one a run; empty when the workload does not have it."""
        values = (getattr(sample.measurement, name) for sample in self.samples)
        return [value for value in values if value is not None]

    def figure(self, name: str) -> float | None:
        """A figure as `measurement` has it."""
        value: float | None = getattr(self.measurement(), name)
        return value

    def cpu_of(self, process: str, factor: Callable[[Sample], float]) -> float:
        """The CPU seconds of one process times a run's factor, in the run where that is least."""
        return min(sample.cpu_s.get(process, 0.0) * factor(sample) for sample in self.samples)

    def minimum(self, name: str) -> float | None:
        return min(self.values(name), default=None)

    def median(self, name: str) -> float | None:
        values = self.values(name)
        return statistics.median(values) if values else None

    def measurement(self) -> Measurement:
        """The series in one line: CPU time is the minimum, memory the maximum, the rest are medians.

        A disturbance only ever adds CPU time, so that the minimum is the run that was disturbed least; the
        tables have the medians as well. Memory that a process has kept since the run before hides what this
        run needs. Of latency and throughput the best run would be luck.
        """
        return attrs.evolve(
            self.samples[0].measurement,
            cpu_us_per_request=self.minimum("cpu_us_per_request"),
            cpu_s_per_gb=self.minimum("cpu_s_per_gb"),
            rss_kb_per_stream=max(self.values("rss_kb_per_stream"), default=None),
            p50_ms=self.median("p50_ms"),
            p99_ms=self.median("p99_ms"),
            mb_per_s=self.median("mb_per_s"),
        )


def group(samples: Iterable[Sample]) -> list[Series]:
    """Samples by workload, system and variant, in the order of their first appearance."""
    found: dict[tuple[str, str, int], list[Sample]] = {}
    for sample in samples:
        of = sample.measurement
        found.setdefault((of.workload, of.system, of.variant), []).append(sample)
    return [Series(tuple(members)) for members in found.values()]


def ratio(series: Series, yardstick: Series, name: str) -> float | None:
    """The median over the runs of one system's figure over that of another, run by run."""
    pairs = zip(series.values(name), yardstick.values(name), strict=False)
    ratios = [ours / theirs for ours, theirs in pairs if theirs > 0]
    return statistics.median(ratios) if ratios else None


def quantile(ordered: Sequence[float], q: float) -> float:
    """The value that a share `q` of the sorted values does not exceed (nearest rank)."""
    if not ordered:
        raise ValueError("no values, no quantile")
    return ordered[max(0, -(-int(q * 1e6) * len(ordered) // 1_000_000) - 1)]


def milliseconds(ordered_ns: Sequence[int], q: float) -> float:
    """A quantile of sorted nanoseconds, in milliseconds."""
    return quantile(ordered_ns, q) / 1e6
