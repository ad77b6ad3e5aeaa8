"""snitun, the tunnel of Home Assistant's cloud: a byte tunnel in Python, on asyncio and uvloop.

The hub finds the tunnel by the name in the client's TLS hello and carries the TLS through. Of a frame snitun
encrypts the header alone; the payload is the client's TLS already.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from benchmarks.processes import Daemons, free_port
from benchmarks.system import Missing, System, Upstream
from benchmarks.systems.leg import Leg, straight

INSTALL = "make bench-peers"
TOP = Path(__file__).parents[2]
PYTHON = TOP / ".venv-peers" / "bin" / "python"
PROGRAMS = TOP / "benchmarks" / "peers"
# Must be a name, since no address stands in a TLS hello; the upstream's certificate has it.
NAME = "localhost"
_VERSIONS = """
import json, sys
from importlib.metadata import version
print(json.dumps({name: version(name) for name in ("snitun", "uvloop")}), end="")
"""


@contextmanager
def open_snitun(folder: Path, upstream: Upstream, leg: Leg = straight) -> Iterator[System]:
    """Yield snitun's server as the hub, with its client as the agent, before the upstream."""
    versions = _versions()
    clients, peers = free_port(), free_port()
    key = base64.urlsafe_b64encode(os.urandom(32)).decode("ascii")
    target = (upstream.endpoint.host, str(upstream.endpoint.port))
    with Daemons(folder) as daemons:
        python = str(PYTHON)
        hub = daemons.start(
            "hub", [python, str(PROGRAMS / "snitun_hub.py"), str(clients), str(peers), key, NAME]
        )
        hub.wait_for("ready")
        agent = daemons.start(
            "agent", [python, str(PROGRAMS / "snitun_agent.py"), str(leg(peers)), key, NAME, *target]
        )
        agent.wait_for("ready")
        hub.wait_for("joined")
        endpoint = attrs.evolve(upstream.endpoint, host="127.0.0.1", port=clients, server_name=NAME)
        processes = {"hub": hub.process.pid, "agent": agent.process.pid}
        yield System("snitun", endpoint, processes, versions)


def _versions() -> dict[str, str]:
    if not PYTHON.exists():
        raise Missing(f"snitun: there is no {PYTHON.relative_to(TOP)}: {INSTALL}")
    done = subprocess.run([PYTHON, "-c", _VERSIONS], capture_output=True, text=True)
    if done.returncode != 0:
        raise Missing(f"snitun: it is not in {PYTHON.parents[1].relative_to(TOP)}: {INSTALL}")
    versions: dict[str, str] = json.loads(done.stdout)
    return versions
