"""How full memory is (PROTOCOL.md, "Memory"), in the words in which hub and relay alike tell Prometheus."""

from __future__ import annotations

from tunnel import Memory

USED = "hawse_memory_bytes"
USED_HELP = "What is counted of memory_mib, by what holds it."
LIMIT = "hawse_memory_limit_bytes"
LIMIT_HELP = "memory_mib, in bytes."


def used_by(memory: Memory) -> dict[str, int]:
    """What is in the account of a process: what its calls take, by the last look at them, and its tunnels."""
    return {"calls": memory.outside_bytes, "tunnels": memory.used_bytes - memory.outside_bytes}
