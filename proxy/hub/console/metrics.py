"""The metrics of the console."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from proxy.hub.console.front import ConsoleFront
from proxy.hub.console.sign_in import ConsoleSignIn


@attrs.frozen
class ConsoleCollector(Collector):
    """Sessions, connections and sign-ins, of this hub."""

    front: ConsoleFront
    sign_in: ConsoleSignIn

    def describe(self) -> Iterator[Metric]:
        """Name the metrics without reading anything, so that registering does not collect."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Read the gauges and the counter."""
        text = "Sessions of people with a request to this hub in the last 30 minutes."
        yield GaugeMetricFamily("hawse_console_sessions", text, self.sign_in.people.recent)
        connections = GaugeMetricFamily(
            "hawse_console_connections", "Open connections of the console's listener.", labels=["state"]
        )
        connections.add_metric(["authenticated"], self.front.connections.count)
        connections.add_metric(["unauthenticated"], self.front.admitter.limits.connections)
        yield connections
        text = "One-time codes that browsers have sent to the console."
        sign_ins = CounterMetricFamily("hawse_console_sign_ins", text, labels=["result"])
        sign_ins.add_metric(["accepted"], self.sign_in.signed_in)
        sign_ins.add_metric(["refused"], self.sign_in.refused)
        yield sign_ins
