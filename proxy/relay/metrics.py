"""The relay's Prometheus metrics, in the text format 0.0.4: too few to need a library."""

from __future__ import annotations

from collections.abc import Mapping

from proxy.process.memory.memory_metrics import LIMIT, LIMIT_HELP, USED, USED_HELP, used_by
from tunnel import Memory

CONTENT_TYPE = b"text/plain; version=0.0.4"

API_SERVER = "hawse_relay_api_server_up"
API_SERVER_HELP = "Whether the API server answered the last probe, by anything but a 5xx."


TUNNELS = "hawse_relay_tunnels"
TUNNELS_HELP = "Tunnels that are up, that have lost their connection, and that end with their streams."


def metrics_text(memory: Memory, api_server: bool, tunnels: Mapping[str, int]) -> str:
    """Render the memory gauges, whether the API server answers, and the tunnels by state: none in direct
    mode.
    """
    lines = [f"# HELP {USED} {USED_HELP}", f"# TYPE {USED} gauge"]
    lines += [f'{USED}{{by="{holder}"}} {used}' for holder, used in used_by(memory).items()]
    lines += [f"# HELP {LIMIT} {LIMIT_HELP}", f"# TYPE {LIMIT} gauge", f"{LIMIT} {memory.limit_bytes}"]
    lines += [f"# HELP {API_SERVER} {API_SERVER_HELP}", f"# TYPE {API_SERVER} gauge"]
    lines.append(f"{API_SERVER} {int(api_server)}")
    if tunnels:
        lines += [f"# HELP {TUNNELS} {TUNNELS_HELP}", f"# TYPE {TUNNELS} gauge"]
        lines += [f'{TUNNELS}{{state="{state}"}} {number}' for state, number in tunnels.items()]
    return "\n".join(lines) + "\n"
