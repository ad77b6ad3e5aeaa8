"""Links on virtual time: who dials, how a link goes on and ends, what is reported."""

from __future__ import annotations

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from proxy.exchange.groups import group_of
from proxy.hub.membership.member import Member, MemberState
from proxy.hub.peers.accepting import LINKS_OF_A_HUB_MAX
from proxy.hub.peers.dialling import UNREACHABLE_S
from proxy.hub.peers.link import LinkDown, PeerLink
from proxy.hub.peers.linking import DIAL_S, PAUSE_S
from proxy.hub.peers.mesh import TAKEOVER_S, Mesh
from proxy.hub.peers.streams import PeerStream
from tests.proxy.hub.peers.linked import FakeMembers, Linked, member, open_hubs, open_linked_hubs, route
from tunnel import RESUME_TTL_S, CloseCode, Rejected, Role, Stream, open_session
from tunnel.protocol.connection.stream_feed import IDS_LEFT_AT_GOAWAY

LAST_ID = 2**31 - 1


def boots(hub: Linked) -> list[str]:
    return [link.member.boot for link in hub.mesh.links]


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
            assert sorted(boots(hub)) == sorted(row.boot for row in rows if row != hub.members.me)
            for boot in boots(hub):
                assert hub.mesh.links.link_to(boot) in hub.mesh.links


async def test_a_link_is_waited_for_while_its_hub_is_dialled(autojump_clock: MockClock) -> None:
    one, other = member("aaaaaaaa"), member("bbbbbbbb")
    async with open_hubs(one, other) as (_, [hub, there]):
        assert hub.mesh.links.link_to(other.boot) is None
        link = await hub.mesh.links.wait_link(other, 2)
        assert link is hub.mesh.links.link_to(other.boot)
        assert await hub.mesh.links.wait_link(other, 2) is link
        began = trio.current_time()
        with pytest.raises(LinkDown, match="hub cccccccc has no link to this one"):
            await hub.mesh.links.wait_link(member("cccccccc"), 2)
        assert trio.current_time() - began == 2
        with pytest.raises(LinkDown):
            await there.mesh.links.wait_link(attrs.evolve(one, boot="before", age_s=1000.0), 2)
        assert trio.current_time() - began == 2


async def test_a_process_that_was_replaced_dials_since_its_listener_is_its_successors(
    autojump_clock: MockClock,
) -> None:
    old, new, other = member("bbbbbbbb", "old"), member("bbbbbbbb", "new", epoch=2), member("aaaaaaaa")
    async with open_hubs(old, new, other) as (wires, _):
        await trio.sleep(1)
        assert sorted(wires.dials) == [
            ("aaaaaaaa-boot", "new"), ("old", "aaaaaaaa-boot"), ("old", "new"),
        ]  # fmt: skip


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 9), st.booleans()),
        min_size=2,
        max_size=6,
        unique_by=lambda row: row[1],
    )
)
def test_of_any_two_processes_at_most_one_dials_and_one_does_if_one_can_be_dialled(
    rows: list[tuple[str, int, bool]],
) -> None:
    table = [
        member(hub, f"boot-{epoch}", epoch=epoch, address="there:1" if listens else "")
        for hub, epoch, listens in rows
    ]

    def mesh_of(me: Member) -> Mesh:
        return Mesh(FakeMembers(me, {each.boot: each for each in table}), None, list, None)  # type: ignore[arg-type]  # neither dials nor routes

    newest = {each.hub: max(row.epoch for row in table if row.hub == each.hub) for each in table}
    for one in table:
        for other in table:
            if one is not other:
                dialable = [row for row in (one, other) if row.address and row.epoch == newest[row.hub]]
                dials = mesh_of(one)._dialling.dials(other), mesh_of(other)._dialling.dials(one)
                assert sum(dials) == bool(dialable)


async def test_a_link_goes_on_over_another_connection(autojump_clock: MockClock) -> None:
    async with open_linked_hubs() as (first, second, wires):
        streams: list[tuple[PeerLink, Stream]] = []
        second.mesh.streams[b"resume"] = lambda link, stream: streams.append((link, stream))
        first.tell(route("s1"))
        await trio.sleep(0.1)
        opened = PeerStream(first.link.open(b"resume"))
        await opened.send_all(b"before, ")
        await trio.sleep(0.1)
        (link, stream) = streams[0]
        assert link is second.link
        for cut in (b"between", b", after"):
            wires.cut()
            await trio.sleep(0.01)
            assert link.session.detached
            assert [each.is_away for each in second.relays] == [True]
            await opened.send_all(cut)
            await trio.sleep(1)
            assert not link.session.detached
            assert [each.is_away for each in second.relays] == [False]
        await opened.send_eof()
        received = b""
        accepted = PeerStream(stream)
        while data := await accepted.receive_some():
            received += data
        assert received == b"before, between, after"
        assert [each.route.session for each in second.relays] == ["s1"]
        assert second.mesh.links == [link]
        assert len(wires.dials) == 3


