"""98 with small requests beside one that stalls and one that takes all it can, on fast and on slow links.

They are compared with themselves without the two, in turns, since the machine does other things as well.
"""

from __future__ import annotations

import ssl
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import attrs
import pytest

from benchmarks.load import Job, Load
from benchmarks.system import Endpoint
from tests.faults.bulk import STALLED_BUFFER_BYTES, Download, downloading, endless_exec, endless_log, stalling
from tests.faults.crowd import Waits, crowd
from tests.faults.figures import note
from tests.faults.flood import flooding
from tests.faults.world import CLUSTER, FaultWorld, running_faults
from tests.system.world import POD_PATH

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(600)]

NORMAL = 98
WHAT = f"{NORMAL} streams beside a stalled and a saturating one"
SLOW_MBIT, SLOW_RTT_S = 10, 0.1
# Beside the two: the p99 on a fast link, by what it is without them; on a slow one, what is added to it.
TIMES = 3.0
ADDED_S = 0.050
# What waits before the slow link all the time.
STANDING_S = 0.025
# The router before it has room for so much. Who fills it delays all others by more than QUEUED_S; no busy
# machine does that.
BUFFER_S = 2.0
QUEUED_S = 0.5
# It must be worth the name: the saturating one has what the others leave.
FULL = 0.75
NONE = Waits(())


class Begin(Protocol):
    """Begins an endless answer; the kernel may hold so much of it that is not read."""

    def __call__(self, *, buffer_bytes: int = 0) -> ssl.SSLSocket: ...


@attrs.define
class Found:
    """What the others waited, without the two and beside them."""

    alone: Waits = NONE
    beside: Waits = NONE
    mbit: list[float] = attrs.Factory(list)
    """What the saturating one carried beside them."""

    @property
    def carried_mbit(self) -> float:
        return statistics.mean(self.mbit)

    @property
    def added_s(self) -> float:
        return self.beside.p99_s - self.alone.p99_s

    @property
    def standing_s(self) -> float:
        """What everybody waits for: the queue's least length, as CoDel has it (RFC 8289, section 3.2)."""
        return self.beside.share(0.1) - self.alone.share(0.1)

    def work_beside(self, work: Callable[[], Waits], saturating: Download) -> None:
        """Let the others work once, and watch the saturating one meanwhile."""
        waits: list[Waits] = []
        self.mbit.append(saturating.mbit_per_s(lambda: waits.append(work())))
        self.beside += waits[0]

    def figures(self) -> dict[str, float]:
        told: dict[str, float] = {"requests": len(self.beside.taken_s)}
        for name, waits in (("alone", self.alone), ("beside", self.beside)):
            told[f"p50_ms_{name}"] = round(waits.median_s * 1000, 1)
            told[f"p99_ms_{name}"] = round(waits.p99_s * 1000, 1)
        told["standing_queue_ms"] = round(self.standing_s * 1000, 1)
        told["saturating_mbit_per_s"] = round(self.carried_mbit, 1)
        return told


@contextmanager
def the_two(world: FaultWorld, begin: Begin, settle_s: float) -> Iterator[Download]:
    """One that stalls, and one that saturates and has found out what the link carries; yields the latter."""
    with (
        stalling(world, begin(buffer_bytes=STALLED_BUFFER_BYTES)),
        downloading(begin()) as saturating,
    ):
        time.sleep(settle_s)
        yield saturating


def on_a_slow_link(world: FaultWorld, *, seconds: float, rounds: int) -> Found:
    """Each connection asks every 2 s, so that all of them need a tenth of the link."""
    found = Found()
    world.shape_tunnel(delay_s=SLOW_RTT_S / 2, mbit=SLOW_MBIT, buffer_s=BUFFER_S)
    with crowd(world, POD_PATH, streams=NORMAL, period_s=2.0, seconds=seconds) as normal:
        for _ in range(rounds):
            found.alone += normal.waits()
            with the_two(world, partial(endless_exec, world), 4.0) as saturating:
                found.work_beside(normal.waits, saturating)
    return found


def test_a_slow_links_neighbours_do_not_wait_behind_a_whole_queue(world: FaultWorld) -> None:
    """On a machine that does other things as well."""
    found = on_a_slow_link(world, seconds=4.0, rounds=1)
    assert found.carried_mbit > SLOW_MBIT / 2, "there was nothing to wait behind"
    assert found.standing_s <= QUEUED_S


@pytest.mark.long
@pytest.mark.alone
def test_a_slow_links_slowest_neighbour_waits_little(world: FaultWorld) -> None:
    """The same within what is promised, and for long enough to have a p99."""
    found = on_a_slow_link(world, seconds=10.0, rounds=2)
    note(WHAT, "10 Mbit/s, 100 ms", **found.figures())
    assert found.carried_mbit > FULL * SLOW_MBIT
    assert found.standing_s <= STANDING_S
    assert found.added_s <= ADDED_S


@pytest.mark.long
@pytest.mark.alone
def test_a_fast_links_slowest_neighbour_waits_little(tmp_path: Path) -> None:
    """Where nothing is slow, what is short is the cores, and one stream may have no more of them than others.

    So here each of the 98 asks again as soon as it is answered. How it is when they leave the cores to the
    saturating one, most of the time, is only noted: they wait for a core then, whatever the tunnel does.
    """
    busy, resting = Found(), Found()
    with (
        flooding(tmp_path / "api") as (_, port, kubeconfig),
        running_faults(
            tmp_path,
            api_port=port,
            relay_kubeconfig=kubeconfig,
            settings="[limits]\nrequests_per_second = 0",
        ) as world,
    ):
        for _ in range(3):
            busy.alone += at_full_speed(world)
            with the_two(world, partial(endless_log, world, world.client().token()), 1.0) as saturating:
                busy.work_beside(lambda: at_full_speed(world), saturating)
        with crowd(world, POD_PATH, streams=NORMAL, period_s=1.0, seconds=8.0) as normal:
            resting.alone += normal.waits()
            with the_two(world, partial(endless_log, world, world.client().token()), 1.0) as saturating:
                resting.work_beside(normal.waits, saturating)
    note(WHAT, "loopback, at full speed", **busy.figures())
    note(WHAT, "loopback, one request a second each", **resting.figures())
    assert busy.carried_mbit > 1, "it was stopped, and not shared with"
    assert busy.beside.p99_s < TIMES * busy.alone.p99_s


def at_full_speed(world: FaultWorld) -> Waits:
    """All of them, each without a pause between an answer and the next request."""
    ca = world.folder / "hub" / "tls" / "ca.pem"
    headers = (("Authorization", f"Bearer {world.client().token()}"),)
    hub = Endpoint("127.0.0.1", world.hub_listen, ca, prefix=f"/clusters/{CLUSTER}", headers=headers)
    with Load(Job("requests", hub, POD_PATH, NORMAL, seconds=4.0)) as load:
        load.go()
        return Waits(tuple(took_ns / 1e9 for took_ns in load.report().latencies_ns))
