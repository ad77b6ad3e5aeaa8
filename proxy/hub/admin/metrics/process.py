"""The hub's process for Prometheus: version, certificate, event loop, and events of the trail."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from audit.record import Kind
from audit.recording.recorder import Recorder
from proxy.process.metrics.loop_lag import LoopLag
from proxy.process.metrics.texts import BUILD, BUILD_HELP, EXPIRY, EXPIRY_HELP
from proxy.process.version import VERSION


@attrs.frozen
class ProcessMetrics(Collector):
    """Gauges and counters without a cost between scrapes, but for the lag's two samples a second."""

    recorder: Recorder
    lag: LoopLag
    expires_at: Callable[[], float]
    """When the certificate of the public listener expires, in epoch seconds."""

    def describe(self) -> Iterator[Metric]:
        """Name the metrics without reading anything, so that registering does not collect."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Read the gauges and the counter."""
        build = GaugeMetricFamily(BUILD, BUILD_HELP, labels=["version"])
        build.add_metric([VERSION], 1)
        yield build
        expiry = GaugeMetricFamily(EXPIRY, EXPIRY_HELP, labels=["which"])
        expiry.add_metric(["public"], self.expires_at())
        yield expiry
        text = "How late the event loop runs what is due: the 99th percentile of the last minute."
        yield GaugeMetricFamily("hawse_loop_lag_seconds", text, self.lag.p99_s)
        text = "Events that wait for the audit trail."
        yield GaugeMetricFamily("hawse_audit_queue_events", text, self.recorder.queued)
        text = "Events of the audit trail since the start, by kind. Calls have hawse_calls_total."
        events = CounterMetricFamily("hawse_events", text, labels=["kind"])
        for kind in Kind:
            if kind is not Kind.CALL:
                # With zeros, so that an alert sees the first one.
                events.add_metric([kind], self.recorder.kinds[kind])
        yield events
