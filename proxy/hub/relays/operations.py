"""The admin API's view of the running hub: its relays and its live calls."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import attrs

from proxy.kubernetes.statement import Statement


@attrs.frozen
class RelayInfo:
    """A relay instance with a live session. Times are epoch seconds."""

    cluster: str
    instance: str
    version: str
    address: str
    connected_at: float
    last_seen: float
    rtt_ms: float | None
    streams: int | None
    """None for a tunnel at another hub."""
    kid: str = ""
    """The id of the relay key it authenticated with."""
    statement: Statement = attrs.Factory(Statement)
    """Its statement about its cluster and its API server; empty for a tunnel at another hub."""
    leaving: bool = False
    """It drains."""
    hub: str = ""
    """The id of the hub that has the tunnel; "" for a hub that is alone."""


@attrs.frozen
class SessionInfo:
    """A live call. Times are epoch seconds."""

    id: str
    """The id of its audit events."""
    agent: str
    cluster: str
    kind: str
    verb: str
    resource: str
    """With the subresource."""
    namespace: str
    name: str
    client: str
    relay: str
    """The relay instance that serves it; empty until one is chosen."""
    started_at: float
    status: int
    """The status of its answer; 0 until the answer begins."""
    bytes_in: int
    """Bytes from the client."""
    bytes_out: int
    hub: str = ""
    """The id of the hub that the agent is connected to; empty for a hub that runs alone, on SQLite."""
    claimed_reason: str = ""
    """The reason that the agent states for it. Nothing verifies it."""


class Sessions(Protocol):
    """The live calls, for administration."""

    async def sessions(
        self, *, agent: str | None = None, cluster: str | None = None
    ) -> Sequence[SessionInfo]:
        """Return the calls that match all given criteria, the oldest first."""
        ...

    async def hubs_beside(self) -> int:
        """The number of replaced hubs that still finish their calls. Those calls are not listed here."""
        ...

    async def kill(
        self, *, session_id: str | None, agent: str | None, cluster: str | None, reason: str
    ) -> Sequence[SessionInfo]:
        """End the calls that match all given criteria, and return them."""
        ...


@attrs.frozen
class CallsElsewhere:
    """Calls at other hubs, and the hubs whose calls are not known."""

    calls: Sequence[SessionInfo] = ()
    silent: Sequence[str] = ()
    """The ids of the hubs that did not answer in time."""


class OtherHubs(Protocol):
    """The other hubs on the same directory, for administration."""

    async def sessions(self, *, agent: str | None = None, cluster: str | None = None) -> CallsElsewhere:
        """Return their calls that match all given criteria."""
        ...

    async def kill(
        self, *, session_id: str | None, agent: str | None, cluster: str | None, reason: str
    ) -> CallsElsewhere:
        """End their calls that match all given criteria, and return them."""
        ...


class Operations(Protocol):
    """The running hub's state, for administration."""

    def relays(self) -> Sequence[RelayInfo]:
        """Every relay instance that is connected to this hub."""
        ...

    async def elsewhere(self) -> Sequence[RelayInfo]:
        """The tunnels at the other hubs; raises StoreUnavailableError."""
        ...

    def instances(self) -> Collection[tuple[str, str]]:
        """The cluster's name and the instance of each relay that is connected to any hub."""
        ...
