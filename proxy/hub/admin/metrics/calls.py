"""Call metrics for Prometheus: counts by answer and by what denied them, and durations of ordinary calls.

Calls are counted in plain numbers, which become metrics when they are collected. The library's own counters
would cost 5 µs per call, a tenth of the time of a small one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from audit.record import Decision, Event, Kind
from proxy.hub.authorize.events import GUARDRAILS
from proxy.hub.calls.outcome import CloseReason

# A list within a cluster takes milliseconds; a webhook may take half a minute.
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_BUCKETS_MS = tuple(bound * 1000 for bound in _BUCKETS_S)
# What denies a call, and why a call is ended before its end.
_DENIED_BY = ("policy", "approval", "guardrail", "limit", "other")
# The rules that a refusal by a limit names.
_LIMITS = ("limits.", "memory_mib")
_KILLED_FOR = tuple(
    reason.value
    for reason in (CloseReason.KILLED, CloseReason.REVOKED, CloseReason.DEADLINE, CloseReason.OVERLOADED)
)


class CallMetrics(Collector):
    """Counts calls by cluster and status. Both are bounded: enrolled clusters, and HTTP's codes.

    The other labels are fixed words. Nothing that an agent chooses becomes a label, and no agent does.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls: dict[tuple[str, int], int] = {}
        # One counter per bucket, and one for longer calls.
        self._durations = [0] * (len(_BUCKETS_MS) + 1)
        self._duration_ms = 0.0
        # With zeros, so that an alert on a rate sees the first one.
        self._denied = dict.fromkeys(_DENIED_BY, 0)
        self._killed = dict.fromkeys((*_KILLED_FOR, "other"), 0)
        registry.register(self)

    def observe(self, event: Event) -> None:
        """Count a call by its closing event."""
        # A refusal may name a cluster that is not enrolled; only a cluster with an id becomes a label.
        cluster, resp = event.cluster, event.resp
        name = cluster.name if cluster is not None and cluster.id else ""
        key = name, resp.status if resp is not None else 0
        self._calls[key] = self._calls.get(key, 0) + 1
        decision = event.decision
        if decision is not None and decision.effect != "allow":
            self._denied[_denied_by(decision)] += 1
        if event.kind is Kind.SESSION_KILLED:
            # An ordinary call has no reason in its event.
            reason = event.stream.close_reason if event.stream is not None else ""
            self._killed[reason if reason in self._killed else "other"] += 1
        took_ms = event.dur_ms
        if took_ms is not None and event.stream is None:
            self._durations[bisect_left(_BUCKETS_MS, took_ms)] += 1
            self._duration_ms += took_ms

    def describe(self) -> Iterator[Metric]:
        """Name the metrics without reading anything, so that registering does not collect."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Build the metrics from the counters."""
        calls = CounterMetricFamily(
            "hawse_calls",
            "Kubernetes API calls, also refused ones, by cluster and answer (0: none).",
            labels=["cluster", "status"],
        )
        for (cluster, status), count in self._calls.items():
            calls.add_metric([cluster, str(status)], count)
        yield calls
        denied = CounterMetricFamily(
            "hawse_calls_denied",
            "Calls that were denied, by what denied them.",
            labels=["by"],
        )
        for by, count in self._denied.items():
            denied.add_metric([by], count)
        yield denied
        killed = CounterMetricFamily(
            "hawse_sessions_killed", "Open calls that the hub has ended, by reason.", labels=["reason"]
        )
        for reason, count in self._killed.items():
            killed.add_metric([reason], count)
        yield killed
        bounds = [*map(str, _BUCKETS_S), "+Inf"]
        yield HistogramMetricFamily(
            "hawse_call_seconds",
            "Duration of calls that are neither watches nor streams.",
            buckets=list(zip(bounds, accumulate(self._durations), strict=True)),
            sum_value=self._duration_ms / 1000,
        )


def _denied_by(decision: Decision) -> str:
    """Return what denied a call, one of _DENIED_BY."""
    if decision.effect == "ask":
        return "approval"
    if decision.policy == GUARDRAILS:
        return "guardrail"
    if decision.bundle:
        return "policy"
    return "limit" if decision.rule.startswith(_LIMITS) else "other"
