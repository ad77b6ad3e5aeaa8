"""Used one-time tokens of two hubs in one PostgreSQL, while its server is killed, stopped and away."""

from __future__ import annotations

import itertools
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from proxy.hub.identity.replay_postgres import WAIT_S
from proxy.hub.identity.replay_store import ReplayStore, ReplayStoreUnavailableError
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.store import Store
from tests.fakes.replays import open_replays
from tests.faults.figures import note
from tests.faults.postgres import FaultyPostgres, faulty_postgres, kill_and_restart

pytestmark = [pytest.mark.long, pytest.mark.timeout(180)]

# Each is used at both hubs at once.
TOKENS_PER_S = 100
KILLS = 5
# For a busy machine.
LATE_S = 2.0


@pytest.fixture
def server() -> Iterator[FaultyPostgres]:
    with faulty_postgres() as server:
        Store(PostgresAddress(server.url), org="main", clock=time.time).close()
        yield server


@attrs.define(eq=False)
class Uses:
    """Tokens that are used at two hubs at once, and what became of them."""

    hubs: tuple[ReplayStore, ReplayStore]
    accepted: Counter[str] = attrs.Factory(Counter)
    used: int = 0
    refused: int = 0
    longest_s: float = 0.0

    def figures(self) -> dict[str, float]:
        found = {"uses": self.used, "accepted": len(self.accepted), "refused": self.refused}
        return {**found, "longest_s": round(self.longest_s, 2)}

    async def run(self) -> None:
        """Use tokens at a rate."""
        async with trio.open_nursery() as nursery:
            begin = trio.current_time()
            for number in itertools.count():
                await trio.sleep_until(begin + number / TOKENS_PER_S)
                for hub in self.hubs:
                    nursery.start_soon(self._one, hub, str(number))

    async def _one(self, hub: ReplayStore, jti: str) -> None:
        now, begin = time.time(), time.monotonic()
        try:
            if await hub.enter("assertion", "agent", jti, now + 60, now):
                self.accepted[jti] += 1
        except ReplayStoreUnavailableError:
            self.refused += 1
        self.used += 1
        self.longest_s = max(self.longest_s, time.monotonic() - begin)


@asynccontextmanager
async def using(server: FaultyPostgres) -> AsyncIterator[Uses]:
    address = PostgresAddress(server.url)
    async with open_replays(address) as one, open_replays(address) as other, trio.open_nursery() as nursery:
        uses = Uses((one, other))
        nursery.start_soon(uses.run)
        try:
            yield uses
        finally:
            nursery.cancel_scope.cancel()
    assert uses.accepted
    assert max(uses.accepted.values()) == 1
    assert uses.longest_s < WAIT_S + LATE_S


async def test_no_token_passes_twice_while_the_server_is_killed_and_restarted(server: FaultyPostgres) -> None:
    async with using(server) as uses:
        await kill_and_restart(server, KILLS)
    note("tokens used at two hubs at once, PostgreSQL killed", f"{KILLS} kills", **uses.figures())
    # A restart takes less than a use waits.
    assert uses.refused == 0
    assert len(uses.accepted) > TOKENS_PER_S


async def test_a_server_that_is_stopped_for_3_s_refuses_no_token(server: FaultyPostgres) -> None:
    async with using(server) as uses:
        await trio.sleep(0.5)
        server.signal(signal.SIGSTOP)
        await trio.sleep(3)
        server.signal(signal.SIGCONT)
        await trio.sleep(1)
    note("tokens used at two hubs at once, PostgreSQL stopped", "3 s", **uses.figures())
    assert uses.refused == 0
    assert uses.longest_s > 2.5


async def test_a_server_that_stays_stopped_refuses_each_token_in_time(server: FaultyPostgres) -> None:
    async with using(server) as uses:
        await trio.sleep(0.5)
        server.signal(signal.SIGSTOP)
        await trio.sleep(8)
        assert uses.refused
        server.signal(signal.SIGCONT)
        before = len(uses.accepted)
        with trio.fail_after(30):
            # It depends on a thread and a server, which trio cannot wait for.
            while len(uses.accepted) == before:  # noqa: ASYNC110
                await trio.sleep(0.1)
    note("tokens used at two hubs at once, PostgreSQL stopped", "8 s", **uses.figures())
