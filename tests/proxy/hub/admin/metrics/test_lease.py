from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import attrs
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from proxy.hub.admin.metrics.hub import LeaseCollector
from proxy.hub.membership.member import MemberState
from proxy.hub.membership.members import Members
from proxy.hub.store.directory import Directory
from tests.fakes.hubs import HUB, FakeHubs


@attrs.define(slots=False)
class Joined(FakeHubs):
    fault: str = ""


def scraped(members: Joined, version: int) -> dict[str, float]:
    number = SimpleNamespace(applied=SimpleNamespace(version=SimpleNamespace(number=version)))
    registry = CollectorRegistry()
    registry.register(LeaseCollector(cast(Members, members), cast(Directory, number)))
    lines = generate_latest(registry).decode().splitlines()
    return {name: float(value) for name, value in (line.split(" ") for line in lines if line[0] != "#")}


def test_each_hub_is_counted_in_its_state_and_those_behind_are() -> None:
    behind = attrs.evolve(HUB, hub="8c21d004", boot="b2", applied=HUB.applied - 1)
    leaving = attrs.evolve(HUB, hub="e5550ae1", boot="b3", state=MemberState.LEAVING)
    silent = attrs.evolve(HUB, hub="f5550ae1", boot="b4", age_s=3600.0)
    members = Joined(beside=[behind, leaving, silent])
    assert scraped(members, HUB.applied) == {
        "hawse_lease_up": 1,
        'hawse_hubs{state="serving"}': 2,
        'hawse_hubs{state="leaving"}': 1,
        'hawse_hubs{state="silent"}': 1,
        "hawse_hubs_behind": 1,
    }
    assert scraped(Joined(), HUB.applied)["hawse_hubs_behind"] == 0
    assert scraped(Joined(fault="away"), HUB.applied)["hawse_lease_up"] == 0
