"""Relays of other hubs in the registry, and their contexts on the link."""

from __future__ import annotations

import time
from contextlib import ExitStack
from types import SimpleNamespace
from typing import cast

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from auth.principal import Principal
from proxy.hub.hop.call_context import CallContext
from proxy.hub.hop.forwarded import ForwardedCalls
from proxy.hub.hop.local_routes import local_routes
from proxy.hub.hop.peer_relay import CONTEXTS_PER_LINK_MAX, PeerRelays
from proxy.hub.relays.cluster_state import API_SERVER_DOWN, cluster_state
from proxy.hub.relays.direct import DirectRelays
from proxy.hub.relays.registry import Registry
from proxy.hub.relays.relay_wait import PARK_S
from proxy.hub.store.directory import Directory
from proxy.kubernetes.statement import Statement
from tests.proxy.hub.calls.sessions import session_pair
from tests.proxy.hub.hop.bench import AGENT, FakeDirectory, agent, link_of, open_hubs, route, snapshot
from tests.proxy.hub.hop.bench import cluster as cluster_of
from tests.proxy.hub.relays.live_relays import live
from tests.tunnel.pairs import open_pair
from tunnel import Session
from tunnel.protocol.session.contexts import CONTEXTS_MAX


async def test_a_relay_of_this_hub_comes_before_one_of_another_hub() -> None:
    registry = Registry()
    async with open_pair() as link, session_pair() as (busy, _):
        peers = PeerRelays(registry, lambda: 1)
        elsewhere = peers(link_of(link.listener), route("s2"))
        assert registry.session("c1") is elsewhere
        assert registry.session("c2") is None
        busy.open_stream(b"head", context=busy.add_context(1, b"token"))
        local = live(busy)
        with registry.registered(local):
            assert registry.session("c1") is local
            assert registry.sibling("c1", [local]) is elsewhere
            assert registry.substitute(local) is elsewhere
            # Its API server does not answer.
            local.statement = Statement(api_server=False)
            assert registry.session("c1") is elsewhere
            for unfit in (route("s2", away=True), route("s2", api_server=False)):
                elsewhere.update(unfit)
                assert registry.session("c1") is local
            local.statement = Statement()
            # This hub leaves, and the other one does not.
            elsewhere.update(route("s2"))
            busy.go_away()
            assert registry.session("c1") is elsewhere
            elsewhere.update(route("s2", leaving=True))
            assert registry.session("c1") is local
        elsewhere.end()
        assert registry.session("c1") is None


async def test_a_hub_tells_the_others_what_it_knows_of_its_relays() -> None:
    registry = Registry()
    async with session_pair(session_id="s1") as (here, _):
        relay = live(here)
        relay.statement = Statement("uid", api_server=False)
        with registry.registered(relay):
            here.open_stream(b"head", context=here.add_context(1, b"token"))
            [told] = local_routes(registry)
            assert told == route("s1", kid="", streams=1, api_server=False)
            here.go_away()
            [told] = local_routes(registry)
            assert told.leaving
            async with open_pair() as link:
                other = Registry()
                PeerRelays(other, lambda: 1)(link_of(link.listener), told)
                # What `hawse clusters` says is the same at every hub.
                assert cluster_state(cluster_of(), other, cast(DirectRelays, None)) == API_SERVER_DOWN
            here.end(None, "lost")
            assert list(local_routes(registry)) == []


async def test_of_other_hubs_the_one_with_the_fewest_streams_is_chosen_and_last_one_that_leaves() -> None:
    registry = Registry()
    async with open_pair() as link:
        peers = PeerRelays(registry, lambda: 1)
        first = peers(link_of(link.listener), route("s1", streams=3))
        second = peers(link_of(link.listener), route("s2", streams=1))
        third = peers(link_of(link.listener), route("s3", leaving=True))
        chosen = []
        for _ in range(5):
            relay = registry.session("c1")
            assert relay is not None
            relay.contexts.context_for(AGENT, time.time())
            chosen.append(relay)
        # Streams that the other hub has not counted yet count as well.
        assert chosen == [second, second, first, second, first]
        second.update(route("s2", streams=9))
        assert registry.session("c1") is first
        for relay in (first, second):
            relay.end()
        assert registry.session("c1") is third


