"""frp with a TCP proxy: a byte tunnel in Go, with TLS and its own form of yamux, both by default.

The client speaks TLS with the upstream itself; the tunnel carries it, encrypted once more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from benchmarks.processes import Daemons, free_port, wait_for_port
from benchmarks.system import System, Upstream
from benchmarks.systems.golang import built, version
from benchmarks.systems.leg import Leg, straight


@contextmanager
def open_frp(folder: Path, upstream: Upstream, leg: Leg = straight) -> Iterator[System]:
    """Yield frps as the hub, with frpc as the agent, before the upstream."""
    server, client = built("frps"), built("frpc")
    port, forwarded = free_port(), free_port()
    loopback = "127.0.0.1"
    hub_file, agent_file = folder / "frps.json", folder / "frpc.json"
    hub_file.write_text(json.dumps({"bindAddr": loopback, "bindPort": port, "proxyBindAddr": loopback}))
    proxy = {
        "name": "upstream",
        "type": "tcp",
        "localIP": upstream.endpoint.host,
        "localPort": upstream.endpoint.port,
        "remotePort": forwarded,
    }
    agent_file.write_text(json.dumps({"serverAddr": loopback, "serverPort": leg(port), "proxies": [proxy]}))
    with Daemons(folder) as daemons:
        hub = daemons.start("hub", [server, "-c", str(hub_file)])
        wait_for_port(port, hub)
        agent = daemons.start("agent", [client, "-c", str(agent_file)])
        agent.wait_for("start proxy success")
        endpoint = attrs.evolve(upstream.endpoint, host=loopback, port=forwarded)
        processes = {"hub": hub.process.pid, "agent": agent.process.pid}
        yield System("frp", endpoint, processes, {"frp": version("frps")})
