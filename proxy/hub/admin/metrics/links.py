"""The metrics of the links between hubs, and of the calls that hubs forward to one another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from proxy.hub.admin.actions.hub import Hubs
from proxy.hub.peers.link import PeerLink


class Links(Protocol):
    """The part of the mesh that this module uses (proxy.hub.peers.mesh)."""

    @property
    def links(self) -> Sequence[PeerLink]:
        """The links that have not ended."""
        ...


class Forwarded(Protocol):
    """The calls that other hubs forward to this one (proxy.hub.hop.forwarded)."""

    @property
    def count(self) -> int:
        """Those that are open."""
        ...

    @property
    def begun(self) -> int:
        """Those that were passed on to a relay, since the start."""
        ...


class LinkCollector(Collector):
    """Gauges without a cost between scrapes. Their label is a hub's id: a few, which stay over restarts."""

    def __init__(self, hubs: Hubs, links: Links, forwarded: Forwarded) -> None:
        self._hubs = hubs
        self._links = links
        self._forwarded = forwarded

    def describe(self) -> Iterator[Metric]:
        """Name the metrics without reading anything, so that registering does not collect."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Read the gauges and the counter."""
        text = "Whether this hub has a link to another one that takes streams, by the other hub's id."
        up = GaugeMetricFamily("hawse_link_up", text, labels=["hub"])
        text = "Round trip on the link to another hub."
        rtt = GaugeMetricFamily("hawse_link_rtt_seconds", text, labels=["hub"])
        text = "Streams open on the link to another hub: two for routes, forwarded calls, and questions."
        streams = GaugeMetricFamily("hawse_link_streams", text, labels=["hub"])
        me = self._hubs.me.hub
        # A replaced process of this hub, or of another one, has its successor's id, and ends soon.
        others = sorted({member.hub for member in self._hubs.others() if member.hub != me})
        for hub in others:
            mine = [link for link in self._links.links if link.member.hub == hub]
            up.add_metric([hub], any(link.up for link in mine))
            streams.add_metric([hub], sum(link.session.stream_count for link in mine))
            times = [link.session.rtt_s for link in mine if link.session.rtt_s is not None]
            if times:
                rtt.add_metric([hub], times[-1])
        yield from (up, rtt, streams)
        text = "Calls that other hubs forward to this one, whose relays are here, and that are open."
        yield GaugeMetricFamily("hawse_forwarded_calls_open", text, self._forwarded.count)
        text = "Calls that other hubs have forwarded to this one and that it has passed on to a relay."
        yield CounterMetricFamily("hawse_forwarded_calls", text, self._forwarded.begun)
