"""Opens the recorder, and runs its writer's thread for as long as it is open.

There is no thread start and no `to_thread` call per event: the writer is one such call.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio

from audit.ids import new_eid
from audit.record import utc
from audit.recording.recorder import Recorder
from audit.stores import TrailStore

_log = logging.getLogger("hawse.audit")


@asynccontextmanager
async def open_recorder(
    store: TrailStore,
    *,
    org: str = "",
    boot: str = "",
    clock: Callable[[], float] = time.time,
    is_running: Callable[[str], bool] | None = None,
    source_of: Callable[[str], str] = str,
) -> AsyncIterator[Recorder]:
    """Open the recorder; on leaving, all queued events are written if the store permits it.

    At the start, intents without an end from earlier boots are ended as `unknown`. Boots that still run end
    their own; `is_running` recognises them, and is called on a thread. `source_of`: see flood.py.
    Raises AuditUnavailable if the store is down already. The caller closes the store.
    """
    boot = boot or new_eid()
    closed = await trio.to_thread.run_sync(
        partial(store.close_unknown, boot, utc(clock()), is_running=is_running)
    )
    if closed:
        _log.warning("audit: calls of an earlier run without a known end: %d", closed)
    recorder = Recorder(store, org=org, boot=boot, clock=clock, source_of=source_of)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_run_in_thread, recorder.run_writer)
        try:
            yield recorder
        finally:
            recorder.stop()


async def _run_in_thread(run_writer: Callable[[], None]) -> None:
    # Shielded, or a cancellation before the thread starts would lose queued events. `stop` ends it once
    # the queued events are written, or the store fails; the store bounds the time of each batch. It has its
    # own limiter because it keeps its thread permanently, and must not occupy a shared one.
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(run_writer, limiter=trio.CapacityLimiter(1))
