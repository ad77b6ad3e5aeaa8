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
    person: str
    """Who approves with it; "" but for the role approver."""


class Tokens(msgspec.Struct):
    """All admin tokens, by name."""

    tokens: list[Token]


class Change(msgspec.Struct):
    """One difference that a call would make."""

    path: str
    before: str | None
    """JSON; null where there was nothing."""
    after: str | None


class Request(msgspec.Struct):
    """A request for approval of one exact call."""

    id: str
    state: str
    """`pending`, `approved`, `using`, `denied`, `used`, `expired`, `cancelled`, `stale` or `revoked`."""
    agent: str
    owner: str
    """The agent's."""
    cluster: str
    what: str
    """The call in one line."""
    reason: str
    """Of the rule."""
    rule: str
    """`POLICY/RULE`."""
    approvers: list[str]
    claimed_reason: str
    """The agent's own reason, which nothing verifies."""
    interactive: bool
    """What is sent later is not seen."""
    summary: str
    """What the call would do, in one sentence."""
    flags: list[str]
    too_large: bool
    """The difference is too large to be approved."""
    shown: str
    """The digest that an approval names."""
    created_at: str
    expires_at: str
    decided_by: str
    answer: str
    """The words of a denial."""
    decided_at: str | None
    valid_until: str | None
    """Until when an approval may be used."""
    ended_at: str | None
    may_approve: bool
    """Whether the caller may approve it now."""
    may_not: str
    """Why not."""


class Requests(msgspec.Struct):
    """A page of requests, the newest first."""

    requests: list[Request]
    more: bool
    """Whether older ones match."""
    open: dict[str, int]
    """All open requests by state: `pending`, `approved`, `using`."""


class RequestDetail(Request):
    """A request with all that an approver sees of it."""

    bundle: str
    valid_for_s: int
    """How long after its approval it may be used."""
    uses_returned: int
    changes: list[Change]
    left_out: list[str]
    """Paths that differ from one dry run to the next."""
    notes: list[str]
    """What is not seen."""
    body: str
    """What the call writes or deletes, masked, where there is no difference to show."""
    body_is: str
    """What `body` is, in words."""
    call: str
    """The method, the path and the query, to which an approval is bound; "" once deleted."""
    kubectl: str
    """The call as a kubectl command, without what it sends; "" if there is none."""
    because: str
    """Why it was cancelled, is stale or was revoked."""
    view_deleted: bool
    """Whether what was shown is deleted, some days after the end."""
