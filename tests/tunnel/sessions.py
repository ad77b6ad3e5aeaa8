"""Two sessions joined in memory: the hub's end and the relay's end of one tunnel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tunnel.protocol.connection import Role
from tunnel.protocol.greetings import Welcome
from tunnel.session import Session, open_session
from tunnel.websocket.transport import memory_transport_pair


@asynccontextmanager
async def open_sessions() -> AsyncIterator[tuple[Session, Session]]:
    """Yield the hub's and the relay's end of one tunnel."""
    here, there = memory_transport_pair()
    async with trio.open_nursery() as nursery:
        hub: list[Session] = []
        leave = trio.Event()
        ready = trio.Event()

        async def listen() -> None:
            async with open_session(here, Role.LISTENER, answer_hello=lambda hello: Welcome()) as session:
                hub.append(session)
                ready.set()
                await leave.wait()

        nursery.start_soon(listen)
        async with open_session(there, Role.DIALER) as relay:
            await ready.wait()
            yield hub[0], relay
        leave.set()