async def test_a_newer_route_to_a_session_outlives_the_older_one() -> None:
    registry = Registry()
    async with open_pair() as old, open_pair() as new:
        peers = PeerRelays(registry, lambda: 1)
        before = peers(link_of(old.listener), route("s1"))
        after = peers(link_of(new.listener), route("s1"))
        before.end()
        assert registry.session("c1") is after
        after.end()
        after.end()
        assert registry.session("c1") is None


@pytest.mark.parametrize("died", [True, False])
async def test_a_call_waits_for_the_relays_of_a_hub_that_has_died_or_leaves(
    autojump_clock: object, died: bool
) -> None:
    registry = Registry()
    async with open_pair() as link, open_pair() as other:
        peers = PeerRelays(registry, lambda: 1)
        lost = peers(link_of(link.listener), route("s1", leaving=not died))
        ended = peers(link_of(other.listener), route("s2", cluster_id="c2"))
        # The relay itself has gone.
        ended.end()
        assert not await registry.relay_wait.wait_for("c2")
        if died:
            link.listener.end(None, "its hub has died")
        lost.end()
        async with trio.open_nursery() as nursery:
            came: list[bool] = []

            async def call() -> None:
                came.append(await registry.relay_wait.wait_for("c1"))

            nursery.start_soon(call)
            await wait_all_tasks_blocked()
            peers(link_of(other.listener), route("s3"))
        assert came == [True]


async def test_an_update_moves_no_relay_to_another_cluster() -> None:
    registry = Registry()
    async with open_pair() as link:
        relay = PeerRelays(registry, lambda: 1)(link_of(link.listener), route("s1"))
        relay.update(route("s1", "c2"))
        assert (registry.session("c1"), registry.session("c2")) == (relay, None)
        relay.end()
        assert list(registry.elsewhere()) == []


async def test_a_call_waits_while_the_link_to_its_relay_is_dialled_again(autojump_clock: object) -> None:
    registry = Registry()
    async with open_pair() as link, trio.open_nursery() as nursery:
        relay = PeerRelays(registry, lambda: 1)(link_of(link.listener), route("s1"))
        assert not await registry.relay_wait.wait_for("c1")
        came: list[bool] = []

        async def call() -> None:
            came.append(await registry.relay_wait.wait_for("c1"))

        relay.away()
        # The first one gives up after a while, and the second one does not.
        nursery.start_soon(call)
        await trio.sleep(PARK_S + 1)
        nursery.start_soon(call)
        await wait_all_tasks_blocked()
        relay.back()
        await wait_all_tasks_blocked()
        assert came == [False, True]
        assert not await registry.relay_wait.wait_for("c1")


async def test_an_agent_has_one_context_for_each_session_and_another_after_a_change() -> None:
    async with open_hubs() as hubs:
        contexts = hubs.route.contexts
        first = contexts.context_for(AGENT, 0.0)
        assert contexts.context_for(attrs.evolve(AGENT), 1.0) is first
        assert first.impersonated.extra["hawse.dev/session"] == ("s1",)
        changed = contexts.context_for(attrs.evolve(AGENT, teams=("ops",)), 2.0)
        assert changed.index != first.index
        await wait_all_tasks_blocked()
        peers = hubs.link.dialer._connection.contexts.peers
        assert first.index not in peers
        assert changed.index in peers
        # The relay's session has ended.
        hubs.route.end()
        await wait_all_tasks_blocked()
        assert changed.index not in peers


@pytest.mark.parametrize("version", [2, 0])
async def test_each_version_of_the_directory_has_a_context_of_its_own(version: int) -> None:
    """A database that has lost commits goes back to an earlier number."""
    async with open_hubs() as hubs:
        contexts = hubs.route.contexts
        first = contexts.context_for(AGENT, 0.0)
        hubs.version[0] = version
        second = contexts.context_for(AGENT, 1.0)
        await wait_all_tasks_blocked()
        peers = hubs.link.dialer._connection.contexts.peers
        assert first.index not in peers
        assert CallContext.decode(peers[second.index].payload).version == version


async def test_a_link_has_so_many_contexts_at_most_and_the_least_used_makes_room() -> None:
    assert CONTEXTS_PER_LINK_MAX * 2 <= CONTEXTS_MAX
    async with open_hubs() as hubs:
        contexts = hubs.route.contexts
        first, second = (Principal(f"a{number}", "claude", "main", ("dev",)) for number in (1, 2))
        kept = contexts.context_for(first, 0.0)
        dropped = contexts.context_for(second, 0.0)
        for number in range(3, CONTEXTS_PER_LINK_MAX + 2):
            assert contexts.context_for(first, 0.0) is kept
            contexts.context_for(Principal(f"a{number}", "claude", "main", ("dev",)), 0.0)
        await wait_all_tasks_blocked()
        peers = hubs.link.dialer._connection.contexts.peers
        assert kept.index in peers
        assert dropped.index not in peers
        # The pair of sessions has announced one of its own.
        assert len(peers) == CONTEXTS_PER_LINK_MAX + 1


