"""The tunnel of benchmarks.plain: the packages that Hawse is made of, put together as one would first.

It has Hawse's two processes and three TLS legs. The difference between the two is what Hawse's own code
brings, less the cost of tokens, policy and the audit trail.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from benchmarks.nginx import issue_certificate
from benchmarks.processes import Daemons
from benchmarks.system import Endpoint, System, Upstream
from benchmarks.systems.leg import Leg, straight

TOP = Path(__file__).parents[2]
PACKAGES = ("trio", "trio-websocket", "h11")


@contextmanager
def open_plain(folder: Path, upstream: Upstream, leg: Leg = straight) -> Iterator[System]:
    """Run its hub and its relay before the upstream."""
    ca = issue_certificate(folder)
    program = [sys.executable, "-m", "benchmarks.plain"]
    environment = {"PYTHONPATH": str(TOP)}
    with Daemons(folder) as daemons:
        hub = daemons.start("hub", [*program, "hub", str(folder)], environment)
        tunnel_port = int(hub.wait_for("listening ").split()[1])
        target = (upstream.endpoint.host, str(upstream.endpoint.port), str(upstream.endpoint.ca))
        argv = [*program, "relay", str(folder), str(leg(tunnel_port)), *target]
        relay = daemons.start("relay", argv, environment)
        port = int(hub.wait_for("serving ").split()[1])
        yield System(
            "plain",
            Endpoint("127.0.0.1", port, ca),
            {"hub": hub.process.pid, "relay": relay.process.pid},
            {name: version(name) for name in PACKAGES},
        )
