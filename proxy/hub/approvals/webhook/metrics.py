"""Counts the messages of the webhooks, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class Outcome(StrEnum):
    """What became of an attempt."""

    DELIVERED = "delivered"
    FAILED = "failed"
    """It is tried again."""
    DROPPED = "dropped"
    """It was the last one."""


class WebhookMetrics(Collector):
    """The attempts of this hub, by webhook and outcome."""

    def __init__(self, webhooks: Iterable[str]) -> None:
        # With zeros, so that an alert on a rate sees the first failure.
        self._counts = {(name, outcome): 0 for name in webhooks for outcome in Outcome}

    def count(self, webhook: str, outcome: Outcome) -> None:
        """Count an attempt."""
        self._counts[webhook, outcome] += 1

    def describe(self) -> Iterator[Metric]:
        """Name the metrics without reading anything, so that registering does not collect."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Build the metrics from the counters."""
        attempts = CounterMetricFamily(
            "hawse_webhook_attempts",
            "Messages sent to webhooks, by webhook and outcome (delivered, failed, dropped).",
            labels=["webhook", "outcome"],
        )
        for (name, outcome), count in self._counts.items():
            attempts.add_metric([name, outcome], count)
        yield attempts
