"""Run the balancer: `python -m sandbox.balancer --port PORT --backend PORT … --ca FILE --control PORT`.

It asks each backend for /readyz, on its own port or on another one (`--backend PORT:CHECKED`), and gives new
connections to those that answer 200. What is open stays where it is. Prints `accepts …` once it does, `ready`
when every backend is in service, and a line whenever that changes for one of them.
Exits 0 on SIGTERM or SIGINT.

The control port takes one command a connection, and answers with a line of JSON:

cut PORT   reset the connection whose client has this port, at both sides: {"cut": true}
state      {"backends": [{"port": 20001, "ready": true, "connections": 3}, …]}
"""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

import trio

from sandbox.balancer.backends import Backend, Backends, Policy
from sandbox.balancer.control import serve_control
from sandbox.balancer.health import HOST, check_forever
from sandbox.balancer.passing import Passing

CHECK_S = 1.0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m sandbox.balancer", description="A TCP load balancer for several hubs."
    )
    parser.add_argument("--port", type=int, required=True, help="where it listens, at 127.0.0.1")
    parser.add_argument(
        "--backend",
        type=backend_of,
        metavar="PORT[:CHECKED]",
        action="append",
        required=True,
        help="a hub's port, at 127.0.0.1, and the port of its /readyz if that is another one",
    )
    parser.add_argument("--ca", type=Path, required=True, help="the CA of the hubs' certificates")
    parser.add_argument("--control", type=int, required=True, help="the port for commands, at 127.0.0.1")
    parser.add_argument("--policy", type=Policy, default=Policy.ROUND_ROBIN, help="round-robin or source")
    parser.add_argument("--check-s", type=float, default=CHECK_S, help="from one check to the next")
    return parser.parse_args(arguments)


def backend_of(text: str) -> Backend:
    """Read `20001` or `20001:20002`; raises ValueError."""
    port, _, checked = text.partition(":")
    return Backend(int(port), checked_port=int(checked or 0))


async def run(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT."""
    backends = Backends(arguments.policy, arguments.backend)
    passing = Passing(backends)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(passing.serve, arguments.port)
            await nursery.start(serve_control, passing, arguments.control)
            print(f"accepts at {HOST}:{arguments.port}", flush=True)
            nursery.start_soon(check_forever, backends, arguments.ca, arguments.check_s)
            async for _ in signals:
                nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(run, parse())
