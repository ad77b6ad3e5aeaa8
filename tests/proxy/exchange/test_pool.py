"""What the relay's pool and the hub's direct mode share; the exchanges over it are in their own tests."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from proxy.exchange.pool import SWEEP_S, Connections
from tests.tunnel.certificates import contexts
from tests.tunnel.stream_pairs import tcp_pair
from tunnel.net.connect import wrap_client
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


async def test_a_dial_ahead_that_fails_is_tried_again_after_the_next_upgrade_only() -> None:
    dials = 0

    async def dial() -> trio.abc.Stream:
        nonlocal dials
        dials += 1
        return await no_dial()

    connections = Connections(dial, "the server", Readiness())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connections.keep_spare)
        for number in (1, 2):
            connections.upgraded()
            await trio.testing.wait_all_tasks_blocked()
            assert dials == number
        nursery.cancel_scope.cancel()


async def test_session_tickets_do_not_end_a_connection_that_was_dialled_ahead() -> None:
    client_side, server_side = contexts()
    servers: list[trio.abc.Stream] = []

    async def dial() -> trio.abc.Stream:
        at_client, at_server = await tcp_pair()
        # Like OpenSSL's and Go's servers, trio's sends them at the end of the handshake.
        server = trio.SSLStream(at_server, server_side, server_side=True)
        servers.append(server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.do_handshake)
            client = await wrap_client(at_client, client_side, server_hostname="hub.test")
        return client

    readiness = Readiness()
    connections = Connections(dial, "the server", readiness)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        nursery.start_soon(connections.keep_spare)
        connections.upgraded()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert connections.idle_count == 1
        spare = connections.acquire_watched(pytest.fail)
        assert spare is not None
        spare.cut_nowait()
        nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(servers[0])
