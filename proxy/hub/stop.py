"""How a hub stops: what it tells, in which order, and how long it waits for its open calls.

Alone, or replaced by a new process on its sockets, a hub stops accepting first. Where other hubs serve, it
goes on accepting until it exits:

1. The other hubs hear that it leaves, before its relays do: a route that leaves is their last choice.
2. `/readyz` is 503 from now on, each answer is the last on its connection, and new tunnels are refused.
3. Its relays get GOAWAY, and dial other hubs.
4. For `stop.lb_s` new connections are served as before: a load balancer takes that long to find out.
5. After that a call on a new connection is refused; the client asks again, at another hub. Relays still
   resume their sessions here, until the last call has ended.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import attrs
import trio

from proxy.hub.front import Front
from proxy.hub.home.config import StopConfig
from proxy.process.drain import PLAIN_S, Drained
from proxy.process.plural import counted

# How often to check whether the agents' connections have closed.
IDLE_LOOK_S = 0.25

_log = logging.getLogger("hawse.hub")


class Peers(Protocol):
    """The other hubs of this one's database."""

    @property
    def serve(self) -> bool:
        """Whether another hub serves, and does not leave itself."""
        ...

    def leave(self, *, replaced: bool = False) -> None:
        """Tell them that this hub leaves; another process has its listeners if it was `replaced`."""
        ...


@attrs.define(eq=False)
class Stop:
    """Stops a hub once."""

    config: StopConfig
    front: Front
    signals: AsyncIterator[int]
    """The first one has stopped the hub; another one cuts all calls."""
    peers: Peers | None = None
    forwarded: Drained | None = None
    """The calls that this hub forwards for its peers."""
    _left: bool = False

    async def leave(self) -> None:
        """Leave the other hubs, if there are any, while connections are still accepted.

        Returns at once if there are none; otherwise when nothing is open any more, or the grace is over.
        """
        if self.peers is None or not self.peers.serve:
            return
        grace_s = self.config.grace(peers=True)
        began = trio.current_time()
        self.peers.leave()
        front = self.front
        self._left = front.dials.leaving = front.deadlines.ending = True
        front.relays.leave(grace_s, resumes=True)
        _log.info("other hubs serve: this one accepts for another %d s (stop.lb_s)", self.config.lb_s)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hurry, nursery.cancel_scope)
            await trio.sleep(self.config.lb_s)
            front.refuses_calls = True
            await self._drain(max(0.0, began + grace_s - trio.current_time()), idle_until=began + PLAIN_S)
            nursery.cancel_scope.cancel()

    async def finish(self, *, replaced: bool) -> None:
        """Wait for the open calls of a hub that accepts no more; returns at once after `leave`."""
        front = self.front
        if self._left:
            return
        if self.peers is not None:
            self.peers.leave(replaced=replaced)
        front.deadlines.ending = True
        grace_s = self.config.replaced_grace_s if replaced else self.config.grace(peers=False)
        front.relays.leave(grace_s, replaced=replaced)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hurry, nursery.cancel_scope)
            await self._drain(grace_s, idle_until=trio.current_time() + (PLAIN_S if replaced else 0.0))
            nursery.cancel_scope.cancel()

    async def _hurry(self, cut: trio.CancelScope) -> None:
        """Cut all calls at the next signal."""
        async for number in self.signals:
            name, calls = signal.Signals(number).name, counted(self._count, "call")
            _log.warning("%s again: cutting %s", name, calls)
            cut.cancel()

    @property
    def _drained(self) -> Sequence[Drained]:
        live = self.front.calls.live
        return (live,) if self.forwarded is None else (live, self.forwarded)

    @property
    def _count(self) -> int:
        return sum(each.count for each in self._drained)

    async def _drain(self, grace_s: float, *, idle_until: float) -> None:
        """Wait until the open calls have ended, for `grace_s` at most.

        Agents keep idle connections open. A close may cross the next call, which then fails. So a hub with a
        successor, or with peers, answers one more call on each connection, as its last, and closes the
        connections that are still idle at `idle_until`.
        """
        _log.info(
            "draining %s, %d of them streams, for up to %.0f s (%.0f s for those that are no streams); "
            "another signal cuts all",
            counted(self._count, "call"), sum(each.long for each in self._drained),
            grace_s, min(PLAIN_S, grace_s),
        )  # fmt: skip
        deadlines = self.front.deadlines
        with trio.move_on_after(grace_s):
            while await self._wait_drained(grace_s):
                if not deadlines.watched or trio.current_time() >= idle_until:
                    break
                await trio.sleep(IDLE_LOOK_S)

    async def _wait_drained(self, grace_s: float) -> bool:
        """Wait for both kinds of calls, as Drained.wait_drained."""
        async with trio.open_nursery() as nursery:
            for each in self._drained:
                nursery.start_soon(each.wait_drained, grace_s)
        return not self._count
