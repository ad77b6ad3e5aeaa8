"""Starts a balancer as one of the demo's processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from sandbox.balancer.backends import Policy
from sandbox.balancer.control import BalancerControl
from sandbox.demo.processes import Daemon, Daemons, free_port


def start_balancer(
    daemons: Daemons,
    port: int,
    backends: Sequence[int],
    ca: Path,
    *,
    policy: Policy = Policy.ROUND_ROBIN,
    check_s: float = 1.0,
    checked: Sequence[int] = (),
    name: str = "balancer",
) -> tuple[BalancerControl, Daemon]:
    """Start a balancer at 127.0.0.1 in front of hubs there; its log says `ready` once all of them are.

    `ca` is the CA of the hubs' certificates, which the checks of /readyz verify. `checked` are the ports of
    these, if they are not the backends' own. The balancer accepts and answers commands when this returns.
    """
    control = free_port()
    argv = [sys.executable, "-m", "sandbox.balancer", "--port", str(port), "--control", str(control)]
    for backend, port_of_check in zip(backends, checked or backends, strict=True):
        argv += ["--backend", f"{backend}:{port_of_check}"]
    argv += ["--ca", str(ca), "--policy", policy.value, "--check-s", str(check_s)]
    daemon = daemons.start(name, argv)
    daemon.wait_for("accepts")
    return BalancerControl(control), daemon
