"""A tunnel in memory, with the two real sessions at its ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tunnel import Hello, Role, Session, Welcome, memory_transport_pair, open_session


@asynccontextmanager
async def session_pair(*, session_id: str = "session") -> AsyncIterator[tuple[Session, Session]]:
    """The hub's session and the relay's, connected."""
    hub_end, relay_end = memory_transport_pair()
    async with trio.open_nursery() as nursery:
        relays: list[Session] = []
        ready, done = trio.Event(), trio.Event()

        async def dial() -> None:
            async with open_session(relay_end, Role.DIALER, hello=Hello(instance="relay-1")) as relay:
                relays.append(relay)
                ready.set()
                await done.wait()

        nursery.start_soon(dial)
        async with open_session(
            hub_end, Role.LISTENER, answer_hello=lambda hello: Welcome(session_id=session_id)
        ) as hub:
            await ready.wait()
            yield hub, relays[0]
        done.set()
