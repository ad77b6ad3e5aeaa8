"""The shapes of answers about the fleet, for the API's description. Times are RFC 3339, in UTC.

The actions build their answers as dictionaries, most of them from rows of the store. A test compares each
answer with its shape.
"""

from __future__ import annotations

import msgspec


class Agent(msgspec.Struct):
    """An agent."""

    name: str
    id: str
    owner: str
    state: str
    """`active`, `locked` or `retired`."""
    teams: list[str]
    clusters: list[str]
    """The clusters that its teams may reach."""
    created_at: str
    last_used_at: str | None


class Agents(msgspec.Struct):
    """A page of agents, by name."""

    agents: list[Agent]
    total: int
    """How many match, on all pages."""
    states: dict[str, int]


class Key(msgspec.Struct):
    """A key of an agent. The key itself was shown once."""

    id: str
    type: str
    """`api-key`, or `key` for one that the agent made."""
    hint: str
    created_at: str
    last_used_at: str | None
    revoked_at: str | None


class OpenCode(msgspec.Struct):
    """An unused enrolment code."""

    expires_at: str


class BoundPolicy(msgspec.Struct):
    """A policy that binds an agent, and on which clusters."""

    name: str
    clusters: list[str] | None


class AgentDetail(Agent):
    """An agent with its credentials and policies."""

    keys: list[Key]
    codes: list[OpenCode]
    policies: list[BoundPolicy]
    limits: dict[str, int]
    """By their keys in the configuration of this hub (`limits`); 0 is none."""


class Cluster(msgspec.Struct):
    """A cluster."""

    name: str
    id: str
    mode: str
    labels: dict[str, str]
    teams: list[str]
    relay_keys: list[str]
    """The ids of the keys with which its relays authenticate."""
    relay_url: str | None
    relay_address_private: bool
    relays: int
    """Relays that are connected, at all hubs."""
    cluster_uid: str | None
    """The UID of the namespace kube-system that it is pinned to."""
    created_at: str


class ListedCluster(Cluster):
    """A cluster in a list."""

    last_seen_at: str | None


class Clusters(msgspec.Struct):
    """A page of clusters, by name."""

    clusters: list[ListedCluster]
    total: int


class ClusterDetail(Cluster):
    """A cluster with the agents that may reach it."""

    agents: list[str]


class Team(msgspec.Struct):
    """A team."""

    name: str
    id: str
    group: str
    """The Kubernetes group of its agents."""
    agents: list[str]
    clusters: list[str]
    created_at: str


class Teams(msgspec.Struct):
    """A page of teams, by name."""

    teams: list[Team]
    total: int


class Relay(msgspec.Struct):
    """A tunnel of a relay, or the last contact of a relay that has none."""

    cluster: str
    instance: str
    connected: bool
    leaving: bool
    hub: str
    version: str
    address: str
    connected_at: str
    last_seen_at: str
    rtt_ms: float | None
    streams: int | None
    key: str
    api_server: str | None
    """`up` or `down`; null if the relay does not say."""
    pinned: bool | None


class Relays(msgspec.Struct):
    """All relays, by cluster."""

    relays: list[Relay]


class Hub(msgspec.Struct):
    """This hub."""

    org: str
    public_url: str
    version: str
    ca_pem: str | None
    signing_key: str


class Token(msgspec.Struct):
    """An admin token. The token itself was shown once."""

    name: str
    id: str
    role: str
    role_chosen: bool
    remote: bool
    expires_at: str | None
    created_at: str
    last_used_at: str | None
    warnings: list[str]


class Tokens(msgspec.Struct):
    """All admin tokens, by name."""

    tokens: list[Token]
