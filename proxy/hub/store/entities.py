"""The hub's entities: teams, agents, clusters and their keys, as frozen values, and a snapshot of them all.

Requests read the snapshot: dictionaries, no waiting, and one consistent state, because it is replaced as a
whole. Access is decided by ids, so a team or cluster that reuses an old name inherits no access.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeAlias

import attrs

from audit.store import TrailMark
from auth.federation import Rule
from auth.keys import PublicKey
from auth.policy.match import Bundle
from auth.principal import Principal
from proxy.hub.store.roles import Role
from proxy.hub.store.secrets.signing_keys import SealedKeys
from proxy.hub.store.versions.version import Version

# A session of the console without a request ends after this time, and any session after the second one.
IDLE_S = 30 * 60.0
SESSION_S = 12 * 3600.0


class AgentState(StrEnum):
    """Whether an agent may make requests."""

    ACTIVE = "active"
    LOCKED = "locked"
    """Refused until it is unlocked; its keys stay."""
    RETIRED = "retired"
    """Removed for good; the row stays, so that its name is never reused."""


class Mode(StrEnum):
    """Which side opens the connection between hub and relay."""

    TUNNEL = "tunnel"
    DIRECT = "direct"


@attrs.frozen
class Team:
    """A Kubernetes group, `<org>/<name>`."""

    id: str
    name: str
    created_at: float


@attrs.frozen
class Agent:
    """A principal; the user `agent:<name>` in every cluster that its teams were granted."""

    id: str
    name: str
    owner: str
    """The person responsible for the agent."""
    state: AgentState
    teams: tuple[str, ...]
    team_ids: frozenset[str]
    created_at: float
    principal: Principal | None
    """None only for a retired agent, which has no team; a principal always has one."""

    @property
    def active(self) -> bool:
        return self.state is AgentState.ACTIVE and self.principal is not None


@attrs.frozen
class ApiKey:
    """One API key of an agent; the key itself was shown once and is not stored."""

    id: str
    agent_id: str
    hint: str
    """The first characters of the key, by which its holder recognises it."""
    created_at: float
    revoked_at: float | None

    @property
    def label(self) -> str:
        """What the trail calls it."""
        return f"api-key:{self.id}"


@attrs.frozen
class AgentKey:
    """The public half of a key that an agent made and registered with a code."""

    id: str
    agent_id: str
    public: PublicKey
    created_at: float
    revoked_at: float | None

    @property
    def label(self) -> str:
        """What the trail calls it."""
        return f"key:{self.id}"


@attrs.frozen
class Issuer:
    """An issuer whose tokens identify workloads."""

    id: str
    url: str
    """Exactly as in its tokens, including a trailing slash."""
    jwks_url: str | None
    """The URL of its keys; None to use its discovery document."""
    jwks: str | None
    """Its keys, set by an operator; then nothing is fetched."""
    ca_pem: str | None
    address_private: bool
    """Whether its addresses may be private or loopback ones, which an operator must allow."""


@attrs.frozen
class FederationRule:
    """Maps an issuer's tokens with certain claims to an agent."""

    id: str
    agent_id: str
    issuer: Issuer
    rule: Rule
    created_at: float

    @property
    def label(self) -> str:
        """What the trail calls it."""
        return f"federation:{self.id}"


Credential: TypeAlias = ApiKey | AgentKey | FederationRule
"""The ways in which an agent authenticates."""


@attrs.frozen
class Code:
    """A one-time code with which an agent registers a key; the code was shown once and is not stored."""

    id: str
    agent_id: str
    created_at: float
    expires_at: float

    @property
    def label(self) -> str:
        """What the trail calls it."""
        return f"code:{self.id}"


@attrs.frozen
class Cluster:
    """A cluster behind its relay."""

    id: str
    name: str
    labels: Mapping[str, str]
    teams: tuple[str, ...]
    """Names of the teams that have access."""
    team_ids: frozenset[str]
    mode: Mode
    relay_keys: tuple[PublicKey, ...]
    """The keys with which its relays authenticate; more than one only while a key is replaced."""
    relay_url: str | None
    """Where the hub dials the relay in direct mode."""
    relay_ca_pem: str | None
    relay_address_private: bool
    """Whether `relay_url` may lead to a private or loopback address, which an operator must allow."""
    created_at: float
    cluster_uid: str | None = None
    """The UID of its namespace kube-system, pinned by the first relay that connected; None before that."""


@attrs.frozen
class AdminToken:
    """A bearer token of the admin API; the token itself was shown once and is not stored."""

    id: str
    name: str
    role: Role
    role_chosen: bool
    """False for a token that is older than roles and became `admin` by the migration."""
    created_at: float
    expires_at: float | None = None
    remote: bool = False
    """Whether it counts at the console's listener."""
    person: str = ""
    """Who approves with it, as rules name their approvers; "" but for the role approver."""

    def expired(self, now: float) -> bool:
        """Return whether the token has expired."""
        return self.expires_at is not None and now >= self.expires_at


