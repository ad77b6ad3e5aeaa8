"""Writes a `start` row to the trail for each long read, so that a killed hub leaves evidence of it.

A write has an intent before it is forwarded. A read has one row, written when it ends. A row at its beginning
would cost each small request a second row, and a wait for the commit. So a check each second finds the reads
older than STARTED_AFTER_S, and queues a `start` row for each. The recorder writes them in one batch, and
nothing waits for them. After a kill the next hub ends them as `unknown`, as it ends intents.
"""

from __future__ import annotations

import time
from typing import NoReturn

import attrs
import trio

from proxy.hub.calls.calls import Calls
from tunnel.net.fairness import Chunks

# Nearly all reads end sooner. A read that is shorter than this leaves no trace if the hub is killed.
STARTED_AFTER_S = 5.0
CHECK_EVERY_S = 1.0
# Rows per check, a tenth of the recorder's queue. After a restart all watches begin at once; the next checks
# find the others.
STARTS_PER_CHECK_MAX = 2000


@attrs.define(eq=False)
class Starts:
    """Checks the live calls."""

    calls: Calls

    async def run(self) -> NoReturn:
        """Check every CHECK_EVERY_S; never returns."""
        while True:
            await trio.sleep(CHECK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Queue a row for each long read, unless the trail cannot be written now."""
        calls, slices = self.calls, Chunks()
        lasting = calls.live.unstarted(time.monotonic() - STARTED_AFTER_S)
        # Oldest first: every call older than a started one is started too.
        for live in lasting[:STARTS_PER_CHECK_MAX]:
            if slices.over:
                await slices.next()
            if not calls.recorder.healthy:
                return
            live.started = True
            if not (live.over or live.call.durable):
                calls.recorder.complete(calls.start(live))
