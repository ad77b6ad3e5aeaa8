"""What a follower costs and how late it is: `python -m benchmarks.trail.follow [FOLLOWERS] [SECONDS]`.

Writes 1,000 events a second to a trail in a file, as the recorder does, for 10 s, first without followers and
then with them (1 by default). Prints the CPU time that the followers add, in µs an event and as a share of a
core, and how long after its time an event is ready for the client: median, 99th percentile and the longest.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from contextlib import closing
from datetime import datetime
from functools import partial
from pathlib import Path

import msgspec
import trio
from msgspec.structs import replace

from audit.ids import new_eid
from audit.mask import Masks
from audit.query import Query
from audit.record import utc
from audit.search.search import SearchReader
from audit.store import AuditStore
from benchmarks.audit_search import Fleet
from proxy.hub.admin.trail.follow import Follower
from proxy.hub.admin.trail.service import TrailService
from proxy.hub.home.trails import open_search

PER_SECOND = 1000
# The recorder writes a batch each 20 ms.
BATCH = 20


class _Event(msgspec.Struct):
    ts: datetime


class _Row(msgspec.Struct):
    event: _Event


class _Events(msgspec.Struct):
    events: list[_Row]


async def follow(trail: TrailService, late_ms: list[float]) -> None:
    """Follow the trail, and note how late each event is."""
    mark = await trail.searches.step(SearchReader.now)
    source = Follower(trail.searches, trail.poll, Query(), None, mark)
    while True:
        for message in await source.receive():
            if message.event != "events":
                continue
            now = time.time()
            found = msgspec.json.decode(message.data, type=_Events).events
            late_ms += [(now - row.event.ts.timestamp()) * 1000 for row in found]


async def write(store: AuditStore, seconds: float) -> float:
    """Write events at their rate; returns the CPU time of this process meanwhile."""
    source = Fleet(1000).events()
    ready = [next(source) for _ in range(int(seconds * PER_SECOND))]
    cpu_s, began = time.process_time(), trio.current_time()
    for number in range(0, len(ready), BATCH):
        await trio.sleep_until(began + number / PER_SECOND)
        batch = [
            replace(event, eid=new_eid(), ts=utc(time.time())) for event in ready[number : number + BATCH]
        ]
        await trio.to_thread.run_sync(partial(store.append, batch, boot="bench"))
    await trio.sleep(1)
    return time.process_time() - cpu_s


async def run(followers: int, seconds: float) -> None:
    """Measure both runs."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "audit.db"
        with closing(AuditStore(path)) as store:
            trail = TrailService.of(partial(open_search, path), Masks())
            alone_s = await write(store, seconds)
            late_ms: list[float] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trail.run)
                for _ in range(followers):
                    nursery.start_soon(follow, trail, late_ms)
                followed_s = await write(store, seconds)
                nursery.cancel_scope.cancel()
    count = int(seconds * PER_SECOND) * followers
    added_s = followed_s - alone_s
    print(f"{len(late_ms)} of {count} events followed")
    print(
        f"CPU {added_s / count * 1e6:.1f} µs an event and follower, {added_s / seconds:.1%} of a core in all"
    )
    late_ms.sort()
    p99 = late_ms[int(len(late_ms) * 0.99)]
    print(f"late: median {statistics.median(late_ms):.0f} ms, p99 {p99:.0f} ms, longest {late_ms[-1]:.0f} ms")


if __name__ == "__main__":
    trio.run(
        run,
        int(sys.argv[1]) if len(sys.argv) > 1 else 1,
        float(sys.argv[2]) if len(sys.argv) > 2 else 10.0,
    )