async def test_a_link_that_cannot_be_dialled_again_ends_and_is_reported(autojump_clock: MockClock) -> None:
    async with open_linked_hubs() as (first, second, wires):
        second.tell(route("s1"))
        await trio.sleep(0.1)
        assert len(first.relays) == 1
        links = first.mesh.links + second.mesh.links
        wires.split = True
        wires.cut()
        await trio.sleep(UNREACHABLE_S - 1)
        assert first.mesh.unreachable == ()
        await trio.sleep(2)
        assert first.mesh.unreachable == ("bbbbbbbb",)
        assert second.mesh.unreachable == ()
        assert (len(first.relays), first.mesh.links + second.mesh.links) == (1, links)
        await trio.sleep(RESUME_TTL_S)
        assert first.relays == []
        assert first.mesh.links == second.mesh.links == []
        assert first.mesh._table._links == second.mesh._table._links == {}
        assert first.mesh.unreachable == ("bbbbbbbb",)
        wires.split = False
        await trio.sleep(PAUSE_S + 0.1)
        assert first.mesh.unreachable == ()
        assert [each.route.session for each in first.relays] == ["s1"]
        assert boots(second) == ["aaaaaaaa-boot"]


async def test_a_link_ends_at_once_when_another_process_answers(autojump_clock: MockClock) -> None:
    async with open_linked_hubs() as (first, second, wires):
        second.tell(route("s1"))
        await trio.sleep(0.1)
        wires.forgets = True
        wires.cut()
        await trio.sleep(0.2)
        assert first.relays == []
        assert first.mesh.links == []


async def test_a_hub_that_does_not_answer_a_dial_does_not_hold_up_the_next(
    autojump_clock: MockClock,
) -> None:
    async with open_hubs() as (wires, _):
        wires.swallows = True
        first, second = wires.add(member("aaaaaaaa")), wires.add(member("bbbbbbbb"))
        wires.nursery.start_soon(first.mesh.run)
        first.members.read(first.members.me, second.members.me)
        await trio.sleep(DIAL_S - 0.1)
        assert len(wires.dials) == 1
        await trio.sleep(PAUSE_S + 0.2)
        assert len(wires.dials) == 2


@pytest.mark.parametrize("state", [MemberState.GONE, MemberState.DEAD])
async def test_a_link_to_a_hub_that_has_ended_by_its_row_ends(
    state: MemberState, autojump_clock: MockClock
) -> None:
    async with open_linked_hubs() as (first, second, wires):
        link = first.link
        first.members.read(attrs.evolve(second.members.me, state=state))
        assert link.session.close_code == CloseCode.FORBIDDEN
        await trio.sleep(10)
        assert first.mesh.links == second.mesh.links == []
        assert len(wires.dials) == 1


async def test_a_lease_that_has_run_out_ends_a_link_only_if_it_has_no_connection(
    autojump_clock: MockClock,
) -> None:
    async with open_linked_hubs() as (first, second, wires):
        late = attrs.evolve(second.members.me, age_s=13.0)
        first.members.read(late)
        assert not late.living
        await trio.sleep(1)
        assert first.link.up
        wires.split = True
        wires.cut()
        await trio.sleep(1)
        assert first.mesh.links
        first.members.read(late)
        await trio.sleep(0.1)
        assert first.mesh.links == []
        # It is not dialled for a new link, until it is living again.
        wires.split = False
        await trio.sleep(10)
        assert first.mesh.links == []
        first.members.read(attrs.evolve(late, age_s=0.0))
        await trio.sleep(0.1)
        assert first.link.up


async def test_the_next_link_begins_beside_one_whose_ids_run_out(autojump_clock: MockClock) -> None:
    async with open_linked_hubs() as (first, second, wires):
        first.tell(route("s1"))
        second.tell(route("s2"))
        seen: list[Stream] = []
        for hub in (first, second):
            hub.mesh.on_call = lambda _, stream: seen.append(stream)
        await trio.sleep(0.1)
        old, other = first.link, second.link
        # The hub that has not dialled uses up its ids, so the one that has dialled is asked for nothing.
        table = other.session._connection.table
        table.next_id = LAST_ID - IDS_LEFT_AT_GOAWAY + 1
        context = other.session.add_context(group_of("agent"), b"agent")
        going_on = other.session.open_stream(b"exec", context=context)
        await trio.sleep(0.5)
        assert (old.up, other.up) == (False, False)
        assert first.link is not old
        assert second.link is not other
        assert len(wires.dials) == 2
        with pytest.raises(LinkDown):
            other.open(b"resume")
        for hub, other_hub, session in ((first, second, "s1"), (second, first, "s2")):
            # Told over both links, of which the later one counts.
            before = list(other_hub.relays)
            hub.tell(route(session, streams=5))
            await trio.sleep(0.2)
            assert other_hub.relays == before
            (relay,) = other_hub.relays
            assert (relay.route, relay.link) == (route(session, streams=5), other_hub.link)
        await trio.sleep(TAKEOVER_S + 1)
        # Its routes have come over to the next link, and an open stream keeps it.
        assert [(each.route.session, each.link) for each in second.relays] == [("s1", second.link)]
        assert [(each.route.session, each.link) for each in first.relays] == [("s2", first.link)]
        assert not old.session.closed
        seen[0].close_nowait()
        going_on.close_nowait()
        await trio.sleep(0.1)
        assert old.session.closed
        assert other.session.closed
        assert (len(first.mesh.links), len(second.mesh.links)) == (1, 1)
        assert len(first.relays) == len(second.relays) == 1


