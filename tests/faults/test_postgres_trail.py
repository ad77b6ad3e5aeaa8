"""The trail in PostgreSQL while its server is killed, stopped and away."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing

import attrs
import pytest
import trio

from audit.errors import AuditUnavailable
from audit.postgres.reader import PostgresReader
from audit.postgres.store import PostgresStore
from audit.recording.opening import open_recorder
from audit.recording.recorder import Recorder
from tests.audit.events import call
from tests.faults.figures import note
from tests.faults.postgres import FaultyPostgres, faulty_postgres, kill_and_restart

pytestmark = [pytest.mark.long, pytest.mark.timeout(180)]

WRITES_PER_S = 500
KILLS = 10


@pytest.fixture
def server() -> Iterator[FaultyPostgres]:
    with faulty_postgres() as server:
        yield server


@attrs.define(eq=False)
class Writes:
    """Calls that write: their intents, and what became of them."""

    recorder: Recorder
    acknowledged: set[str] = attrs.Factory(set)
    refused: set[str] = attrs.Factory(set)
    longest_s: float = 0.0

    def figures(self) -> dict[str, float]:
        longest_s = round(self.longest_s, 2)
        return {"writes": len(self.acknowledged), "refused": len(self.refused), "longest_wait_s": longest_s}

    async def run(self, per_s: int) -> None:
        """Begin calls at a rate, each of which ends at once after its intent."""
        async with trio.open_nursery() as nursery:
            begin = trio.current_time()
            for number in range(10**9):
                await trio.sleep_until(begin + number / per_s)
                nursery.start_soon(self._one)

    async def _one(self) -> None:
        event, begin = call(), time.monotonic()
        try:
            await self.recorder.intent(event)
        except AuditUnavailable:
            self.refused.add(event.eid)
        else:
            self.acknowledged.add(event.eid)
            self.recorder.complete(event.completed(event.ts))
        self.longest_s = max(self.longest_s, time.monotonic() - begin)


@asynccontextmanager
async def writing(server: FaultyPostgres, *, wait_s: float) -> AsyncIterator[Writes]:
    with closing(PostgresStore(lambda: server.url, wait_s=wait_s)) as store:
        async with open_recorder(store, boot="hub") as recorder, trio.open_nursery() as nursery:
            writes = Writes(recorder)
            nursery.start_soon(writes.run, WRITES_PER_S)
            try:
                yield writes
            finally:
                nursery.cancel_scope.cancel()


def check(server: FaultyPostgres, writes: Writes) -> None:
    """Each acknowledged intent is in the trail, and each call in the trail has one end."""
    phases: dict[str, Counter[str]] = {}
    with closing(PostgresReader(lambda: server.url)) as reader:
        for stored in reader.events(*reader.span()):
            event = json.loads(stored.line)
            if event["kind"] == "call":
                phases.setdefault(event["eid"], Counter())[event["phase"]] += 1
    whole = Counter({"intent": 1, "complete": 1})
    assert all(phases[eid] == whole for eid in writes.acknowledged)
    # A refused intent may have been committed: then its end says that it was not forwarded.
    assert {eid: found for eid, found in phases.items() if found != whole and "intent" in found} == {}


async def test_a_server_that_is_killed_and_restarted_loses_no_intent(server: FaultyPostgres) -> None:
    # Longer than a restart takes on the busiest machine: what comes back in time costs no write.
    async with writing(server, wait_s=30) as writes:
        await kill_and_restart(server, KILLS)
    check(server, writes)
    note("PostgreSQL killed and restarted under writes", f"{KILLS} kills", **writes.figures())
    assert len(writes.acknowledged) > KILLS * WRITES_PER_S / 4
    assert not writes.refused


async def test_a_server_that_is_away_for_longer_refuses_writes_and_loses_no_intent(
    server: FaultyPostgres,
) -> None:
    async with writing(server, wait_s=0.5) as writes:
        for _ in range(3):
            await trio.sleep(0.5)
            await trio.to_thread.run_sync(server.kill)
            await until(lambda: not writes.recorder.healthy)
            await trio.sleep(0.5)
            server.start()
            await trio.to_thread.run_sync(server.wait)
            await until(lambda: writes.recorder.healthy)
    check(server, writes)
    assert writes.refused
    # The last attempt may begin just before the wait is over.
    assert writes.longest_s < 0.5 + 3.0


async def test_a_server_that_is_stopped_for_3_s_fails_no_write(server: FaultyPostgres) -> None:
    async with writing(server, wait_s=5) as writes:
        await trio.sleep(0.5)
        server.signal(signal.SIGSTOP)
        await trio.sleep(3)
        assert writes.recorder.healthy
        server.signal(signal.SIGCONT)
        await trio.sleep(1)
    check(server, writes)
    note(
        "PostgreSQL stopped for 3 s",
        writes=len(writes.acknowledged),
        longest_wait_s=round(writes.longest_s, 2),
    )
    assert not writes.refused
    assert writes.longest_s > 2.5


async def test_a_server_that_stays_stopped_is_given_up_after_the_wait(server: FaultyPostgres) -> None:
    async with writing(server, wait_s=1) as writes:
        await trio.sleep(0.5)
        server.signal(signal.SIGSTOP)
        await until(lambda: not writes.recorder.healthy)
        server.signal(signal.SIGCONT)
        await until(lambda: writes.recorder.healthy)
    check(server, writes)
    assert writes.refused
    assert writes.longest_s < 1 + 3.0


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        # The condition depends on a thread and a server, which trio cannot wait for.
        while True:
            await trio.sleep(0.01)
            if condition():
                return
