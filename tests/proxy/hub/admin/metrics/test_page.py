"""The page that Prometheus scrapes."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from proxy.hub.admin.metrics.page import page


@attrs.frozen(eq=False)
class Gauges(Collector):
    reads: list[str]

    def collect(self) -> Iterator[Metric]:
        for name in ("one", "two", "three", "four"):
            self.reads.append(name)
            gauge = GaugeMetricFamily(name, "A gauge.", labels=["cluster"])
            gauge.add_metric(['a"b'], 1)
            yield gauge


async def test_other_tasks_run_between_two_metrics_of_a_page() -> None:
    reads: list[str] = []
    registry = CollectorRegistry()
    registry.register(Gauges(reads))
    whole = generate_latest(registry)
    reads.clear()

    async def other() -> None:
        while "four" not in reads:
            reads.append("other")
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        assert await page(registry) == whole
    gauges = [at for at, name in enumerate(reads) if name != "other"]
    # Trio runs the tasks of a batch in any order: two gauges of two batches may be neighbours, but not three.
    assert all("other" in reads[one:three] for one, three in zip(gauges, gauges[2:], strict=False))
