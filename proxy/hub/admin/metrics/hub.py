"""The hub's metrics for Prometheus, read from the snapshot and the live sessions at each scrape."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from proxy.hub.admin.actions.requests import Requests
from proxy.hub.approvals.request import State
from proxy.hub.health.trail_watch import TrailWatch
from proxy.hub.identity.enrol import EnrolmentEndpoint
from proxy.hub.identity.replay_store import ReplayStore
from proxy.hub.membership.members import Members
from proxy.hub.relays.operations import Operations
from proxy.hub.store.directory import Directory
from proxy.hub.store.entities import AgentState, Mode
from proxy.listener.unauthenticated import UnauthenticatedLimits
from proxy.process.memory.memory_metrics import LIMIT, LIMIT_HELP, USED, USED_HELP, used_by
from tunnel import Memory

if TYPE_CHECKING:
    from proxy.hub.health.database_watch import DatabaseWatch


class HubCollector(Collector):
    """Gauges without a cost between scrapes. Their labels are clusters and states, which are bounded."""

    def __init__(self, directory: Directory, operations: Operations) -> None:
        self._directory = directory
        self._operations = operations
        # Ids of clusters with a relay at an earlier scrape. A relay of an older ClusterRole pins no cluster.
        self._heard: set[str] = set()

    def describe(self) -> Iterator[Metric]:
        """Name the metrics without reading anything, so that registering does not collect."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Read the gauges."""
        text = "Time since the database has last confirmed the state by which the hub decides."
        yield GaugeMetricFamily("hawse_directory_age_seconds", text, self._directory.age_s)
        now = self._directory.current
        states = Counter(agent.state for agent in now.agents_by_id.values())
        agents = GaugeMetricFamily("hawse_agents", "Enrolled agents by state.", labels=["state"])
        for state in AgentState:
            agents.add_metric([state], states[state])
        yield agents
        yield GaugeMetricFamily("hawse_clusters", "Enrolled clusters.", len(now.clusters_by_id))
        text = "1, with the version of the policies in force, as the trail's decisions name it."
        bundle = GaugeMetricFamily("hawse_policy_bundle", text, labels=["version"])
        bundle.add_metric([now.bundle.id], 1)
        yield bundle

        relays = GaugeMetricFamily("hawse_relays", "Connected relay instances.", labels=["cluster"])
        expected = GaugeMetricFamily(
            "hawse_relays_expected",
            "1 for a cluster whose relays have connected by a tunnel before, else 0.",
            labels=["cluster"],
        )
        streams = GaugeMetricFamily("hawse_streams", "Open streams to relays.", labels=["cluster"])
        seen = GaugeMetricFamily(
            "hawse_relay_last_seen_seconds", "When a relay of the cluster was last heard.", labels=["cluster"]
        )
        down = GaugeMetricFamily(
            "hawse_relays_api_server_down",
            "Connected relay instances whose API server did not answer their last probe.",
            labels=["cluster"],
        )
        # Grouped once: a search for each of thousands of clusters would block the loop for a second.
        live = defaultdict(list)
        for relay in self._operations.relays():
            live[relay.cluster].append(relay)
        heard = {cluster.id for name, cluster in now.clusters_by_name.items() if name in live}
        self._heard = (self._heard | heard) & now.clusters_by_id.keys()
        for name, cluster in sorted(now.clusters_by_name.items()):
            # A cluster without a connected relay is a 0, not a missing line, so that alerts can match it.
            mine = live.get(name, ())
            relays.add_metric([name], len(mine))
            before = cluster.cluster_uid is not None or cluster.id in self._heard
            expected.add_metric([name], cluster.mode is Mode.TUNNEL and before)
            streams.add_metric([name], sum(relay.streams or 0 for relay in mine))
            down.add_metric([name], sum(relay.statement.api_server is False for relay in mine))
            if mine:
                seen.add_metric([name], max(relay.last_seen for relay in mine))
        yield from (relays, expected, streams, down, seen)


class MemoryCollector(Collector):
    """The use of the hub's counted memory."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def describe(self) -> Iterator[Metric]:
        """Name the metrics without reading anything, so that registering does not collect."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Read the gauges."""
        used = GaugeMetricFamily(USED, USED_HELP, labels=["by"])
        for holder, size in used_by(self._memory).items():
            used.add_metric([holder], size)
        yield used
        yield GaugeMetricFamily(LIMIT, LIMIT_HELP, self._memory.limit_bytes)


class ReplayCollector(Collector):
    """Counts the one-time tokens and codes whose use could not be written."""

    def __init__(self, store: ReplayStore, enrolment: EnrolmentEndpoint) -> None:
        self._store = store
        self._enrolment = enrolment

    def describe(self) -> Iterator[Metric]:
        """Name the metrics without reading anything, so that registering does not collect."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Read the counter."""
        text = "One-time tokens and enrolment codes whose use could not be written."
        unwritten = self._store.unwritten + self._enrolment.unwritten
        yield CounterMetricFamily("hawse_seen_unwritten", text, unwritten)


