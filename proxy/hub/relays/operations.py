"""What the admin API asks the running hub for: the relays and the calls that are here right now."""

from __future__ import annotations

from collections.abc import Sequence
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
    streams: int
    kid: str = ""
    """Of the relay key that it proved itself with."""
    statement: Statement = attrs.Factory(Statement)
    """What it states of its cluster and its API server."""


@attrs.frozen
class SessionInfo:
    """A call under way. Times are epoch seconds."""

    id: str
    """Of its audit events."""
    agent: str
    cluster: str
    kind: str
    verb: str
    resource: str
    """With its subresource."""
    namespace: str
    name: str
    client: str
    relay: str
    """The instance that it goes through; empty before one was chosen."""
    started_at: float
    status: int
    """Of its answer; 0 until that has begun."""
    bytes_in: int
    """From the client."""
    bytes_out: int


class Sessions(Protocol):
    """The calls under way, as far as administration needs them."""

    async def sessions(
        self, *, agent: str | None = None, cluster: str | None = None
    ) -> Sequence[SessionInfo]:
        """Those that fit all that is given, the oldest first."""
        ...

    async def hubs_beside(self) -> int:
        """How many hubs that were replaced still finish calls of their own, which are not among these."""
        ...

    async def kill(
        self, *, session_id: str | None, agent: str | None, cluster: str | None, reason: str
    ) -> Sequence[SessionInfo]:
        """End those that fit all that is given, and return them."""
        ...


class Operations(Protocol):
    """The live side of the hub, as far as administration needs it; nothing here waits."""

    def relays(self) -> Sequence[RelayInfo]:
        """Every connected relay instance."""
        ...
