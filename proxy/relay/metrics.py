"""What the relay tells Prometheus, in the text format 0.0.4: so little that it needs no library."""

from __future__ import annotations

from proxy.memorymetrics import LIMIT, LIMIT_HELP, USED, USED_HELP, used_by
from tunnel import Memory

CONTENT_TYPE = b"text/plain; version=0.0.4"


def metrics_text(memory: Memory) -> str:
    """Read the gauges of its memory."""
    lines = [f"# HELP {USED} {USED_HELP}", f"# TYPE {USED} gauge"]
    lines += [f'{USED}{{by="{holder}"}} {used}' for holder, used in used_by(memory).items()]
    lines += [f"# HELP {LIMIT} {LIMIT_HELP}", f"# TYPE {LIMIT} gauge", f"{LIMIT} {memory.limit_bytes}"]
    return "\n".join(lines) + "\n"
