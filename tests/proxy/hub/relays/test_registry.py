from __future__ import annotations

from contextlib import AsyncExitStack, ExitStack

import pytest

from proxy.hub.relays.registry import (
    INSTANCES_PER_CLUSTER_MAX,
    LEAVING_PER_CLUSTER_MAX,
    LEAVING_PER_INSTANCE_MAX,
    LiveRelay,
    Registry,
    TooManyInstancesError,
)
from proxy.kubernetes.statement import Statement
from tests.proxy.hub.calls.sessions import session_pair
from tests.proxy.hub.relays.live_relays import live
from tunnel import StreamCode


async def test_a_cluster_without_a_relay_is_offline_at_once() -> None:
    assert Registry().session("c1") is None


async def test_a_relay_is_found_while_its_block_lasts() -> None:
    registry = Registry()
    async with session_pair() as (hub, _):
        relay = live(hub)
        with registry.registered(relay) as superseded:
            assert superseded is None
            assert registry.session("c1") is relay
            assert registry.session("c2") is None
            assert list(registry.relays()) == [relay]
        assert registry.session("c1") is None
        assert list(registry.relays()) == []


async def test_the_least_loaded_instance_is_chosen() -> None:
    registry = Registry()
    async with session_pair() as (busy, _), session_pair() as (quiet, _):
        context = busy.add_context(1, b"token")
        busy.open_stream(b"head", context=context)
        with registry.registered(live(busy, "a")), registry.registered(live(quiet, "b")):
            found = registry.session("c1")
            assert found is not None
            assert found.instance == "b"


async def test_a_relay_that_drains_gets_no_new_stream() -> None:
    registry = Registry()
    async with session_pair() as (hub, relay):
        with registry.registered(live(hub)):
            relay.go_away(code=StreamCode.DRAINING, drain_ms=1000, retry_after_ms=0, reason="rollout")
            while not hub.draining:
                await trio_checkpoint()
            assert registry.session("c1") is None


async def trio_checkpoint() -> None:
    import trio

    await trio.lowlevel.checkpoint()


async def test_a_newer_session_of_an_instance_supersedes_and_outlives_the_old_one() -> None:
    registry = Registry()
    async with session_pair() as (old_session, _), session_pair() as (new_session, _):
        old, new = live(old_session), live(new_session)
        with registry.registered(new):
            pass
        old_block = registry.registered(old)
        old_block.__enter__()
        with registry.registered(new) as superseded:
            assert superseded is old
            # The old one's end, whenever it comes, leaves the new one in place.
            old_block.__exit__(None, None, None)
            assert registry.session("c1") is new


async def test_a_sibling_is_one_that_was_not_tried() -> None:
    registry = Registry()
    async with session_pair() as (first, _), session_pair() as (second, _):
        a, b = live(first, "a"), live(second, "b")
        with registry.registered(a), registry.registered(b):
            assert registry.sibling("c1", [a]) is b
            assert registry.sibling("c1", [a, b]) is None
            assert registry.sibling("c2", []) is None


async def test_a_relay_before_a_dead_api_server_is_the_last_choice_and_no_substitute() -> None:
    """What it is asked ends at once, so it has the fewest streams."""
    registry = Registry()
    async with session_pair() as (first, _), session_pair() as (second, _):
        dead, busy = live(first, "a"), live(second, "b")
        dead.statement = Statement(api_server=False)
        second.open_stream(b"head", context=second.add_context(1, b"token"))
        with registry.registered(dead):
            assert registry.session("c1") is dead
            with registry.registered(busy):
                assert registry.session("c1") is busy
                assert registry.sibling("c1", [busy]) is dead
                assert registry.substitute(busy) is None
                dead.statement = Statement(api_server=True)
                assert registry.session("c1") is dead
                assert registry.substitute(busy) is dead


async def test_a_relay_in_doubt_is_the_last_choice_and_no_substitute() -> None:
    registry = Registry()
    async with session_pair() as (silent, _), session_pair() as (busy, _):
        busy.open_stream(b"head", context=busy.add_context(1, b"token"))
        a, b = live(silent, "a"), live(busy, "b")
        with registry.registered(a):
            silent._connection.deadlines.doubt()
            assert silent.away
            # Alone, it is better than none.
            assert registry.session("c1") is a
            assert registry.substitute(a) is None
            with registry.registered(b):
                assert registry.session("c1") is b
                assert registry.substitute(a) is b
                assert registry.substitute(b) is None


