"""remotedialer, the tunnel of Rancher's clusters, in Go, over a WebSocket with TLS: peers/go/remotedialer.

`rdialer` carries bytes: the client speaks TLS with the upstream itself, and the tunnel encrypts once more.
`rdialer-http` is what Rancher does with it: the hub ends the client's TLS, and Go's ReverseProxy speaks HTTP
over TLS with the upstream, through the tunnel. It is the one peer that reads requests, as Hawse does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from benchmarks.processes import Daemons
from benchmarks.system import Endpoint, System, Upstream
from benchmarks.systems.certificate import Certificate, make_certificate
from benchmarks.systems.golang import built, version
from benchmarks.systems.leg import Leg, straight


@contextmanager
def open_remotedialer(folder: Path, upstream: Upstream, leg: Leg = straight) -> Iterator[System]:
    """Yield both ends of a tunnel of bytes before the upstream."""
    files = make_certificate(folder)
    hub = ["hub", str(files.pem), _target(upstream)]
    with _open(folder, files, hub, leg) as (processes, port, versions):
        endpoint = attrs.evolve(upstream.endpoint, host="127.0.0.1", port=port)
        yield System("rdialer", endpoint, processes, versions)


@contextmanager
def open_remotedialer_http(folder: Path, upstream: Upstream, leg: Leg = straight) -> Iterator[System]:
    """Yield a hub that ends TLS and HTTP, and its agent, before the upstream."""
    files = make_certificate(folder)
    hub = ["hub-http", str(files.pem), _target(upstream), str(upstream.endpoint.ca)]
    with _open(folder, files, hub, leg) as (processes, port, versions):
        yield System("rdialer-http", Endpoint("127.0.0.1", port, files.ca), processes, versions)


@contextmanager
def _open(
    folder: Path, files: Certificate, hub_arguments: list[str], leg: Leg
) -> Iterator[tuple[dict[str, int], int, dict[str, str]]]:
    program = built("remotedialer")
    with Daemons(folder) as daemons:
        hub = daemons.start("hub", [program, *hub_arguments])
        tunnels = int(hub.wait_for("tunnels ").split()[1])
        clients = int(hub.wait_for("clients ").split()[1])
        agent = daemons.start("agent", [program, "agent", str(leg(tunnels)), str(files.ca)])
        agent.wait_for("ready")
        processes = {"hub": hub.process.pid, "agent": agent.process.pid}
        yield processes, clients, {"remotedialer": version("remotedialer")}


def _target(upstream: Upstream) -> str:
    return f"{upstream.endpoint.host}:{upstream.endpoint.port}"
