"""Dials for a session that has lost its connection: a relay's to a hub, and a hub's to another one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Protocol

import attrs
import trio

from tunnel.dialing.failure import DialFailed
from tunnel.protocol.errors import RemoteProtocolError
from tunnel.protocol.greetings import Hello
from tunnel.refusals import SessionClosed
from tunnel.session import Session
from tunnel.websocket.transport import Transport

__all__ = ["Redial"]


class Dialled(Protocol):
    """A connection whose listener has answered the hello."""

    @property
    def transport(self) -> Transport: ...
    @property
    def greeting(self) -> bytes: ...
    def succeeded(self) -> None:
        """Take the dial for done: what fails from now on is the session's. Raises DialFailed."""
        ...


@attrs.frozen(eq=False)
class Redial:
    """Brings one session back whenever it has lost its connection."""

    session: Session
    dial: Callable[[Hello], AbstractAsyncContextManager[Dialled]]
    """Raises DialFailed."""
    first_wait_s: Callable[[], float]
    """Returns the wait between a loss and the first dial."""
    back: Callable[[], None]
    """Called when the session has another connection."""
    failed: Callable[[DialFailed], float]
    """Called for each dial that fails; returns the wait until the next one."""

    async def run(self) -> None:
        """Dial another connection after each loss, until the session ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._dial_whenever_lost, nursery)
            # It can expire in the middle of a dial.
            await self.session.wait_closed()
            nursery.cancel_scope.cancel()

    async def _dial_whenever_lost(self, nursery: trio.Nursery) -> None:
        # While this dials, the previous connection may still be closing, for a second.
        while await self.session.wait_detached():
            await nursery.start(self._dial_until_back)

    async def _dial_until_back(self, task_status: trio.TaskStatus[None]) -> None:
        """Dial until the session goes on, which is when this is started, and carry it while it does."""
        session, wait_s = self.session, self.first_wait_s()
        while True:
            await trio.sleep(wait_s)
            if session.closed:
                # It was closed in this loop pass; the task that waits for that cancels us in the next one.
                task_status.started()
                return
            try:
                async with self.dial(session.hello_again()) as dialled:
                    dialled.succeeded()
                    self.back()
                    task_status.started()
                    with suppress(SessionClosed, RemoteProtocolError):
                        await session.resume(dialled.transport, dialled.greeting)
                return
            except DialFailed as error:
                wait_s = self.failed(error)