@attrs.define(eq=False)
class FakeSession:
    """A session that notes what is opened in it."""

    session_id: str
    closed: bool = False
    may_open: bool = True
    draining: bool = False
    away: bool = False
    detached: bool = False
    stream_count: int = 0
    opened: list[bytes] = attrs.Factory(list)

    def add_context(self, group: int, payload: bytes) -> int:
        return 1

    def retire_context(self, index: int) -> None: ...

    def open_stream(self, head: bytes, *, context: int, eof: bool) -> object:
        self.opened.append(head)
        stream = SimpleNamespace(peer=self, failure=None, at_end=True)
        for name in ("on_reset", "when_input", "reset", "close_nowait"):
            setattr(stream, name, lambda *_, **__: None)
        return stream


SESSIONS = st.sampled_from(["s1", "s2", "s3"])
CLUSTERS = st.sampled_from(["c1", "c2"])
ROUTES = st.lists(st.tuples(SESSIONS, CLUSTERS, st.booleans(), st.booleans()), max_size=6)
RELAYS = st.lists(st.tuples(SESSIONS, CLUSTERS, st.booleans()), max_size=3, unique_by=lambda each: each[0])


@given(ROUTES, RELAYS, st.lists(st.tuples(SESSIONS, CLUSTERS), min_size=1, max_size=6))
def test_no_table_makes_a_hub_forward_a_call_twice(
    routes: list[tuple[str, str, bool, bool]],
    relays: list[tuple[str, str, bool]],
    calls: list[tuple[str, str]],
) -> None:
    """With any routes and relays, a forwarded call leaves it only in the session that it names."""

    async def play() -> None:
        registry, directory = Registry(), FakeDirectory()
        directory.current = snapshot(1, agent(), cluster_of(), cluster_of(cluster_id="c2"))
        forwarded = ForwardedCalls(registry, cast(Directory, directory), trio.current_time)
        # A link's session has an id too.
        links = [FakeSession("s1"), FakeSession("s2")]
        peers = PeerRelays(registry, lambda: 1)
        for session_id, cluster_id, leaving, second in routes:
            told = route(session_id, cluster_id, leaving=leaving)
            peers(link_of(cast(Session, links[second])), told)
        own = {session_id: FakeSession(session_id, may_open=usable) for session_id, _, usable in relays}
        with ExitStack() as stack:
            for session_id, cluster_id, _ in relays:
                relay = live(cast(Session, own[session_id]), session_id, cluster_id)
                stack.enter_context(registry.registered(relay))
            async with open_pair() as link:
                link.dialer.on_stream(lambda stream: forwarded.serve(None, stream))
                caller = PeerRelays(Registry(), lambda: 1)
                for session_id, cluster_id in calls:
                    toward = caller(link_of(link.listener), route(session_id, cluster_id))
                    context = toward.contexts.context_for(AGENT, 0.0)
                    head = f"{cluster_id}/{session_id}".encode()
                    link.listener.open_stream(head, context=context.index, eof=True)
                await wait_all_tasks_blocked()
        assert all(not session.opened for session in links)
        known = {session_id: cluster_id for session_id, cluster_id, _ in relays}
        for session_id, session in own.items():
            expected = [
                f"{cluster_id}/{called}".encode()
                for called, cluster_id in calls
                if called == session_id and known[called] == cluster_id
            ]
            assert session.opened == expected

    trio.run(play)


@pytest.mark.parametrize("detached", [False, True])
async def test_a_link_that_is_away_makes_its_relays_the_last_choice(detached: bool) -> None:
    registry = Registry()
    session = FakeSession("", away=True, detached=detached)
    away = PeerRelays(registry, lambda: 1)(link_of(cast(Session, session)), route("s1"))
    assert away.doubtful
    assert registry.is_away("c1") is detached
    async with open_pair() as link:
        here = PeerRelays(registry, lambda: 1)(link_of(link.listener), route("s2", streams=900))
        assert registry.session("c1") is here
        assert registry.substitute(away) is here
