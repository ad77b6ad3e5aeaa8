"""Decides the open requests again after a change of the policies, teams or owners.

A call decides again before it uses a request. This module ends all other requests that no longer count: no
approver is asked about a call that would be refused, and no approval outlives the rule that asked for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, NoReturn

import attrs
import trio

from proxy.hub.approvals.held.decided import no_longer_asked
from proxy.hub.approvals.held.interfaces import RequestRows
from proxy.hub.approvals.request import State
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.entities import Snapshot
from tunnel.net.fairness import Chunks
from tunnel.net.loglimit import LogLimit

# Between two rounds. Many changes of the directory concern no request.
ROUND_EVERY_S: Final = 1.0

_log = logging.getLogger("hawse.hub.approvals")


@attrs.define(eq=False)
class Reconsider:
    """Judges the open requests of all hubs; each hub does, and the first one ends a request."""

    requests: RequestRows
    current: Callable[[], Snapshot]
    _changed: trio.Event = attrs.Factory(trio.Event)
    _failed: LogLimit = attrs.Factory(lambda: LogLimit(_log))

    def on_change(self) -> None:
        """Judge them soon; a listener of the directory."""
        self._changed.set()

    async def run(self) -> NoReturn:
        """Judge them at the start and after each change. A change may have come while no hub ran."""
        while True:
            try:
                await self._judge()
            except StoreUnavailableError as error:
                line = f"approvals: cannot decide the open requests again: {error}"
                self._failed.warning(line, trio.current_time())
                self._changed.set()
            await trio.sleep(ROUND_EVERY_S)
            await self._changed.wait()

    async def _judge(self) -> None:
        self._changed = trio.Event()
        slices = Chunks()
        for request in await self.requests.every_open():
            if slices.over:
                await slices.next()
            if why := no_longer_asked(self.current(), request, request.new.info, time.time()):
                await self.requests.end(request.id, State.CANCELLED, why)
