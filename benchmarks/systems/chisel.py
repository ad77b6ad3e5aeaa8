"""chisel's remote forwarding: a byte tunnel in Go, SSH within a WebSocket.

The client speaks TLS with the upstream itself; chisel's own SSH encrypts it once more, and so the WebSocket
goes without TLS, as its documentation has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from benchmarks.processes import Daemons, free_port, wait_for_port
from benchmarks.system import System, Upstream
from benchmarks.systems.golang import built, version
from benchmarks.systems.leg import Leg, straight


@contextmanager
def open_chisel(folder: Path, upstream: Upstream, leg: Leg = straight) -> Iterator[System]:
    """Yield chisel's server as the hub, with its client as the agent, before the upstream."""
    program = built("chisel")
    port, forwarded = free_port(), free_port()
    remote = f"R:127.0.0.1:{forwarded}:{upstream.endpoint.host}:{upstream.endpoint.port}"
    with Daemons(folder) as daemons:
        hub = daemons.start(
            "hub", [program, "server", "--reverse", "--host", "127.0.0.1", "--port", str(port)]
        )
        wait_for_port(port, hub)
        agent = daemons.start("agent", [program, "client", f"http://127.0.0.1:{leg(port)}", remote])
        agent.wait_for("Connected")
        wait_for_port(forwarded, hub)
        endpoint = attrs.evolve(upstream.endpoint, host="127.0.0.1", port=forwarded)
        processes = {"hub": hub.process.pid, "agent": agent.process.pid}
        yield System("chisel", endpoint, processes, {"chisel": version("chisel")})
