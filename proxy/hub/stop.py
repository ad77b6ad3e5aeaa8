"""How a hub stops: what it announces, in which order, and how long it waits for its open calls.

Alone, or replaced by a new process on its sockets, a hub stops accepting first. Where other hubs serve:

1. The other hubs hear that it leaves, before its relays do: a route that leaves is their last choice.
2. `/readyz` is 503 from now on, each answer is the last on its connection, and new tunnels are refused.
3. Its relays get GOAWAY, and dial other hubs.
4. For `stop.lb_s` new connections are served as before: a load balancer takes that long to find out.
5. Then it accepts no more, and drains. Only the listener for links goes on until it exits: by a link come
   calls for its relays, and the resumes of relays that lose their connections meanwhile.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import attrs
import trio

from proxy.hub.front import Front
from proxy.hub.home.config import StopConfig
from proxy.process.lifecycle.drain import PLAIN_S, Drained
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

    @property
    def carry(self) -> bool:
        """Whether a resume that reaches another hub, or the process that replaces this one, comes here."""
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
    """It has peers, which serve in its place."""
    _hurried: bool = False
    """A second signal has come."""
    _began: float = 0.0
    """When the stop has begun, and when its grace ends, on trio's clock."""
    _ends_at: float = 0.0

    async def leave(self) -> None:
        """Leave the other hubs, if there are any, while connections are still accepted: for `stop.lb_s`."""
        if self.peers is None or not self.peers.serve:
            return
        self._left = True
        self.front.dials.leaving = True
        self._tell(self.config.grace(peers=True), resumes=self.peers.carry)
        _log.info("other hubs serve: this one accepts for another %d s (stop.lb_s)", self.config.lb_s)
        async with self._until_hurried():
            await trio.sleep(self.config.lb_s)

    async def finish(self, *, replaced: bool) -> None:
        """Wait for the open calls of a hub that accepts no more."""
        if not self._left:
            grace_s = self.config.replaced_grace_s if replaced else self.config.grace(peers=False)
            # No dial leads to a hub that has stopped alone.
            resumes = replaced and self.peers is not None and self.peers.carry
            self._tell(grace_s, replaced=replaced, resumes=resumes)
        if not self._hurried:
            async with self._until_hurried():
                await self._drain(idle_s=PLAIN_S if self._left or replaced else 0.0)

    def _tell(self, grace_s: float, *, replaced: bool = False, resumes: bool = False) -> None:
        """Tell the other hubs, the agents and the relays, in this order. The grace begins."""
        self._began = trio.current_time()
        self._ends_at = self._began + grace_s
        if self.peers is not None:
            self.peers.leave(replaced=replaced)
        self.front.deadlines.ending = True
        if self.front.calls.asked is not None:
            self.front.calls.asked.leave()
        self.front.relays.leave(grace_s, replaced=replaced, resumes=resumes)

    @asynccontextmanager
    async def _until_hurried(self) -> AsyncIterator[None]:
        """Run the block until it ends, or until the next signal."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hurry, nursery.cancel_scope)
            yield
            nursery.cancel_scope.cancel()

    async def _hurry(self, cut: trio.CancelScope) -> None:
        """Cut all calls at the next signal."""
        async for number in self.signals:
            name, calls = signal.Signals(number).name, counted(self._count, "call")
            _log.warning("%s again: cutting %s", name, calls)
            self._hurried = True
            cut.cancel()

    @property
    def _drained(self) -> Sequence[Drained]:
        live = self.front.calls.live
        return (live,) if self.forwarded is None else (live, self.forwarded)

    @property
    def _count(self) -> int:
        return sum(each.count for each in self._drained)

    async def _drain(self, *, idle_s: float) -> None:
        """Wait until the open calls have ended, or the grace is over.

        Agents keep idle connections open. A close may cross the next call, which then fails. So a hub with a
        successor, or with peers, answers one more call on each connection, as its last, and closes the
        connections that are still idle `idle_s` after the stop has begun.
        """
        grace_s = max(0.0, self._ends_at - trio.current_time())
        _log.info(
            "draining %s, %d of them streams, for up to %.0f s (%.0f s for those that are no streams); "
            "another signal cuts all",
            counted(self._count, "call"), sum(each.long for each in self._drained),
            grace_s, min(PLAIN_S, grace_s),
        )  # fmt: skip
        deadlines = self.front.deadlines
        with trio.move_on_after(grace_s):
            while await self._wait_drained(grace_s):
                if not deadlines.watched or trio.current_time() >= self._began + idle_s:
                    break
                await trio.sleep(IDLE_LOOK_S)

    async def _wait_drained(self, grace_s: float) -> bool:
        """Wait for both kinds of calls, as Drained.wait_drained."""
        async with trio.open_nursery() as nursery:
            for each in self._drained:
                nursery.start_soon(each.wait_drained, grace_s)
        return not self._count
