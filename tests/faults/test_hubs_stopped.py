"""A hub that does nothing for a while (SIGSTOP, a frozen machine) and goes on, among others that went on."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.figures import note
from tests.faults.hub_on_postgres import Streams
from tests.faults.hubs import faulty_hubs
from tests.faults.traffic import traffic

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

# Each relay at each hub: no stream of another hub takes the hop by the one that is stopped.
SETTINGS = "tunnels_per_relay = 3\n"
STREAMS = 6
# The hub that is stopped meets these at once when it goes on, before any of its timers.
BUFFERED = 20
STALE_STREAMS_S = 60.0
DEAD_EXIT = 4
ENDS_WITHIN_S = 10.0


@pytest.mark.parametrize("stopped_s", [5, 20, 90])
def test_a_hub_that_stops_and_goes_on(tmp_path: Path, stopped_s: int) -> None:
    with ExitStack() as stack:
        hubs = stack.enter_context(faulty_hubs(tmp_path, settings=SETTINGS))
        hubs.world.until(lambda: all(hubs.world.tunnels().values()), "each hub has a tunnel", 60.0)
        victim, other = hubs.world.members[1:]
        mine, theirs = Streams(), Streams()
        mine.open(hubs, STREAMS // 2, stack, hubs.at(victim))
        theirs.open(hubs, STREAMS // 2, stack, hubs.at(other))
        calls = stack.enter_context(traffic(hubs.at(other), reads_per_s=25, writes_per_s=25))
        path, mark = hubs.chain.path(lambda exchange: exchange.answer())
        late = hubs.at(victim)
        head = late.head(path)
        connections = [stack.enter_context(late.connect()) for _ in range(BUFFERED)]
        victim.signal(signal.SIGSTOP)
        began = time.monotonic()
        for connection in connections:
            connection.sendall(head)
        time.sleep(stopped_s)
        victim.signal(signal.SIGCONT)
        if stopped_s > STALE_STREAMS_S:
            assert victim.wait(ENDS_WITHIN_S) == DEAD_EXIT, victim.log[-2000:]
            last_end_s = mine.last_end(time.monotonic()) - began - stopped_s
            # None was forwarded in the time between its first step and its end.
            assert hubs.chain.server.seen(mark) == []
            hubs.world.start(victim)
        else:
            last_end_s = 0.0
            time.sleep(5)
            assert not mine.ended
            assert victim.running
        ended = len(mine.ended)
        back_s = hubs.settle(within_s=30.0)
        assert not theirs.ended
        calls.stop()
        assert not calls.failed()
        served = len(hubs.chain.server.seen(mark))
        hubs.check_trail(calls)
        unknown = hubs.check_ends()
    note(
        "a hub of three is stopped and goes on",
        f"{stopped_s} s",
        calls_of_others=len(calls.calls),
        failed=0,
        its_streams=len(mine.exchanges),
        ended=ended,
        last_end_s=round(last_end_s, 2),
        buffered_calls_served=served,
        ended_as_unknown=unknown,
        settled_s=round(back_s, 1),
    )
    if stopped_s > STALE_STREAMS_S:
        assert unknown >= STREAMS // 2
