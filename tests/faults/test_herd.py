"""A hub that was away comes back to all its relays at once."""

from __future__ import annotations

import resource
import signal
import time
from bisect import bisect_right
from pathlib import Path

import pytest

from benchmarks.accounting import cpu_s, rss_kb
from benchmarks.fleet import ALL_UP_S, Fleet, open_fleet
from benchmarks.upstream.apiserver import open_apiserver
from proxy.hub.relays.accept_limit import ACCEPTS_PER_S, BURST
from tests.faults.figures import note

RELAYS = 5000
# To a cluster: enrolling is not what is looked at.
INSTANCES = 8
FEW = 120
THOUSAND = 1000
# A socket at each end, those of a dial beside the one before, and whatever else a process has.
FILES_MIN = 12_000
BACK_WITHIN_S = 120.0
# The hub lets 100 in at once, and those that it refuses dial again 5 to 10 s later.
FEW_WITHIN_S = 15.0
THOUSAND_WITHIN_S = 25.0
# Of one core: it has the other relays' requests to answer meanwhile, and is not to be all in handshakes.
CPU_PER_RELAY_S = 0.02
# The hub counts when it lets one in, and these clocks when that one has a session.
WINDOW_S = 5.0
LATE_S = 1.0


def come_back(fleet: Fleet, count: int, number: signal.Signals, within_s: float) -> None:
    """End the hub by a signal, start it when all relays have noticed, and wait until all are back."""
    fleet.start([process.size for process in fleet.processes])
    fleet.opened()
    fleet.hub.process.send_signal(number)
    fleet.hub.process.wait()
    deadline = time.monotonic() + ALL_UP_S
    while fleet.live():
        assert time.monotonic() < deadline, "relays that have not seen that the hub is gone"
        time.sleep(0.1)
    fleet.hub = fleet.installation.start_hub()
    ready_at = time.monotonic()
    pid = fleet.hub.process.pid
    spent_before_s = cpu_s(pid)
    opened = sorted(fleet.wait_for_opened(count))
    # One may have come twice.
    fleet.wait_for(count)
    back_s = time.monotonic() - ready_at
    spent_s = cpu_s(pid) - spent_before_s
    busiest = max(bisect_right(opened, at + WINDOW_S) - number for number, at in enumerate(opened))
    note(
        "a hub comes back to its waiting relays",
        f"{count}, {number.name}",
        half_back_s=round(opened[count // 2] - ready_at, 1),
        all_back_s=round(back_s, 1),
        most_in_a_second=round(busiest / WINDOW_S),
        hub_cpu_s=round(spent_s, 1),
        hub_rss_mib=rss_kb(pid) // 1024,
    )
    assert back_s < within_s
    assert busiest <= BURST + ACCEPTS_PER_S * (WINDOW_S + LATE_S)
    assert spent_s < CPU_PER_RELAY_S * count


@pytest.mark.timeout(120)
def test_a_small_fleet_comes_back(tmp_path: Path) -> None:
    with (
        open_apiserver(tmp_path) as upstream,
        open_fleet(tmp_path, upstream, FEW, instances=INSTANCES) as fleet,
    ):
        come_back(fleet, FEW, signal.SIGKILL, FEW_WITHIN_S)


@pytest.mark.long
@pytest.mark.alone
@pytest.mark.timeout(600)
def test_a_thousand_relays_come_back_to_a_hub_that_is_restarted(tmp_path: Path) -> None:
    """All of them dial within the first second, and the hub lets 200 a second in."""
    with (
        open_apiserver(tmp_path) as upstream,
        open_fleet(tmp_path, upstream, THOUSAND, instances=INSTANCES) as fleet,
    ):
        come_back(fleet, THOUSAND, signal.SIGTERM, THOUSAND_WITHIN_S)


@pytest.mark.long
@pytest.mark.alone
@pytest.mark.timeout(1200)
def test_five_thousand_relays_come_back_one_after_the_other(tmp_path: Path) -> None:
    # Every process of ours takes what it may have.
    _, files_max = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert files_max >= FILES_MIN, (
        f"ulimit -Hn is {files_max}, and a hub with {RELAYS} relays needs {FILES_MIN}"
    )
    with (
        open_apiserver(tmp_path) as upstream,
        open_fleet(tmp_path, upstream, RELAYS, instances=INSTANCES) as fleet,
    ):
        come_back(fleet, RELAYS, signal.SIGKILL, BACK_WITHIN_S)
