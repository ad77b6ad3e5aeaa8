"""Bounds the previews that are made at once for one agent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import attrs
import trio

# Each makes up to a dozen requests to the API server.
PREVIEWS_PER_AGENT_MAX: Final = 4


@attrs.define(eq=False)
class Previews:
    """The previews that are under way. Others of their agent wait; its open calls bound these."""

    _limits: dict[str, trio.CapacityLimiter] = attrs.Factory(dict)

    @asynccontextmanager
    async def one(self, agent_id: str) -> AsyncIterator[None]:
        """Wait until an agent may have another preview, and count it during the block."""
        limit = self._limits.get(agent_id)
        if limit is None:
            self._limits[agent_id] = limit = trio.CapacityLimiter(PREVIEWS_PER_AGENT_MAX)
        try:
            async with limit:
                yield
        finally:
            used = limit.statistics()
            if not (used.borrowed_tokens or used.tasks_waiting):
                # Another call may have forgotten it meanwhile.
                self._limits.pop(agent_id, None)
