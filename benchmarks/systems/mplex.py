"""bored-mplex, the multiplexer of Lens' BoreD, over a WebSocket with TLS: a byte tunnel in JavaScript.

The client speaks TLS with the upstream itself; the tunnel carries it, encrypted once more. The two ends are
peers/mplex/hub.js and agent.js, wired as BoreD wires them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from benchmarks.processes import Daemons, program, version_of
from benchmarks.system import Missing, System, Upstream
from benchmarks.systems.certificate import make_certificate
from benchmarks.systems.leg import Leg, straight

INSTALL = "make bench-peers"
PROGRAMS = Path(__file__).parents[1] / "peers" / "mplex"
PACKAGES = ("bored-mplex", "ws")


@contextmanager
def open_mplex(folder: Path, upstream: Upstream, leg: Leg = straight) -> Iterator[System]:
    """Yield bored-mplex's two ends before the upstream."""
    node = program("node", "mplex", INSTALL)
    versions = _versions(node)
    files = make_certificate(folder)
    target = (upstream.endpoint.host, str(upstream.endpoint.port))
    with Daemons(folder) as daemons:
        pem = str(files.pem)
        hub = daemons.start("hub", [node, str(PROGRAMS / "hub.js"), pem, pem])
        _, tunnels, clients = hub.wait_for("ready ").split()
        agent_js = str(PROGRAMS / "agent.js")
        agent = daemons.start("agent", [node, agent_js, str(leg(int(tunnels))), str(files.ca), *target])
        agent.wait_for("ready")
        hub.wait_for("joined")
        endpoint = attrs.evolve(upstream.endpoint, host="127.0.0.1", port=int(clients))
        processes = {"hub": hub.process.pid, "agent": agent.process.pid}
        yield System("mplex", endpoint, processes, versions)


def _versions(node: str) -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        description = PROGRAMS / "node_modules" / package / "package.json"
        if not description.exists():
            raise Missing(f"mplex: the npm package {package} is not installed: {INSTALL}")
        versions[package] = json.loads(description.read_text())["version"]
    return {**versions, "Node": version_of(node, "--version").removeprefix("v")}
