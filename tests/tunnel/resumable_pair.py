"""A listener and a dialer in memory that outlive their transports."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from tests.tunnel.pairs import Unplugged
from tests.tunnel.trio_stream import TrioStream, accept
from tunnel import (
    Hello,
    Role,
    Session,
    Welcome,
    hear_hello,
    memory_transport_pair,
    open_session,
    read_hello,
)
from tunnel.handshake import say_hello
from tunnel.websocket.transport import MemoryTransport, Transport

RESUMING = ("resume",)


def answer(hello: Hello) -> Welcome:
    return Welcome(session_id="s", features=RESUMING, resume_ttl_s=60)


@attrs.define(eq=False)
class ResumablePair:
    """A listener, a dialer, their current wire, and a nursery for the next one."""

    listener: Session
    dialer: Session
    nursery: trio.Nursery
    here: Unplugged
    there: Unplugged
    context: int

    def cut(self) -> None:
        """End both ends at once, as a reset connection does."""
        inner = self.here.inner
        assert isinstance(inner, MemoryTransport)
        inner.cut()

    def unplug(self) -> None:
        """Drop everything from now on, without an error at either end."""
        self.here.unplugged = self.there.unplugged = True

    async def streams(self) -> tuple[TrioStream, TrioStream]:
        opened = TrioStream(self.listener.open_stream(b"head", context=self.context))
        return opened, await accept(self.dialer)

    async def redial(self, hello: Hello | None = None) -> None:
        """Greet resume_over a new wire; what carries the sessions then are tasks of their own."""
        self.here, self.there = wires()
        here, there = self.here, self.there

        async def listen() -> None:
            await resume_over(self.listener, here, await hear_hello(here))

        self.nursery.start_soon(listen)
        welcome = await say_hello(there, hello or self.dialer.hello_again())
        self.nursery.start_soon(resume_over, self.dialer, there, welcome)
        await wait_all_tasks_blocked()


async def resume_over(session: Session, wire: Transport, greeting: bytes) -> None:
    """Resume a session over a new wire."""
    if session.role is Role.LISTENER:
        resume = read_hello(greeting).resume
        assert resume is not None
        assert session.may_resume(resume)
    await session.resume(wire, greeting)


def wires() -> tuple[Unplugged, Unplugged]:
    here, there = memory_transport_pair()
    return Unplugged(here), Unplugged(there)


@asynccontextmanager
async def open_resumable_pair() -> AsyncIterator[ResumablePair]:
    here, there = wires()
    done = trio.Event()
    tell, told = trio.open_memory_channel[Session](1)

    async def dial() -> None:
        async with open_session(there, Role.DIALER, hello=Hello(features=RESUMING)) as session:
            await tell.send(session)
            await done.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial)
        async with open_session(here, Role.LISTENER, answer_hello=answer) as listener:
            dialer = await told.receive()
            context = listener.add_context(1, b"token")
            yield ResumablePair(listener, dialer, nursery, here, there, context)
            done.set()
