"""Three hubs are restarted one after the other, again and again, and no agent notices."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from tests.faults.figures import note
from tests.faults.hubs import settled
from tests.faults.postgres import faulty_postgres
from tests.system.hub_work import working
from tests.system.hubs import HubsWorld, running_hubs

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]

# `make faults-hubs ROLLS=3`: a run takes three minutes.
RUNS = int(os.environ.get("HAWSE_FAULTS_ROLLS", "10"))
EXECS, WATCHES = 6, 4
RUN_S = 240.0
GRACE_S = 120
# A supervisor's own stop comes later than the grace.
ENDS_WITHIN_S = GRACE_S + 20.0
SETTINGS = f"[stop]\ngrace_s = {GRACE_S}\nlb_s = 3\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubsWorld]:
    with (
        faulty_postgres() as server,
        running_hubs(tmp_path_factory.mktemp("roll"), server.url, settings=SETTINGS) as running,
    ):
        yield running


@pytest.mark.parametrize("run", range(1, RUNS + 1))
def test_a_rolling_restart_cuts_nothing_and_fails_nothing(world: HubsWorld, run: int) -> None:
    world.until(lambda: settled(world), "the hubs are settled", 60.0)
    began = time.monotonic()
    with working(world, EXECS, WATCHES) as work:
        time.sleep(2)
        ends_s = []
        for member in world.members:
            ends_s.append(world.restart(member, ENDS_WITHIN_S))
            world.until(lambda: settled(world), "the hubs are settled", 60.0)
        took_s = time.monotonic() - began
    note(
        "rolling restart of three hubs",
        f"run {run} of {RUNS}",
        failed=len(work.failures),
        **work.counts,
        longest_drain_s=round(max(ends_s), 1),
        took_s=round(took_s),
    )
    assert not work.failures, work.failures
    assert took_s < RUN_S
