"""One hub of three loses its database; and the database of all three is killed under writes."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.figures import note
from tests.faults.hub_on_postgres import GRACE_S, Streams
from tests.faults.hubs import faulty_hubs, hub_rows
from tests.faults.traffic import traffic
from tests.system.hubs import hub_id

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

STALE_S, STALE_STREAMS_S, DEAD_S = 10.0, 60.0, 75.0
BEGUN_WITHIN_S = 0.5
STREAMS = 10
DEAD_EXIT = 4
# With these, nothing but the age of the directory refuses a read or ends a stream.
DIRECTORY_ALONE = "tunnels_per_relay = 3\n[audit]\nreads_when_down = true\ndown_grace_s = 0\n"
WRITES_PER_S = 500
KILLS = 10
BETWEEN_S = 1.0


def test_a_hub_that_is_cut_off_from_its_database_ends_by_itself_and_the_others_go_on(tmp_path: Path) -> None:
    with ExitStack() as stack:
        hubs = stack.enter_context(faulty_hubs(tmp_path, settings=DIRECTORY_ALONE))
        hubs.world.until(lambda: all(hubs.world.tunnels().values()), "each hub has a tunnel", 60.0)
        victim, other = hubs.world.members[1:]
        victims_id = hub_id(victim)
        mine, theirs = Streams(), Streams()
        mine.open(hubs, STREAMS // 2, stack, hubs.at(victim))
        theirs.open(hubs, STREAMS // 2, stack, hubs.at(other))
        its_calls = stack.enter_context(traffic(hubs.at(victim), reads_per_s=50))
        calls = stack.enter_context(traffic(hubs.at(other), reads_per_s=25, writes_per_s=25))
        time.sleep(1)
        hubs.databases[victim.name].stall()
        away = time.monotonic()
        time.sleep(STALE_S + 5)
        last_begun_s = max(call.began for call in its_calls.calls if call.status == 200) - away
        assert not mine.ended
        last_end_s = mine.last_end(away + STALE_STREAMS_S) - away
        hubs.world.until(
            lambda: victims_id not in {row["hub"] for row in hub_rows(hubs.world, other)}, "it is dead", 60.0
        )
        dead_s = time.monotonic() - away
        hubs.databases[victim.name].flow()
        its_calls.stop()
        assert victim.wait(15.0) == DEAD_EXIT, victim.log[-2000:]
        hubs.world.start(victim)
        hubs.settle(within_s=30.0)
        calls.stop()
        assert not calls.failed()
        assert not theirs.ended
        hubs.check_trail(calls)
        hubs.check_ends()
    note(
        "one hub of three is cut off from the database",
        its_last_call_s=round(last_begun_s, 2),
        its_last_stream_s=round(last_end_s, 2),
        dead_s=round(dead_s, 1),
        calls_of_others=len(calls.calls),
        failed=0,
    )
    assert 3 < last_begun_s < STALE_S + BEGUN_WITHIN_S
    assert last_end_s < STALE_STREAMS_S + GRACE_S
    assert dead_s > DEAD_S - 1


def test_every_write_that_moved_has_its_intent_over_kills_of_the_database_of_three_hubs(
    tmp_path: Path,
) -> None:
    with faulty_hubs(tmp_path) as hubs, traffic(hubs.client, writes_per_s=WRITES_PER_S) as calls:
        hubs.settle(tunnels=3)
        for _ in range(KILLS):
            time.sleep(BETWEEN_S)
            hubs.server.kill()
            hubs.server.start()
            hubs.server.wait()
        calls.until_good(time.monotonic(), 10)
        calls.stop()
        found = hubs.check_trail(calls)
    failed = calls.failed()
    assert {call.status for call in failed} <= {503}
    note(
        "PostgreSQL killed and restarted under writes through three hubs",
        f"{KILLS} kills",
        **found,
        refused=len(failed),
        longest_s=round(calls.longest_s(), 2),
    )