async def test_a_link_whose_ids_run_out_goes_on_after_a_cut(autojump_clock: MockClock) -> None:
    async with open_linked_hubs() as (first, second, wires):
        seen: list[Stream] = []
        first.mesh.on_call = lambda _, stream: seen.append(stream)
        old = second.link.session
        old._connection.table.next_id = LAST_ID - IDS_LEFT_AT_GOAWAY + 1
        going_on = old.open_stream(b"exec", context=old.add_context(group_of("agent"), b"agent"))
        await trio.sleep(0.005)
        assert old.draining
        wires.cut()
        await trio.sleep(3)
        assert (len(wires.dials), len(second.mesh.links)) == (3, 2)
        assert [old.detached, old.closed, going_on.broken, seen[0].broken] == [False] * 4


async def test_a_link_that_the_other_hub_has_given_up_does_not_wait(autojump_clock: MockClock) -> None:
    async with open_linked_hubs() as (first, second, wires):
        old = second.link
        wires.split = True
        wires.cut()
        # Its farewell does not get through.
        first.mesh.links[0].session.abandon("as memory that is short")
        await trio.sleep(0.1)
        assert old.session.detached
        wires.split = False
        await trio.sleep(PAUSE_S + 0.1)
        assert old.session.closed
        assert second.mesh.links == [second.link]


async def test_a_hub_has_a_bound_on_the_links_of_another_one(autojump_clock: MockClock) -> None:
    async with open_linked_hubs() as (first, second, wires):
        async with trio.open_nursery() as nursery:

            async def _hold(task_status: trio.TaskStatus[None]) -> None:
                async with wires.connect(lambda: first.members.me, second.members.me, "") as transport:
                    async with open_session(transport, Role.DIALER):
                        task_status.started()
                        await trio.sleep_forever()

            for _ in range(LINKS_OF_A_HUB_MAX - 1):
                await nursery.start(_hold)
            with pytest.raises(Rejected, match=f"it has {LINKS_OF_A_HUB_MAX} links"):
                await nursery.start(_hold)
            nursery.cancel_scope.cancel()
        await trio.sleep(0.1)
        assert second.mesh.links == [second.link]


async def test_streams_go_to_the_handler_of_their_kind(autojump_clock: MockClock) -> None:
    async with open_linked_hubs() as (first, second, _):
        calls: list[bytes] = []

        def take(link: PeerLink, stream: Stream) -> None:
            assert link is second.link
            calls.append(stream.head)

        session = first.link.session
        context = session.add_context(group_of("agent"), b"agent")
        refused = [first.link.open(b"of a later version"), session.open_stream(b"GET", context=context)]
        await trio.sleep(0.1)
        for stream in refused:
            with pytest.raises(trio.BrokenResourceError, match="processed: NO: this hub does not serve"):
                stream.receive_head_nowait()
        second.mesh.on_call = take
        session.open_stream(b"GET", context=context)
        await trio.sleep(0.1)
        assert calls == [b"GET"]


async def test_the_links_of_a_hub_that_stops_end_and_are_not_dialled_again_but_for_its_successor(
    autojump_clock: MockClock,
) -> None:
    rows = member("aaaaaaaa"), member("bbbbbbbb")
    async with open_hubs(rows[0]) as (wires, (first,)):
        second = wires.add(rows[1])
        second.members.read(*rows)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second.mesh.run)
            first.members.read(*rows)
            await trio.sleep(0.1)
            link = first.link
            second.mesh.links[0].session.end(CloseCode.NORMAL, "this hub stops")
            del wires.hubs[rows[1].boot]
            nursery.cancel_scope.cancel()
        await trio.sleep(0.1)
        assert link.session.close_code == CloseCode.NORMAL
        gone = attrs.evolve(rows[1], state=MemberState.GONE)
        first.members.read(gone)
        dials = len(wires.dials)
        await trio.sleep(10)
        assert len(wires.dials) <= dials + 1


async def test_a_replaced_hub_waits_for_no_dial_that_cannot_come(autojump_clock: MockClock) -> None:
    async with open_linked_hubs() as (first, second, wires):
        second.mesh.leave(replaced=True)
        first.mesh.leave(replaced=True)
        link, dialled = second.link, first.link
        wires.split = True
        wires.cut()
        await trio.sleep(0.05)
        assert link.session.closed
        # The one that has dialled can dial again.
        assert dialled.session.detached
