"""The connections of each agent: those that idle are kept for its next request, but not without end."""

from __future__ import annotations

import math
from operator import attrgetter

import trio

from auth.principal import Principal
from proxy.hub.config import LimitsConfig
from proxy.server import ServerConnection


class AgentConnections:
    """The connections of each agent, from its first call on one until that is closed.

    Whose idle ones are too many loses those that idle the longest: either end of HTTP may close such a
    connection at any time. They are counted when another one comes, so an agent never has more connections
    than that and its calls under way together.
    """

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._of: dict[str, set[ServerConnection]] = {}
        self._agents: dict[ServerConnection, str] = {}

    def __len__(self) -> int:
        return len(self._agents)

    def enter(self, agent: Principal, connection: ServerConnection) -> None:
        """An agent is known to be at the other end."""
        if connection in self._agents:
            return
        self._agents[connection] = agent.agent_id
        mine = self._of.setdefault(agent.agent_id, set())
        most = self._limits.of(agent.name).idle_connections
        if most and len(mine) >= most:
            # Not those that were told to end before, and have not come to it yet.
            now = trio.current_time()
            idle = [other for other in mine if now < other.idle_until < math.inf]
            idle.sort(key=attrgetter("idle_until"))
            # This one will idle too.
            for other in idle[: max(0, len(idle) + 1 - most)]:
                other.end_idle()
        mine.add(connection)

    def leave(self, connection: ServerConnection) -> None:
        """It is closed."""
        agent_id = self._agents.pop(connection, None)
        if agent_id is not None:
            mine = self._of[agent_id]
            mine.discard(connection)
            if not mine:
                del self._of[agent_id]
