"""Bounds the idle connections that the hub keeps open for each agent's next request."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import attrgetter
from typing import NoReturn

import attrs
import trio

from auth.principal import Principal
from proxy.exchange.server import ServerConnection
from proxy.exchange.wire import CONNECTION_BYTES
from proxy.hub.home.sections.limits import LimitsConfig
from tunnel import Memory

# Interval between checks. When many calls end at once, as many connections become idle at once.
TRIM_S = 1.0
# Idle connections of one agent while memory is short. Closing them costs an agent least.
IDLE_WHEN_SHORT_MAX = 8


@attrs.define(eq=False)
class _Kept:
    """The connections of one agent."""

    idle_max: int
    """0 means no limit."""
    connections: set[ServerConnection] = attrs.Factory(set)

    def trim(self, idle_max: int) -> None:
        """Close the connections that have idled longest until `idle_max` are left."""
        if len(self.connections) <= idle_max:
            return
        # Skip connections that are closing already: end_idle was called, and they have not run since.
        now = trio.current_time()
        idle = [other for other in self.connections if now < other.idle_until < math.inf]
        idle.sort(key=attrgetter("idle_until"))
        for other in idle[: max(0, len(idle) - idle_max)]:
            other.end_idle()


class AgentConnections:
    """The connections of each agent, from its first call on one until that connection is closed.

    Above the limit, the connections that have idled longest are closed. HTTP allows either end to close an
    idle connection at any time. The limit is checked when another connection of the agent is added, so an
    agent never has more connections than the limit and its open calls together. `run` checks it too, since
    calls that end at once leave as many connections idle. `run` also charges `memory` for all connections
    that have no call; `calls` returns the number of open calls.
    """

    def __init__(self, limits: LimitsConfig, memory: Memory, calls: Callable[[], int]) -> None:
        self._limits = limits
        self._memory = memory
        self._calls = calls
        self._charged_bytes = 0
        self._of: dict[str, _Kept] = {}
        self._agents: dict[ServerConnection, str] = {}

    def __len__(self) -> int:
        return len(self._agents)

    def enter(self, agent: Principal, connection: ServerConnection) -> None:
        """Add a connection whose agent is authenticated; has no effect when it was added before."""
        if connection in self._agents:
            return
        self._agents[connection] = agent.agent_id
        kept = self._of.get(agent.agent_id)
        if kept is None:
            kept = self._of[agent.agent_id] = _Kept(self._limits.of(agent.name).idle_connections)
        if kept.idle_max:
            # This connection will become idle too.
            kept.trim(kept.idle_max - 1)
        kept.connections.add(connection)

    def leave(self, connection: ServerConnection) -> None:
        """Remove a connection that is closed."""
        agent_id = self._agents.pop(connection, None)
        if agent_id is not None:
            kept = self._of[agent_id]
            kept.connections.discard(connection)
            if not kept.connections:
                del self._of[agent_id]

    async def run(self) -> NoReturn:
        """Close excess idle connections every TRIM_S; never returns."""
        while True:
            await trio.sleep(TRIM_S)
            self._charge()
            short = self._memory.short
            for kept in list(self._of.values()):
                if short:
                    kept.trim(min(kept.idle_max or IDLE_WHEN_SHORT_MAX, IDLE_WHEN_SHORT_MAX))
                    # Sorting hundreds of connections takes time, and each agent may have hundreds.
                    await trio.lowlevel.checkpoint()
                elif kept.idle_max:
                    kept.trim(kept.idle_max)

    def _charge(self) -> None:
        idle_bytes = max(0, len(self) - self._calls()) * CONNECTION_BYTES
        self._memory.charge_outside(idle_bytes - self._charged_bytes)
        self._charged_bytes = idle_bytes
