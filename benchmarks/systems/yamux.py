"""yamux over TLS: a byte tunnel in Go on HashiCorp's multiplexer, peers/go/yamux.

The client speaks TLS with the upstream itself; the tunnel carries it, encrypted once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from benchmarks.processes import Daemons
from benchmarks.system import System, Upstream
from benchmarks.systems.certificate import make_certificate
from benchmarks.systems.golang import built, version
from benchmarks.systems.leg import Leg, straight


@contextmanager
def open_yamux(folder: Path, upstream: Upstream, leg: Leg = straight) -> Iterator[System]:
    """Yield both ends of the tunnel before the upstream."""
    program = built("yamux")
    ca, pem = make_certificate(folder)
    target = f"{upstream.endpoint.host}:{upstream.endpoint.port}"
    with Daemons(folder) as daemons:
        hub = daemons.start("hub", [program, "hub", str(pem)])
        _, tunnels, clients = hub.wait_for("ready ").split()
        agent = daemons.start("agent", [program, "agent", str(leg(int(tunnels))), str(ca), target])
        agent.wait_for("ready")
        hub.wait_for("joined")
        endpoint = attrs.evolve(upstream.endpoint, host="127.0.0.1", port=int(clients))
        processes = {"hub": hub.process.pid, "agent": agent.process.pid}
        yield System("yamux", endpoint, processes, {"yamux": version("yamux")})