async def test_one_that_leaves_goes_on_beside_its_successor() -> None:
    registry = Registry()
    async with session_pair() as (old_session, _), session_pair() as (new_session, _):
        old, new = live(old_session), live(new_session)
        with registry.registered(old):
            old_session.go_away(drain_ms=60_000, reason="the hub stops")
            # As long as there is no other one, it carries what is new as well.
            assert registry.session("c1") is old
            with registry.registered(new) as superseded:
                assert superseded is None
                assert registry.session("c1") is new
                assert set(registry.relays()) == {old, new}
            assert list(registry.relays()) == [old]
        assert list(registry.relays()) == []


async def leaving(sessions: AsyncExitStack, instance: str = "relay-1", cluster: str = "c1") -> LiveRelay:
    """A relay with its own session, which has received GOAWAY."""
    session, _ = await sessions.enter_async_context(session_pair())
    session.go_away(drain_ms=60_000, reason="the hub stops")
    return live(session, instance, cluster)


async def test_an_instance_has_a_bound_on_those_that_leave() -> None:
    registry = Registry()
    async with session_pair() as (session, _), AsyncExitStack() as sessions:
        left = [await leaving(sessions) for _ in range(LEAVING_PER_INSTANCE_MAX + 1)]
        with ExitStack() as stack:
            for relay in left:
                assert stack.enter_context(registry.registered(relay)) is None
            assert not left[0].session.closed
            with registry.registered(live(session)) as superseded:
                assert superseded is None
                assert [relay for relay in left if relay.session.closed] == left[:1]
                assert await left[0].session.wait_closed() == (
                    "relay relay-1 has 9 sessions that go away, the limit is 8: the oldest is ended"
                )
        assert list(registry.relays()) == []


async def test_a_cluster_has_a_bound_on_those_that_leave_under_any_name() -> None:
    registry = Registry()
    async with session_pair() as (session, _), AsyncExitStack() as sessions:
        with ExitStack() as stack:
            elsewhere = [await leaving(sessions, cluster="c2") for _ in range(2)]
            left = []
            for relay in elsewhere:
                stack.enter_context(registry.registered(relay))
            for number in range(LEAVING_PER_CLUSTER_MAX + 2):
                left.append(await leaving(sessions, f"relay-{number}"))
                stack.enter_context(registry.registered(left[-1]))
                # Its successor is gone again, and its name is free.
                with registry.registered(live(session, f"relay-{number}")):
                    pass
            assert [relay for relay in left if relay.session.closed] == left[:2]
            assert await left[0].session.wait_closed() == (
                "cluster prod has 33 sessions that go away, the limit is 32: the oldest is ended"
            )
            assert not any(relay.session.closed for relay in elsewhere)


async def test_a_relay_may_be_restarted_often_while_its_old_sessions_drain() -> None:
    registry = Registry()
    async with AsyncExitStack() as sessions:
        relays = []
        for _ in range(LEAVING_PER_INSTANCE_MAX + 1):
            hub, relay = await sessions.enter_async_context(session_pair())
            relays.append(live(hub))
            sessions.enter_context(registry.registered(relays[-1]))
            assert registry.session("c1") is relays[-1]
            relay.go_away(drain_ms=60_000, reason="rollout")
            while not hub.draining:
                await trio_checkpoint()
        assert not any(relay.session.closed for relay in relays)


async def test_the_instances_of_a_cluster_are_bounded() -> None:
    registry = Registry()
    async with session_pair() as (hub, _):
        blocks = [registry.registered(live(hub, f"relay-{n}")) for n in range(INSTANCES_PER_CLUSTER_MAX)]
        for block in blocks:
            block.__enter__()
        with (
            pytest.raises(TooManyInstancesError, match="16 live relays"),
            registry.registered(live(hub, "one-more")),
        ):
            pass
        with registry.registered(live(hub, "relay-3")):
            pass
