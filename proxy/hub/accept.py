"""Accepts connections for the hub: those of agents and relays, and those of operators."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from functools import partial

import attrs
import trio

from proxy.hub.admin.front import AdminFront
from proxy.hub.front import Front
from proxy.hub.restart.instance_lock import Premises
from proxy.listener.accept import listen_on

_log = logging.getLogger("hawse.hub")


@attrs.define(eq=False)
class Acceptor:
    """Accepts the connections of agents, relays and operators, until it is told to stop or to pause.

    The handlers of agents and relays run in `handlers`, and go on when it ends. Operators change the store,
    so theirs end with the accepting.
    """

    premises: Premises
    front: Front
    admin: AdminFront
    handlers: trio.Nursery
    _accepting: trio.CancelScope = attrs.Factory(trio.CancelScope)
    _paused: trio.Event = attrs.Factory(trio.Event)
    _resumed: trio.Event = attrs.Factory(trio.Event)
    _over: bool = False
    """Accepts no more, for good."""

    async def accept_until_told(self, signals: AsyncIterator[int], public_url: str) -> bool:
        """Accept until a signal comes, or a successor; returns whether it was a successor."""
        replaced = False
        async with trio.open_nursery() as nursery:

            async def wait_for_signal() -> None:
                async for _ in signals:
                    break
                nursery.cancel_scope.cancel()

            async def wait_for_successor() -> None:
                nonlocal replaced
                await self.premises.place(self.pause, self.resume).give()
                replaced = True
                nursery.cancel_scope.cancel()

            await nursery.start(self._accept)
            await self.premises.confirm()
            _log.info("the hub is ready at %s (listens on %s)", public_url, self.premises.front[0])
            nursery.start_soon(wait_for_signal)
            nursery.start_soon(wait_for_successor)
        self.front.ready = False
        if replaced:
            self.premises.give_away()
            _log.info("another hub has taken over")
        else:
            self.premises.shut_door()
            self.premises.stop_listening()
            _log.info("stopping")
        return replaced

    async def pause(self) -> None:
        """Accept no more, and let no operator change the store.

        Returns too when this one has been told to stop, before or meanwhile.
        """
        if self._over:
            return
        self._paused = trio.Event()
        self._accepting.cancel()
        await self._paused.wait()

    def resume(self) -> None:
        """Accept again after a pause."""
        self._resumed.set()

    async def _accept(self, task_status: trio.TaskStatus[None]) -> None:
        first = True
        try:
            while True:
                self._resumed = trio.Event()
                with trio.CancelScope() as self._accepting:
                    async with trio.open_nursery() as operators:
                        # Of their own, so that a pause leaves the sockets open.
                        agents = [listen_on(each) for each in self.premises.front[1]]
                        others = [listen_on(each) for each in self.premises.admin[1]]
                        serve = partial(trio.serve_listeners, self.front.handle_client, agents)
                        await operators.start(partial(serve, handler_nursery=self.handlers))
                        await operators.start(trio.serve_listeners, self.admin.handle_client, others)
                        self.front.ready = True
                        if first:
                            first = False
                            task_status.started()
                self.front.ready = False
                self._paused.set()
                await self._resumed.wait()
        finally:
            # Whoever waits for a pause is shielded, and has what it waits for.
            self._over = True
            self._paused.set()
