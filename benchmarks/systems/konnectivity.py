"""Konnectivity, Kubernetes' own tunnel between an API server and its nodes: a byte tunnel in Go, over gRPC.

The client speaks TLS with the upstream itself; the tunnel carries it, encrypted once more, with certificates
on both sides. What asks the proxy server for each connection is part of kube-apiserver there. Here it is
peers/go/connect, and not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from benchmarks.processes import Daemons, free_port, wait_for_port
from benchmarks.system import System, Upstream
from benchmarks.systems.certificate import make_certificate
from benchmarks.systems.golang import built, version
from benchmarks.systems.leg import Leg, straight


@contextmanager
def open_konnectivity(folder: Path, upstream: Upstream, leg: Leg = straight) -> Iterator[System]:
    """Yield the proxy server as the hub, with its agent and its client, before the upstream."""
    server, agent_program, connect = built("proxy-server"), built("proxy-agent"), built("connect")
    ca, pem = make_certificate(folder)
    socket = folder / "proxy.sock"
    port = free_port()
    loopback = "127.0.0.1"
    with Daemons(folder) as daemons:
        hub = daemons.start(
            "hub",
            [
                server,
                "--mode=http-connect",
                f"--uds-name={socket}",
                "--server-port=0",
                f"--agent-port={port}",
                f"--agent-bind-address={loopback}",
                f"--admin-port={free_port()}",
                f"--health-port={free_port()}",
                f"--health-bind-address={loopback}",
                f"--cluster-cert={pem}",
                f"--cluster-key={pem}",
                f"--cluster-ca-cert={ca}",
            ],
        )
        wait_for_port(port, hub)
        agent = daemons.start(
            "agent",
            [
                agent_program,
                f"--proxy-server-host={loopback}",
                f"--proxy-server-port={leg(port)}",
                f"--admin-server-port={free_port()}",
                f"--health-server-port={free_port()}",
                f"--health-server-host={loopback}",
                f"--ca-cert={ca}",
                "--vmodule=client=2",
                f"--agent-cert={pem}",
                f"--agent-key={pem}",
            ],
        )
        target = f"{upstream.endpoint.host}:{upstream.endpoint.port}"
        client = daemons.start("client", [connect, str(socket), target])
        _, clients = client.wait_for("ready ").split()
        agent.wait_for("Start serving")
        endpoint = attrs.evolve(upstream.endpoint, host=loopback, port=int(clients))
        processes = {"hub": hub.process.pid, "agent": agent.process.pid}
        yield System("konnectivity", endpoint, processes, {"Konnectivity": version("proxy-server")})
