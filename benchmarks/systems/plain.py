"""Reverse proxies of the same interpreter and libraries, written plainly, in the places of hub and relay.

Three TLS legs and two processes, as Hawse has. nginx is small enough for a core's nearest caches, and Python
is not: a neighbour that takes the farther ones makes Hawse dearer, and these as well.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from benchmarks.nginx import issue_certificate
from benchmarks.processes import Daemons, free_port
from benchmarks.system import Endpoint, System, Upstream


@contextmanager
def open_plain(folder: Path, upstream: Upstream) -> Iterator[System]:
    """Run two of them, one behind the other, as hub and relay are."""
    ca = issue_certificate(folder)
    with Daemons(folder) as daemons:
        target = upstream.endpoint
        processes = {}
        for name in ("relay", "hub"):
            port = free_port()
            argv = [str(port), str(folder), target.host, str(target.port), str(target.ca)]
            proxy = daemons.start(name, [sys.executable, "-m", "benchmarks.plain", *argv])
            proxy.wait_for("ready")
            target = Endpoint("127.0.0.1", port, ca)
            processes[name] = proxy.process.pid
        yield System("plain", target, processes, {"trio": version("trio"), "h11": version("h11")})
