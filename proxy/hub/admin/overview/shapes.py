"""The shapes of the overview: what its answer has, and what a hub tells the others for it."""

from __future__ import annotations

from typing import Literal

import msgspec

from proxy.hub.admin.trail.rows import Row

State = Literal["online", "degraded", "offline", "new"]
Severity = Literal["critical", "warning", "notice"]


class ClusterRow(msgspec.Struct, frozen=True):
    """One cluster."""

    name: str
    mode: str
    state: State
    """`degraded`: fewer relays than expected, or no API server answers. `new`: no relay has come yet."""
    relays: int
    """Relays that are connected, at all hubs."""
    expected: int
    """The connected relays, and those that were lost within a day and have no successor."""
    last_heard_at: str | None
    """When a relay was last heard; null while one is connected, or if there was none."""
    rtt_ms: float | None
    """The shortest round trip of its relays; null without a tunnel."""
    calls: int
    """Calls under way."""
    versions: list[str]
    """The versions of its relays."""


class Attention(msgspec.Struct, frozen=True):
    """Something that an operator should look at."""

    kind: str
    """A word that stays the same: `cluster-offline`, `version-skew`, …"""
    severity: Severity
    subject: Literal["cluster", "hub", "token", "trail", "database", "request"]
    name: str
    """The name of the subject; "" where there is only one."""
    message: str
    """A sentence, with the next step where there is one."""
    since: str | None = None


class AgentCounts(msgspec.Struct, frozen=True):
    """The agents by state."""

    active: int
    locked: int
    retired: int


class HubRow(msgspec.Struct, frozen=True):
    """One hub process."""

    hub: str
    this: bool
    state: str
    living: bool
    version: str
    tunnels: int
    calls: int
    started_at: str | None


class HubFacts(msgspec.Struct, frozen=True):
    """What one hub alone knows. Unknown keys are ignored, as those of a newer hub."""

    calls: dict[str, int] = {}
    """Calls under way by cluster."""
    rtt_ms: dict[str, float] = {}
    """The shortest round trip to a relay by cluster."""
    api_down: list[str] = []
    """Clusters of which no relay here reaches the API server."""
    lacks_rights: dict[str, float] = {}
    """Clusters whose relay was refused the impersonation of an agent, and when, in epoch seconds."""
    troubles: list[Attention] = []
    """Of the hub itself: its trail, its disk, its certificate, its database."""


class Overview(msgspec.Struct, frozen=True):
    """The first page in one answer."""

    org: str
    version: str
    public_url: str
    attention: list[Attention]
    """Requests that wait for a person come first, then the most urgent."""
    clusters: list[ClusterRow]
    agents: AgentCounts
    teams: int
    calls: int
    """Calls under way at all hubs."""
    requests: int | None
    """Requests that wait for approval; null for a role that may not see them."""
    denials: list[Row] | None
    """The last denied calls, the newest first; null for a role that may not read the trail."""
    denials_roles: list[str]
    """The roles that see the denials."""
    hubs: list[HubRow]
    """Empty for a hub on SQLite."""
    silent_hubs: list[str]
    """The hubs that did not answer in time: their calls and round trips are missing."""
