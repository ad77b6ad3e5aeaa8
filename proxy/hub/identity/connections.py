"""The connections of each agent: those that idle are kept for its next request, but not without end."""

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
from proxy.hub.home.config import LimitsConfig
from tunnel import Memory

# Between two looks at what idles beyond the limit because many calls have ended at once.
TRIM_S = 1.0
# What an agent may have idle while memory is short: they are what it does without most easily.
IDLE_WHEN_SHORT_MAX = 8


@attrs.define(eq=False)
class _Kept:
    """The connections of one agent."""

    idle_max: int
    """0 is no limit."""
    connections: set[ServerConnection] = attrs.Factory(set)

    def trim(self, idle_max: int) -> None:
        """Close the longest idle of more than that many."""
        if len(self.connections) <= idle_max:
            return
        # Not those that were told to end before, and have not come to it yet.
        now = trio.current_time()
        idle = [other for other in self.connections if now < other.idle_until < math.inf]
        idle.sort(key=attrgetter("idle_until"))
        for other in idle[: max(0, len(idle) - idle_max)]:
            other.end_idle()


class AgentConnections:
    """The connections of each agent, from its first call on one until that is closed.

    Whose idle ones are too many loses those that idle the longest: either end of HTTP may close such a
    connection at any time. They are counted when another one comes, so an agent never has more connections
    than that and its calls under way together; and by `run`, since calls that end at once leave as many idle.
    That counts in `memory` what idles, as all have that have no call: `calls` says how many are under way.
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
        """An agent is known to be at the other end."""
        if connection in self._agents:
            return
        self._agents[connection] = agent.agent_id
        kept = self._of.get(agent.agent_id)
        if kept is None:
            kept = self._of[agent.agent_id] = _Kept(self._limits.of(agent.name).idle_connections)
        if kept.idle_max:
            # This one will idle too.
            kept.trim(kept.idle_max - 1)
        kept.connections.add(connection)

    def leave(self, connection: ServerConnection) -> None:
        """It is closed."""
        agent_id = self._agents.pop(connection, None)
        if agent_id is not None:
            kept = self._of[agent_id]
            kept.connections.discard(connection)
            if not kept.connections:
                del self._of[agent_id]

    async def run(self) -> NoReturn:
        """Close what idles beyond the limits, every TRIM_S; never returns."""
        while True:
            await trio.sleep(TRIM_S)
            self._charge()
            short = self._memory.short
            for kept in list(self._of.values()):
                if short:
                    kept.trim(min(kept.idle_max or IDLE_WHEN_SHORT_MAX, IDLE_WHEN_SHORT_MAX))
                    # To look at hundreds takes its time, and then each agent may have that many.
                    await trio.lowlevel.checkpoint()
                elif kept.idle_max:
                    kept.trim(kept.idle_max)

    def _charge(self) -> None:
        idle_bytes = max(0, len(self) - self._calls()) * CONNECTION_BYTES
        self._memory.charge_outside(idle_bytes - self._charged_bytes)
        self._charged_bytes = idle_bytes
