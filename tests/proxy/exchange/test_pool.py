"""What the relay's pool and the hub's direct mode share; the exchanges over it are in their own tests."""

from __future__ import annotations

import socket
import ssl

import pytest
import trio
import trio.testing

from proxy.exchange.pool import SWEEP_S, UNUSED_S, Connections
from tests.tunnel.certificates import contexts
from tunnel.net.connect import open_tls
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


async def test_a_dial_ahead_that_fails_is_tried_again_after_the_next_upgrade_only(
    autojump_clock: trio.testing.MockClock,
) -> None:
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
            await trio.sleep(UNUSED_S)
            assert dials == number
        nursery.cancel_scope.cancel()


async def test_session_tickets_do_not_end_a_connection_that_was_dialled_ahead() -> None:
    client_side, server_side = contexts()
    servers: list[ssl.SSLSocket] = []

    async def dial() -> trio.abc.Stream:
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def serve() -> None:
                # A blocking server sends the tickets at the end of the handshake, as the API server does.
                servers.append(server_side.wrap_socket(listener.accept()[0], server_side=True))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, serve)
                client = await open_tls(*listener.getsockname(), client_side, server_hostname="hub.test")
        return client

    readiness = Readiness()
    connections = Connections(dial, "the server", readiness)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        nursery.start_soon(connections.keep_spare)
        connections.upgraded()
        with trio.fail_after(5):
            while not connections.idle_count:
                await trio.testing.wait_all_tasks_blocked(0.01)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert connections.idle_count == 1
        spare = connections.acquire_watched(pytest.fail)
        assert spare is not None
        spare.cut_nowait()
        nursery.cancel_scope.cancel()
    servers[0].close()
