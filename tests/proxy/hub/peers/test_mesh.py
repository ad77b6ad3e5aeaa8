from __future__ import annotations

import trio
from trio.testing import MockClock

from tests.proxy.hub.peers.linked import member, open_hubs, open_linked_hubs, route


async def test_of_two_hubs_the_one_with_the_smaller_id_dials(autojump_clock: MockClock) -> None:
    rows = member("bbbbbbbb"), member("cccccccc"), member("aaaaaaaa")
    async with open_hubs(*rows) as (wires, hubs):
        await trio.sleep(1)
        assert sorted(wires.dials) == [
            ("aaaaaaaa-boot", "bbbbbbbb-boot"),
            ("aaaaaaaa-boot", "cccccccc-boot"),
            ("bbbbbbbb-boot", "cccccccc-boot"),
        ]
        for hub in hubs:
            assert {link.member.boot for link in hub.mesh.links} == {
                row.boot for row in rows if row.boot != hub.members.me.boot
            }


async def test_routes(autojump_clock: MockClock) -> None:
    async with open_linked_hubs() as (first, second, _):
        first.tell(route("s1"), route("s2"))
        await trio.sleep(0.1)
        assert {each.route.session for each in second.relays} == {"s1", "s2"}
