from __future__ import annotations

from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from audit.record import Actor, ActorType, Cluster, Event, Kind, Phase, Response, Stream
from proxy.hub.admin.metrics.calls import _BUCKETS_S, CallMetrics


def ended(
    *, status: int = 200, cluster_id: str = "c-1", dur_ms: float | None = 1.0, stream: Stream | None = None
) -> Event:
    return Event(
        eid="e",
        kind=Kind.CALL,
        phase=Phase.COMPLETE,
        ts=datetime(2026, 1, 1, tzinfo=UTC),
        actor=Actor(ActorType.AGENT, "ann"),
        cluster=Cluster(cluster_id, "prod"),
        resp=Response(status) if status else None,
        dur_ms=dur_ms,
        stream=stream,
    )


def test_the_metrics_equal_the_librarys_own_counters() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    metrics = CallMetrics(ours)
    calls = Counter(
        "hawse_calls",
        "Kubernetes API calls, also refused ones, by cluster and answer (0: none).",
        ["cluster", "status"],
        registry=theirs,
    )
    seconds = Histogram(
        "hawse_call_seconds",
        "Duration of calls that are neither watches nor streams.",
        registry=theirs,
        buckets=_BUCKETS_S,
    )
    for status, dur_ms in [(200, 0.5), (200, 5.0), (404, 5.125), (200, 60_000.0), (503, 61_000.0), (0, 0.0)]:
        metrics.observe(ended(status=status, dur_ms=dur_ms))
        calls.labels("prod", str(status)).inc()
        seconds.observe(dur_ms / 1000)

    def lines(registry: CollectorRegistry) -> list[str]:
        # The library also exports when it created each counter, which no dashboard needs.
        return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]

    assert lines(ours) == lines(theirs)


def test_a_stream_has_no_duration_and_a_cluster_that_is_not_enrolled_no_label() -> None:
    registry = CollectorRegistry()
    metrics = CallMetrics(registry)
    metrics.observe(ended(stream=Stream("http"), dur_ms=9.0))
    metrics.observe(ended(cluster_id="", status=403, dur_ms=None))
    assert registry.get_sample_value("hawse_call_seconds_count") == 0
    assert registry.get_sample_value("hawse_calls_total", {"cluster": "", "status": "403"}) == 1
