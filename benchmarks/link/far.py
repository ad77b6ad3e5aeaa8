"""Systems with a slow link between the two ends of their tunnel.

A system without a tunnel has the link before the upstream: `nginx` proxies over it, and the client of
`direct` reaches the upstream over it. So the bytes of every system cross it once in each direction.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from benchmarks.processes import Daemons
from benchmarks.system import OpenSystem, System, Upstream
from benchmarks.systems import PEERS
from benchmarks.systems.direct import open_direct
from benchmarks.systems.hawse import open_hawse
from benchmarks.systems.leg import OpenTunnel
from benchmarks.systems.nginx import open_nginx
from benchmarks.systems.plain import open_plain
from benchmarks.upstream.other import OtherUpstream

MBIT_PER_S = 100.0
TOP = Path(__file__).parents[2]

TUNNELS: dict[str, OpenTunnel] = {"hawse": open_hawse, "plain": open_plain, **PEERS}
WITHOUT_TUNNEL: dict[str, OpenSystem] = {"direct": open_direct, "nginx": open_nginx}
NAMES = frozenset({*TUNNELS, *WITHOUT_TUNNEL})


@contextmanager
def open_far(name: str, folder: Path, upstream: Upstream, rtt_ms: float) -> Iterator[System]:
    """Run a system with a link of MBIT_PER_S and `rtt_ms` in its way; raises Missing."""
    with Daemons(folder) as links:

        def leg(port: int) -> int:
            argv = [sys.executable, "-m", "benchmarks.link", "--to", str(port)]
            argv += ["--rtt-ms", str(rtt_ms), "--mbit", str(MBIT_PER_S)]
            link = links.start("link", argv, {"PYTHONPATH": str(TOP)})
            return int(link.wait_for("listening ").split()[1])

        (folder / name).mkdir()
        if name in TUNNELS:
            with TUNNELS[name](folder / name, upstream, leg) as system:
                yield system
        else:
            far = attrs.evolve(upstream.endpoint, port=leg(upstream.endpoint.port))
            with WITHOUT_TUNNEL[name](folder / name, OtherUpstream(far, upstream.processes)) as system:
                yield system
