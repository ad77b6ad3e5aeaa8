from __future__ import annotations

from collections import Counter

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.protocol.schedule import QUANTUM_BYTES, Flow, Group, Place, Ring, Scheduler


@attrs.define(eq=False)
class Queue(Flow):
    name: str
    waiting: int

    @property
    def ready(self) -> bool:
        return self.waiting > 0


class Link:
    """Serves a scheduler as the drain does, and keeps count."""

    def __init__(self) -> None:
        self.scheduler: Scheduler[Queue] = Scheduler()
        self.groups: dict[int, Group[Queue]] = {}
        self.sent: Counter[str] = Counter()
        self.order: list[str] = []

    def add(self, key: int, name: str, waiting: int) -> Queue:
        if key not in self.groups:
            self.groups[key] = self.scheduler.enter(key)
        flow = Queue(name, waiting)
        self.scheduler.activate(self.groups[key], flow)
        return flow

    def serve(self, total: int) -> None:
        while total > 0:
            group = self.scheduler.ring.turn()
            if group is None:
                return
            flow = group.next
            assert flow is not None
            count = min(flow.waiting, QUANTUM_BYTES, total)
            flow.waiting -= count
            flow.deficit -= count
            group.deficit -= count
            group.flows.turn()
            total -= count
            self.sent[flow.name] += count
            self.order.append(flow.name)


BULK = 10**9


def test_a_thousand_streams_of_one_group_have_one_share() -> None:
    link = Link()
    for number in range(1000):
        link.add(1, f"many {number}", BULK)
    link.add(2, "single", BULK)
    link.serve(400 * QUANTUM_BYTES)
    assert abs(link.sent["single"] - 200 * QUANTUM_BYTES) <= 2 * QUANTUM_BYTES


def test_streams_of_one_group_share_alike() -> None:
    link = Link()
    for name in "abc":
        link.add(1, name, BULK)
    link.serve(300 * QUANTUM_BYTES)
    for name in "abc":
        assert abs(link.sent[name] - 100 * QUANTUM_BYTES) <= QUANTUM_BYTES


def test_a_flow_that_was_quiet_passes_those_that_queue() -> None:
    link = Link()
    for name in "abc":
        link.add(1, name, BULK)
    link.serve(30 * QUANTUM_BYTES)
    link.add(1, "keystroke", 40)
    link.serve(QUANTUM_BYTES)
    assert link.order[-1] == "keystroke" or link.order[-2] == "keystroke"


def test_a_quiet_group_passes_groups_that_queue() -> None:
    link = Link()
    for key in range(20):
        link.add(key, f"bulk {key}", BULK)
    link.serve(100 * QUANTUM_BYTES)
    link.add(99, "keystroke", 40)
    link.serve(40)
    assert link.order[-1] == "keystroke"


def test_a_flow_that_pauses_after_each_quantum_is_not_new_for_ever() -> None:
    link = Link()
    patient = link.add(1, "patient", BULK)
    sly = link.add(1, "sly", QUANTUM_BYTES)
    for _ in range(200):
        link.serve(QUANTUM_BYTES)
        link.scheduler.ring.turn()
        if not sly.waiting:
            sly.waiting = QUANTUM_BYTES
            link.scheduler.activate(link.groups[1], sly)
    assert link.sent["patient"] >= 0.45 * sum(link.sent.values())
    assert patient.place is Place.OLD


def test_a_flow_held_up_by_credit_does_not_pass_the_others_when_it_goes_on() -> None:
    link = Link()
    link.add(1, "a", BULK)
    link.serve(2 * QUANTUM_BYTES + 100)
    link.scheduler.activate(link.groups[1], Queue("late", BULK), sparse=False)
    link.serve(QUANTUM_BYTES - 100)
    assert link.order[-1] == "a"
    link.serve(QUANTUM_BYTES)
    assert link.order[-1] == "late"


def test_a_group_is_forgotten_with_its_last_user() -> None:
    scheduler: Scheduler[Queue] = Scheduler()
    group = scheduler.enter(7)
    assert scheduler.enter(7) is group
    scheduler.activate(group, Queue("a", 5))
    scheduler.leave(group)
    assert scheduler.groups == {7: group}
    scheduler.leave(group)
    assert scheduler.groups == {}
    assert len(scheduler.ring) == 0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5 * QUANTUM_BYTES)), max_size=30))
def test_everything_that_waits_is_served_and_nothing_stays_behind(flows: list[tuple[int, int]]) -> None:
    link = Link()
    for number, (key, waiting) in enumerate(flows):
        link.add(key, str(number), waiting)
    link.serve(10**12)
    assert link.sent == Counter({str(n): waiting for n, (_, waiting) in enumerate(flows) if waiting})
    assert len(link.scheduler.ring) == 0
    assert all(len(group.flows) == 0 for group in link.groups.values())


@pytest.mark.parametrize("sparse", [True, False])
def test_a_flow_is_in_the_ring_once_and_may_come_back_when_it_was_taken_out(sparse: bool) -> None:
    ring: Ring[Queue] = Ring()
    flow, other = Queue("flow", 1), Queue("other", 1)
    for _ in range(2):
        for each in (flow, other):
            ring.add(each, sparse)
        ring.add(flow, not sparse)
        assert len(ring) == 2
        ring.discard(flow)
        ring.discard(flow)
        assert ring.turn() is other
        assert len(ring) == 1
