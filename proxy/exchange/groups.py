"""The groups of a tunnel's contexts: the keys by which its streams share capacity."""

from __future__ import annotations

from zlib import crc32

# The hub's own contexts. The groups of agents begin at 1.
HUB_GROUP = 0
# The relay's contexts. It opens no streams.
RELAY_GROUP = 0


def group_of(agent_id: str) -> int:
    """Return the group of an agent. It is the same on all sessions, since they share one memory.

    Two agents in 2^32 have the same group, and then share its capacity.
    """
    group = crc32(agent_id.encode("ascii"))
    return group if group != HUB_GROUP else 1
