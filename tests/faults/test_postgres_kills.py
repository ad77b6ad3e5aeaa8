"""PostgreSQL is killed again and again under a hub that writes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.faults.figures import note
from tests.faults.hub_on_postgres import hub_on_postgres
from tests.faults.traffic import traffic

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

WRITES_PER_S = 500
KILLS = 50
BETWEEN_S = 0.6


def test_every_write_that_moved_has_its_intent_over_50_kills(tmp_path: Path) -> None:
    with hub_on_postgres(tmp_path) as hub, traffic(hub.client, writes_per_s=WRITES_PER_S) as calls:
        time.sleep(1)
        begin = time.monotonic()
        for _ in range(KILLS):
            time.sleep(BETWEEN_S)
            hub.server.kill()
            hub.server.start()
            hub.server.wait()
        took_s = time.monotonic() - begin
        calls.until_good(time.monotonic(), 10)
        calls.stop()
        found = hub.check_trail(calls)
    failed = calls.failed()
    assert {call.status for call in failed} <= {503}
    # On a busy machine a good part of the time between two kills is lost.
    assert found["moved"] > KILLS * BETWEEN_S * WRITES_PER_S / 5
    note(
        "PostgreSQL killed and restarted under writes through the hub",
        f"{KILLS} kills",
        **found,
        refused=len(failed),
        writes_per_s=round(found["moved"] / took_s),
        longest_s=round(calls.longest_s(), 2),
    )
