"""What the relay's pool and the hub's direct mode share; the exchanges over it are in their own tests."""

from __future__ import annotations

import trio
import trio.testing

from proxy.exchange.pool import SWEEP_S, Connections
from tunnel.net.readiness import Readiness


async def no_dial() -> trio.abc.Stream:
    raise OSError("nobody is there")


async def test_the_sweep_ends_with_its_connections(autojump_clock: trio.testing.MockClock) -> None:
    connections = Connections(no_dial, "the server", Readiness())
    # Left once the sweep has ended; a hub makes new ones each time a cluster's address is changed.
    with trio.fail_after(3 * SWEEP_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connections.sweep)
            await trio.testing.wait_all_tasks_blocked()
            await connections.aclose()
