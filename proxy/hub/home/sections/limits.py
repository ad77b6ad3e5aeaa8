"""The configuration of the limits of agents and relays: its keys, and their rules."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from auth.principal import IdentityError, slug

# A stream may hold a window of up to 4 MiB at both ends; one agent's 10,000 could use the whole budget.
STREAMS_PER_AGENT_MAX = 10_000
# Enough for some concurrent calls, each with an intent and an end that both hold a command of 64 KiB.
AUDIT_BYTES_AT_ONCE_MIN = 1_000_000
# The replicas of the printed manifests. A relay that is going away does not count.
RELAYS_PER_CLUSTER = 2
# Twice as many, counting relays that are going away, still fit the registry's limit for a cluster.
RELAYS_PER_CLUSTER_MAX = 8
# With two, no cluster is offline when a hub dies. Each one more saves hops between hubs, and costs every hub
# its share of the tunnels: 84 KB and 24 µs/s for each.
TUNNELS_PER_RELAY = 2
TUNNELS_PER_RELAY_MAX = 8


@attrs.frozen
class AgentLimitsConfig:
    """The limits of one agent that differ from the general ones."""

    streams_per_agent: int | None = None
    requests_per_second: int | None = None
    cancels_per_second: int | None = None
    bytes_per_minute: int | None = None
    stream_age_s: int | None = None
    stream_idle_in_s: int | None = None
    stream_idle_out_s: int | None = None
    idle_connections: int | None = None
    tokens_per_minute: int | None = None
    audit_bytes_per_second: int | None = None
    audit_bytes_at_once: int | None = None


@attrs.frozen
class LimitsConfig:
    """The limits of one agent. 0 means no limit, except for `streams_per_agent` and `audit_bytes_at_once`."""

    streams_per_agent: int = 256
    """Concurrent requests of one agent, including watches and execs; one more is answered 429."""
    requests_per_second: int = 500
    """The burst is twice as many. client-go limits itself to 50 a second by default."""
    cancels_per_second: int = 50
    """Calls that the client cancelled; the burst is ten times as many."""
    bytes_per_minute: int = 6 * 1024**3
    """In both directions together: 100 MiB/s. Calls above it are paused."""
    stream_age_s: int = 24 * 3600
    """The longest duration of any call."""
    stream_idle_in_s: int = 0
    """How long the client of an exec, attach or port-forward may send nothing."""
    stream_idle_out_s: int = 0
    """How long the cluster may send nothing on a call whose answer has begun."""
    idle_connections: int = 256
    """Idle connections of one agent; above the limit the longest idle are closed."""
    tokens_per_minute: int = 2_000
    """With any credential. Each token is an event of the trail, whose disk all agents share."""
    audit_bytes_per_second: int = 64_000
    """What its events may add to the audit trail: 5.5 GB a day. 50 reads and 5 writes a second add half."""
    audit_bytes_at_once: int = 256_000_000
    """The burst of `audit_bytes_per_second`: some 400,000 reads."""
    relays_per_cluster: int = RELAYS_PER_CLUSTER
    """Relays of one cluster in tunnel mode, not counting those that are going away; one more is refused."""
    tunnels_per_relay: int = TUNNELS_PER_RELAY
    """Tunnels of one relay, each to another hub; a hub without `peer` asks for one."""
    agents: Mapping[str, AgentLimitsConfig] = attrs.field(factory=dict)
    """Other limits for single agents, by name."""

    def of(self, agent: str) -> LimitsConfig:
        """Return the limits of one agent."""
        own = self.agents.get(agent)
        if own is None:
            return self
        return attrs.evolve(self, **attrs.asdict(own, filter=lambda _, value: value is not None))

    def by_key(self, agent: str) -> dict[str, int]:
        """Return the limits of one agent by their keys in the configuration."""
        limits = self.of(agent)
        return {field.name: getattr(limits, field.name) for field in attrs.fields(AgentLimitsConfig)}


def faults_of_limits(limits: LimitsConfig) -> list[str]:
    """Return the violations of the rules that a type cannot express."""
    faults = _check_limits("limits", limits)
    faults.extend(_check_agents(limits.agents))
    if not 1 <= limits.relays_per_cluster <= RELAYS_PER_CLUSTER_MAX:
        faults.append(f"limits.relays_per_cluster: expected 1 to {RELAYS_PER_CLUSTER_MAX}")
    if not 1 <= limits.tunnels_per_relay <= TUNNELS_PER_RELAY_MAX:
        faults.append(f"limits.tunnels_per_relay: expected 1 to {TUNNELS_PER_RELAY_MAX}")
    return faults


def _check_agents(agents: Mapping[str, AgentLimitsConfig]) -> list[str]:
    faults = []
    for name, own in sorted(agents.items()):
        try:
            slug("agent name", name)
        except IdentityError as error:
            faults.append(f"limits.agents: {error}")
        faults.extend(_check_limits(f"limits.agents.{name}", own))
    return faults


def _check_limits(path: str, limits: LimitsConfig | AgentLimitsConfig) -> list[str]:
    faults = []
    for field in attrs.fields(AgentLimitsConfig):
        value = getattr(limits, field.name)
        if value is None:
            continue
        if field.name == "streams_per_agent" and not 1 <= value <= STREAMS_PER_AGENT_MAX:
            faults.append(f"{path}.{field.name}: expected 1 to {STREAMS_PER_AGENT_MAX}")
        elif field.name == "audit_bytes_at_once" and value < AUDIT_BYTES_AT_ONCE_MIN:
            faults.append(f"{path}.{field.name}: expected {AUDIT_BYTES_AT_ONCE_MIN} or more")
        elif value < 0:
            faults.append(f"{path}.{field.name}: expected 0 (no limit) or more")
    return faults
