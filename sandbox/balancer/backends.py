"""The balancer's decisions: which backends are in service, and which one gets a connection."""

from __future__ import annotations

import enum
import zlib
from collections.abc import Sequence

import attrs


class Policy(enum.Enum):
    """How a connection's backend is chosen among those in service."""

    ROUND_ROBIN = "round-robin"
    SOURCE = "source"
    """By a hash of the client's address: a client gets the same backend while the set stays as it is."""


@attrs.define(eq=False)
class Backend:
    """One hub, as its last check has found it."""

    port: int
    ready: bool = False
    connections: int = 0
    checked_port: int = 0
    """Where its /readyz is, if it is not on `port`: a hub's console has none."""


@attrs.define(eq=False)
class Backends:
    """All hubs, and the choice among them."""

    policy: Policy
    all: Sequence[Backend]
    _next: int = 0

    def in_order(self, client: str) -> list[Backend]:
        """The backends for a new connection of a client's address: the chosen one, then what to try next."""
        ready = [backend for backend in self.all if backend.ready]
        if not ready:
            return []
        if self.policy is Policy.SOURCE:
            first = zlib.crc32(client.encode()) % len(ready)
        else:
            first = self._next % len(ready)
            self._next += 1
        return [*ready[first:], *ready[:first]]
