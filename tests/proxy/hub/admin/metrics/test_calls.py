from __future__ import annotations

from datetime import UTC, datetime

import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.samples import Sample

from audit.record import Actor, ActorType, Cluster, Decision, Event, Kind, Phase, Response, Stream
from proxy.hub.admin.metrics.calls import _BUCKETS_S, CallMetrics
from proxy.hub.authorize.events import GUARDRAILS


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
        lines = generate_latest(registry).decode().splitlines()
        others = ("_created", "hawse_calls_denied", "hawse_sessions_killed")
        return [line for line in lines if not any(name in line for name in others)]

    assert lines(ours) == lines(theirs)


def test_a_stream_has_no_duration_and_a_cluster_that_is_not_enrolled_no_label() -> None:
    registry = CollectorRegistry()
    metrics = CallMetrics(registry)
    metrics.observe(ended(stream=Stream("http"), dur_ms=9.0))
    metrics.observe(ended(cluster_id="", status=403, dur_ms=None))
    assert registry.get_sample_value("hawse_call_seconds_count") == 0
    assert registry.get_sample_value("hawse_calls_total", {"cluster": "", "status": "403"}) == 1


DENIALS = [
    (Decision("deny", "no-secrets", "base", "7-0144c5"), "policy"),
    (Decision("deny", "no-rule-allows", "", "7-0144c5"), "policy"),
    (Decision("deny", "no-exec", GUARDRAILS), "guardrail"),
    (Decision("ask", "deletes", "base", "7-0144c5"), "approval"),
    (Decision("deny", "limits.requests_per_second"), "limit"),
    (Decision("deny", "memory_mib"), "limit"),
    (Decision("deny", "directory"), "other"),
]


@pytest.mark.parametrize(("decision", "by"), DENIALS)
def test_a_denied_call_is_counted_by_what_denied_it(decision: Decision, by: str) -> None:
    registry = CollectorRegistry()
    metrics = CallMetrics(registry)
    allowed = replace(ended(), decision=Decision("allow", "reads", "base", "7-0144c5"))
    metrics.observe(allowed)
    metrics.observe(replace(allowed, decision=decision))
    counts = {sample.labels["by"]: sample.value for sample in samples_of(registry, "hawse_calls_denied")}
    assert counts == {**dict.fromkeys(("policy", "guardrail", "approval", "limit", "other"), 0), by: 1}


@pytest.mark.parametrize("reason", ["killed", "revoked", "deadline", "overloaded", "other"])
def test_a_call_that_the_hub_ends_is_counted_by_the_reason(reason: str) -> None:
    registry = CollectorRegistry()
    metrics = CallMetrics(registry)
    # Only a stream says how it ended.
    stream = Stream("http", close_reason=reason) if reason != "other" else None
    metrics.observe(replace(ended(stream=stream), kind=Kind.SESSION_KILLED))
    metrics.observe(ended(stream=Stream("http", close_reason="deadline")))
    counts = {
        sample.labels["reason"]: sample.value for sample in samples_of(registry, "hawse_sessions_killed")
    }
    assert [name for name, count in counts.items() if count] == [reason]


def samples_of(registry: CollectorRegistry, name: str) -> list[Sample]:
    return [sample for family in registry.collect() if family.name == name for sample in family.samples]