@attrs.frozen
class ConsoleCode:
    """A one-time code that signs a browser in; the code was shown once and is not stored."""

    token_id: str
    operator: str
    """Who asked for it, as the trail names them."""
    created_at: float
    expires_at: float


@attrs.frozen
class ConsoleSession:
    """A person's session in the console; its cookie is not stored."""

    id: str
    token_id: str
    operator: str
    """Who asked for its code, as the trail names them."""
    created_at: float
    used_at: float
    """As of the reading of the row. Hubs write uses with a delay."""
    expires_at: float
    ip: str
    user_agent: str

    def ended(self, now: float, used_at: float = 0.0) -> bool:
        """Return whether it has ended, if it was last used then or as the row says."""
        return now >= self.expires_at or now >= max(used_at, self.used_at) + IDLE_S


@attrs.frozen
class RelayInstance:
    """The last known state of one relay process, connected or not."""

    cluster_id: str
    cluster: str
    instance: str
    boot: str
    version: str
    address: str
    connected_at: float
    last_seen_at: float
    disconnected_at: float | None


@attrs.frozen
class Snapshot:
    """One consistent state of the store, for reading without waiting.

    The times of last use are not in it: they change all the time, and no request depends on them.
    """

    org: str
    version: Version
    """The state of the directory that this is."""
    teams_by_name: Mapping[str, Team]
    agents_by_id: Mapping[str, Agent]
    agents_by_name: Mapping[str, Agent]
    clusters_by_id: Mapping[str, Cluster]
    clusters_by_name: Mapping[str, Cluster]
    api_keys_by_hash: Mapping[str, tuple[Agent, ApiKey]] = attrs.field(repr=False)
    """Keys that are not revoked, also those of locked agents."""
    agent_keys_by_kid: Mapping[str, tuple[Agent, AgentKey]]
    """Keys that are not revoked, also those of locked agents."""
    codes_by_hash: Mapping[str, tuple[Agent, Code]] = attrs.field(repr=False)
    """Unused codes, expired ones included: a reader checks `expires_at`."""
    issuers_by_url: Mapping[str, Issuer]
    rules_by_issuer: Mapping[str, tuple[tuple[Agent, FederationRule], ...]]
    """By the issuer's URL."""
    admin_tokens_by_hash: Mapping[str, AdminToken] = attrs.field(repr=False)
    bundle: Bundle
    """The policies in force; a new object if and only if they change."""
    console_codes: Mapping[str, tuple[AdminToken, ConsoleCode]] = attrs.field(factory=dict, repr=False)
    """By hash, expired ones included: a reader checks `expires_at`."""
    console_sessions: Mapping[str, tuple[AdminToken, ConsoleSession]] = attrs.field(factory=dict, repr=False)
    """By the hash of the cookie, ended ones included: a reader asks `ended`."""
    signing_keys: SealedKeys = attrs.field(factory=SealedKeys)
    """The hub's signing keys, sealed; none where they are in the data folder."""
    credentials: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """The valid credentials: the id that tokens name as their `sid` → the agent's id. Any other credential is
    revoked: its tokens are refused, and their calls are ended."""
    trail: TrailMark | None = None
    """The hub's audit trail and its highest number as last stored; None for a new hub."""
    faults: tuple[str, ...] = ()
    """Invalid rows, which are ignored, each with the reason."""
    _relay_keys: Mapping[str, tuple[str, PublicKey]] = attrs.field(init=False, repr=False)

    @_relay_keys.default
    def _index_relay_keys(self) -> Mapping[str, tuple[str, PublicKey]]:
        return {
            key.kid: (cluster.id, key)
            for cluster in self.clusters_by_id.values()
            for key in cluster.relay_keys
        }

    def find_relay_key(self, kid: str) -> tuple[str, PublicKey] | None:
        """Return the id of the cluster that a relay's key belongs to, and the key."""
        return self._relay_keys.get(kid)

    def find_agent_key(self, kid: str) -> tuple[str, PublicKey] | None:
        """Return the name of the agent that a registered key belongs to, and the key."""
        found = self.agent_keys_by_kid.get(kid)
        return None if found is None else (found[0].name, found[1].public)

    def may_reach(self, agent: Agent, cluster: Cluster) -> bool:
        """Return whether one of the agent's teams was granted the cluster."""
        return not agent.team_ids.isdisjoint(cluster.team_ids)

    def clusters_of(self, agent: Agent) -> tuple[Cluster, ...]:
        """The clusters that the agent may reach, by name."""
        return tuple(
            cluster for _, cluster in sorted(self.clusters_by_name.items()) if self.may_reach(agent, cluster)
        )

    def agents_of(self, cluster: Cluster) -> tuple[Agent, ...]:
        """The agents, not retired, that may reach the cluster, by name; its relay impersonates these."""
        return tuple(
            agent
            for _, agent in sorted(self.agents_by_name.items())
            if agent.state is not AgentState.RETIRED and self.may_reach(agent, cluster)
        )