class ConnectionsCollector(Collector):
    """The unauthenticated connections of the public listener, and those that their limits have ended."""

    def __init__(self, limits: UnauthenticatedLimits) -> None:
        self._limits = limits

    def describe(self) -> Iterator[Metric]:
        """Name the metrics without reading anything, so that registering does not collect."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Read the gauge and the counter."""
        text = "Open connections that have not authenticated."
        yield GaugeMetricFamily("hawse_connections_unauthenticated", text, self._limits.connections)
        text = "Connections that were ended before they authenticated, for the limits on such connections."
        dropped = CounterMetricFamily("hawse_connections_dropped", text, labels=["how"])
        dropped.add_metric(["refused"], self._limits.refused)
        dropped.add_metric(["evicted"], self._limits.evicted)
        yield dropped


class TrailCollector(Collector):
    """Whether the trail can be written, and the free space of its disk at the last check."""

    def __init__(self, watch: TrailWatch) -> None:
        self._watch = watch

    def describe(self) -> Iterator[Metric]:
        """Name the metrics without reading anything, so that registering does not collect."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Read the gauges."""
        text = "Whether the audit trail can be written: while it is 0, writes and tokens are refused."
        yield GaugeMetricFamily("hawse_audit_up", text, self._watch.recorder.healthy)
        disk = self._watch.disk
        if disk is not None:
            text = "Size of the file system of the audit trail."
            yield GaugeMetricFamily("hawse_audit_disk_bytes", text, disk.size_bytes)
            text = "Free space of the file system of the audit trail."
            yield GaugeMetricFamily("hawse_audit_disk_free_bytes", text, disk.free_bytes)
            text = "Size of the audit trail's own files."
            yield GaugeMetricFamily("hawse_audit_bytes", text, disk.trail_bytes)


class DatabaseCollector(Collector):
    """Whether a database of PostgreSQL has lost changes, and the error of this machine's clock."""

    def __init__(self, watch: DatabaseWatch) -> None:
        self._watch = watch

    def describe(self) -> Iterator[Metric]:
        """Name the metrics without reading anything, so that registering does not collect."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Read the gauges."""
        text = (
            "Whether the database lacks changes that this hub has applied: while it is 1, calls are refused."
        )
        yield GaugeMetricFamily("hawse_directory_rolled_back", text, self._watch.lineage.loss is not None)
        text = "By how much the clock of this machine is ahead of the database's."
        yield GaugeMetricFamily("hawse_database_clock_error_seconds", text, self._watch.clock_error_s)


class RequestsCollector(Collector):
    """The requests for approval that are open at all hubs on the database."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    def describe(self) -> Iterator[Metric]:
        """Name the metrics without reading anything, so that registering does not collect."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Read the gauges."""
        counts = self._requests.open_states
        text = "Requests for approval that are open at all hubs on the database, by state."
        open_now = GaugeMetricFamily("hawse_requests_open", text, labels=["state"])
        for state in State:
            if state.open:
                open_now.add_metric([state], counts.get(state, 0))
        yield open_now
        text = "When the oldest request that waits for a person was opened; 0 while none waits."
        oldest = self._requests.oldest_pending
        yield GaugeMetricFamily("hawse_request_oldest_seconds", text, oldest or 0)


class LeaseCollector(Collector):
    """The lease of this hub, and the states of the hubs on its database."""

    def __init__(self, members: Members, directory: Directory) -> None:
        self._members = members
        self._directory = directory

    def describe(self) -> Iterator[Metric]:
        """Name the metrics without reading anything, so that registering does not collect."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Read the gauges."""
        text = "Whether the last renewal of this hub's lease in the database has succeeded."
        yield GaugeMetricFamily("hawse_lease_up", text, not self._members.fault)
        text = (
            "Hubs on the database, this one included, by state: serving, leaving, or silent, "
            "which is one whose lease is not renewed."
        )
        hubs = GaugeMetricFamily("hawse_hubs", text, labels=["state"])
        running = [self._members.me, *self._members.others()]
        states = Counter(each.state.value if each.living else "silent" for each in running)
        for state in ("serving", "leaving", "silent"):
            hubs.add_metric([state], states[state])
        yield hubs
        text = "Hubs on the database that have not applied all changes which this hub has applied."
        behind = sum(each.applied < self._directory.applied.version.number for each in self._members.others())
        yield GaugeMetricFamily("hawse_hubs_behind", text, behind)


def hub_metrics(directory: Directory, operations: Operations) -> CollectorRegistry:
    """Make the registry of one hub; the metrics of calls register themselves in it as well."""
    # Not the library's global registry, which two hubs in one test process would share.
    registry = CollectorRegistry()
    for standard in (ProcessCollector, PlatformCollector, GCCollector):
        standard(registry=registry)
    registry.register(HubCollector(directory, operations))
    return registry
