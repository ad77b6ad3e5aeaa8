"""What Prometheus learns of each call: how many, how they ended, how long the ordinary ones took."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from audit.record import Event

# A list within a cluster takes milliseconds; a webhook may take its half minute.
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class CallMetrics:
    """Counts calls by cluster and status. Both are bounded: enrolled clusters, and HTTP's codes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Counter(
            "hawse_calls",
            "Kubernetes API calls, also refused ones, by cluster and answer (0: none).",
            ["cluster", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "hawse_call_seconds",
            "Duration of calls that are neither watches nor streams.",
            registry=registry,
            buckets=_BUCKETS_S,
        )
        # `labels` looks up by a tuple of strings it makes anew; a kept child costs a third of that.
        self._children: dict[tuple[str, int], Counter] = {}

    def observe(self, event: Event) -> None:
        """Count a call by its closing event."""
        # A refusal may name a cluster that nobody enrolled; only an id makes it a label.
        cluster = event.cluster.name if event.cluster is not None and event.cluster.id else ""
        status = event.resp.status if event.resp is not None else 0
        child = self._children.get((cluster, status))
        if child is None:
            child = self._children[cluster, status] = self._calls.labels(cluster, str(status))
        child.inc()
        if event.stream is None and event.dur_ms is not None:
            self._seconds.observe(event.dur_ms / 1000)
