from __future__ import annotations

from typing import Any, cast

import attrs
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from proxy.hub.admin.metrics.links import LinkCollector
from proxy.hub.membership.member import Member, MemberState
from proxy.hub.peers.link import PeerLink
from tests.fakes.hubs import HUB, FakeHubs


@attrs.define
class Session:
    stream_count: int
    rtt_s: float | None


@attrs.define
class Link:
    member: Member
    session: Session
    up: bool = True


@attrs.define
class Mesh:
    mine: list[Link]

    @property
    def links(self) -> list[PeerLink]:
        return cast(list[PeerLink], self.mine)


@attrs.define
class Forwarded:
    count: int = 3
    begun: int = 70


def scraped(hubs: FakeHubs, *links: Link) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(LinkCollector(hubs, Mesh([*links]), Forwarded()))
    lines = generate_latest(registry).decode().splitlines()
    return {name: float(value) for name, value in (line.split(" ") for line in lines if line[0] != "#")}


def test_each_other_hub_has_a_link_or_a_zero() -> None:
    linked: Any = attrs.evolve(HUB, hub="8c21d004", boot="b2")
    alone = attrs.evolve(HUB, hub="e5550ae1", boot="b3")
    replaced = attrs.evolve(HUB, boot="b0", state=MemberState.LEAVING)
    found = scraped(
        FakeHubs(beside=[linked, alone, replaced]),
        # The first one drains beside its successor.
        Link(linked, Session(2, 0.5), up=False),
        Link(linked, Session(5, 0.25)),
        Link(alone, Session(0, None), up=False),
        Link(replaced, Session(9, 0.1)),
    )
    assert found == {
        'hawse_link_up{hub="8c21d004"}': 1,
        'hawse_link_up{hub="e5550ae1"}': 0,
        'hawse_link_rtt_seconds{hub="8c21d004"}': 0.25,
        'hawse_link_streams{hub="8c21d004"}': 7,
        'hawse_link_streams{hub="e5550ae1"}': 0,
        "hawse_forwarded_calls_open": 3,
        "hawse_forwarded_calls_total": 70,
    }
    assert 'hawse_link_up{hub="e5550ae1"}' in scraped(FakeHubs(beside=[alone]))
