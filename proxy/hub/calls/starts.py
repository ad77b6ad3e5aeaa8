"""A `start` row in the trail for each long read, so a killed hub leaves evidence of it.

A write has its intent before it moves. A read has one row, when it is over; were it written at its beginning,
each small request would cost a second row and a commit that it waits for. So one look a second finds the
reads that have lasted for STARTED_AFTER_S, and queues a `start` row of each; the recorder writes them in one
batch, and nothing waits for them. After a kill the next hub ends them as `unknown`, as it ends intents.
"""

from __future__ import annotations

import time
from typing import NoReturn

import attrs
import trio

from proxy.hub.calls.calls import Calls
from tunnel.net.fairness import Chunks

# Nearly all reads end sooner. A longer one would leave no trace if the hub is killed.
STARTED_AFTER_S = 5.0
LOOK_EVERY_S = 1.0
# Rows of one look, a tenth of what the recorder's queue holds: after a restart all watches come at once, and
# the others are found by the next look.
STARTS_PER_LOOK_MAX = 2000


@attrs.define(eq=False)
class Starts:
    """Looks at the calls under way."""

    calls: Calls

    async def run(self) -> NoReturn:
        """Look again and again; never returns."""
        while True:
            await trio.sleep(LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Queue a row of each read that has lasted, unless the trail cannot be written now."""
        calls, slices = self.calls, Chunks()
        lasting = calls.live.unstarted(time.monotonic() - STARTED_AFTER_S)
        # Oldest first: every call older than a started one is started too.
        for live in lasting[:STARTS_PER_LOOK_MAX]:
            if slices.over:
                await slices.next()
            if not calls.recorder.healthy:
                return
            live.started = True
            if not (live.over or live.call.durable):
                calls.recorder.complete(calls.start(live))
