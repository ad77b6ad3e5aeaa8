"""Accepts the connections of agents and relays on the public listener, of operators on the admin listener, of
browsers on the console's, and of other hubs on the listener for links.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import attrs
import trio

from proxy.hub.admin.front import AdminFront
from proxy.hub.front import Front
from proxy.hub.peers.listener import PeerListener
from proxy.hub.restart.instance_lock import InstanceLock
from proxy.listener.accept import listen_on, serve_connections
from tunnel.net.tcp import TCPStream

_log = logging.getLogger("hawse.hub")


@attrs.define(eq=False)
class Acceptor:
    """Accepts connections of agents, relays, operators and other hubs, with pauses for a handover.

    The handlers of agents, relays and hubs run in `handlers` and continue after the accepting has ended.
    Operators and browsers change the store, so their handlers end with the accepting.
    """

    instance: InstanceLock
    front: Front
    admin: AdminFront
    handlers: trio.Nursery
    leave: Callable[[], Awaitable[None]]
    """Called once a signal has stopped this hub, while it still accepts."""
    peers: PeerListener | None = None
    """Serves other hubs, where the instance listens for them."""
    show: Callable[[TCPStream], Awaitable[None]] | None = None
    """Serves browsers, where the instance listens for them."""
    _accepting: trio.CancelScope = attrs.Factory(trio.CancelScope)
    _linking: trio.CancelScope = attrs.Factory(trio.CancelScope)
    _paused: trio.Event = attrs.Factory(trio.Event)
    _resumed: trio.Event = attrs.Factory(trio.Event)
    _over: bool = False
    """The accepting has ended, and does not resume."""

    async def accept_until_stopped(self, signals: AsyncIterator[int], public_url: str) -> bool:
        """Accept until a signal arrives or a new hub takes over; returns whether a new hub has."""
        replaced = False
        async with trio.open_nursery() as accepting:
            await accepting.start(self._accept)
            await self.instance.confirm()
            _log.info("the hub is ready at %s (listens on %s)", public_url, self.instance.front[0])
            async with trio.open_nursery() as nursery:

                async def wait_for_signal() -> None:
                    async for _ in signals:
                        break
                    nursery.cancel_scope.cancel()

                async def wait_for_successor() -> None:
                    nonlocal replaced
                    await self.instance.handover_server(self.pause, self.resume).hand_over()
                    replaced = True
                    nursery.cancel_scope.cancel()

                nursery.start_soon(wait_for_signal)
                nursery.start_soon(wait_for_successor)
            self.front.ready = False
            if not replaced:
                self.instance.close_restart_socket()
                _log.info("stopping")
                await self.leave()
            accepting.cancel_scope.cancel()
        if replaced:
            self.instance.mark_handed_over()
            _log.info("another hub has taken over")
        else:
            self.instance.stop_listening()
        return replaced

    async def pause(self) -> None:
        """Stop accepting, and end the operators' requests, so that the store no longer changes.

        Returns at once when the accepting has ended, and also when it ends meanwhile.
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
                        # Duplicates, so that a pause leaves the shared sockets open.
                        agents = [listen_on(each) for each in self.instance.front[1]]
                        others = [listen_on(each) for each in self.instance.admin[1]]
                        handle, manage = self.front.handle_client, self.admin.handle_client
                        await operators.start(serve_connections, handle, agents, self.handlers)
                        await operators.start(serve_connections, manage, others, operators)
                        if self.show is not None and self.instance.console is not None:
                            browsers = [listen_on(each) for each in self.instance.console[1]]
                            await operators.start(serve_connections, self.show, browsers, operators)
                        await self.handlers.start(self._accept_links)
                        self.front.ready = True
                        if first:
                            first = False
                            task_status.started()
                self._linking.cancel()
                self.front.ready = False
                self._paused.set()
                await self._resumed.wait()
        finally:
            # `pause` is called in a shielded scope: it must return now that nothing accepts.
            self._over = True
            self._paused.set()

    async def _accept_links(self, task_status: trio.TaskStatus[None]) -> None:
        """Accept connections of other hubs until a pause, or until the hub has drained.

        Calls, questions and resumes have to reach a hub that drains, also over a link whose connection was
        lost meanwhile.
        """
        if self.peers is None or self.instance.peer is None:
            task_status.started()
            return
        hubs = [listen_on(each) for each in self.instance.peer[1]]
        with trio.CancelScope() as self._linking:
            await serve_connections(self.peers.handle_client, hubs, self.handlers, task_status=task_status)
