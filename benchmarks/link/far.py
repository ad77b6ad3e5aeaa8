"""Systems with a slow link where the long way would be: between the two ends of a tunnel.

What has no tunnel has it before the upstream: `nginx` proxies over it, and the client of `direct` reaches the
upstream over it. So everybody's bytes cross it once in each direction.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import attrs

from benchmarks.processes import Daemons
from benchmarks.system import OpenSystem, System, Upstream
from benchmarks.systems.chisel import open_chisel
from benchmarks.systems.direct import open_direct
from benchmarks.systems.frp import open_frp
from benchmarks.systems.hawse import open_hawse
from benchmarks.systems.konnectivity import open_konnectivity
from benchmarks.systems.leg import Leg
from benchmarks.systems.mplex import open_mplex
from benchmarks.systems.nginx import open_nginx
from benchmarks.systems.remotedialer import open_remotedialer, open_remotedialer_http
from benchmarks.systems.snitun import open_snitun
from benchmarks.systems.ssh import open_ssh
from benchmarks.systems.yamux import open_yamux
from benchmarks.upstream.other import OtherUpstream

MBIT_PER_S = 100.0
TOP = Path(__file__).parents[2]


class OpenTunnel(Protocol):
    """Opens a system whose private end can be led over a detour."""

    def __call__(
        self, folder: Path, upstream: Upstream, leg: Leg = ...
    ) -> AbstractContextManager[System]: ...


TUNNELS: dict[str, OpenTunnel] = {
    "hawse": open_hawse,
    "ssh": open_ssh,
    "chisel": open_chisel,
    "frp": open_frp,
    "yamux": open_yamux,
    "konnectivity": open_konnectivity,
    "rdialer": open_remotedialer,
    "rdialer-http": open_remotedialer_http,
    "snitun": open_snitun,
    "mplex": open_mplex,
}
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
