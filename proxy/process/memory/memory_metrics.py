"""Memory metrics of hub and relay (PROTOCOL.md, "Memory"), with their Prometheus help texts."""

from __future__ import annotations

from tunnel import Memory

USED = "hawse_memory_bytes"
USED_HELP = "What is counted of memory_mib, by what holds it."
LIMIT = "hawse_memory_limit_bytes"
LIMIT_HELP = "memory_mib, in bytes."


def used_by(memory: Memory) -> dict[str, int]:
    """Counted bytes by user: calls (as of their last update) and tunnels."""
    return {"calls": memory.outside_bytes, "tunnels": memory.used_bytes - memory.outside_bytes}
