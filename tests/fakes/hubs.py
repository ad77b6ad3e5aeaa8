"""Hubs on one directory, as a hub has read them with its last renewal."""

from __future__ import annotations

import attrs

from proxy.hub.membership.member import Member, MemberState

HUB = Member(
    hub="1f0c3a9e",
    boot="01a22e87-d308-7059-90bb-09f80b601f9a",
    epoch=7,
    address="10.0.3.7:8445",
    software="hawse/0.1.0",
    state=MemberState.SERVING,
    applied=120,
    tunnels=400,
    calls=12,
    started_at=1_800_000_000.0,
    age_s=0.9,
    stale_s=10.0,
    stale_streams_s=60.0,
)


@attrs.define
class FakeHubs:
    """This hub, and others."""

    me: Member = HUB
    beside: list[Member] = attrs.Factory(list)

    def others(self) -> list[Member]:
        return self.beside
