"""Whose session a relay may come back to, and who is asked meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from auth.keys import SigningKey
from auth.tokens import HelloClaims, issue_hello
from proxy.hub.calls.closing import recorded_tunnel
from proxy.hub.home.config import TunnelConfig
from proxy.hub.home.sections.limits import LimitsConfig
from proxy.hub.home.sections.peer import PeerConfig
from proxy.hub.identity.replay import ReplayedError
from proxy.hub.identity.replay_postgres import WAIT_S
from proxy.hub.identity.replay_store import ReplayStoreUnavailableError
from proxy.hub.relays.registry import Registry
from proxy.message.head import RequestHead
from proxy.process.config import Address
from tests.fakes.replays import open_replays, unreachable
from tests.proxy.hub.calls.sessions import session_pair
from tests.proxy.hub.relays.endpoint_bench import NOW, Bench, lost_relay, open_bench
from tests.proxy.hub.relays.live_relays import live
from tunnel import (
    RESUME,
    CloseCode,
    Hello,
    Interruptions,
    Rejected,
    Resume,
    Session,
    Welcome,
    memory_transport_pair,
)
from tunnel.dialing.resumption import RESUME_DIAL_S
from tunnel.protocol import greetings
from tunnel.websocket.upgrade import SESSION_HEADER


@asynccontextmanager
async def detached_relay(bench: Bench) -> AsyncIterator[tuple[Session, HelloClaims, Hello]]:
    """A relay's session that has lost its connection: the hub's end, and what the relay comes back with."""
    async with lost_relay(bench) as (hub, claims, relay):
        yield hub, claims, relay.hello_again()


async def come_back(bench: Bench, claims: HelloClaims, hello: Hello) -> bool:
    here, there = memory_transport_pair()
    # It carries the session until it is lost; a refusal comes at once.
    resumed = True
    with trio.move_on_after(0.1):
        resumed = await bench.endpoint._resume(here, greetings.hello(hello), bench.dial(claims))
    await there.aclose()
    return resumed


async def test_a_relay_comes_back_to_its_own_session(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench, detached_relay(bench) as (hub, claims, hello):
        assert hub.detached
        assert await come_back(bench, claims, hello)


@pytest.mark.parametrize("replaced", [True, False])
async def test_a_hub_that_goes_does_not_wait_for_a_relay_that_dials_another_one(
    replaced: bool, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench, detached_relay(bench) as (hub, claims, hello):
        bench.endpoint.leave(900, replaced=replaced)
        assert hub.closed
        assert not await come_back(bench, claims, hello)


async def test_a_relay_comes_back_to_a_hub_that_leaves_its_peers(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench, detached_relay(bench) as (hub, claims, hello):
        bench.endpoint.leave(900, resumes=True)
        assert not hub.closed
        assert hub.draining
        assert await come_back(bench, claims, hello)
        hello = attrs.evolve(hello, resume=Resume("another", 0, 0, 0, 1))
        with pytest.raises(Rejected, match="this hub does not have that session"):
            bench.endpoint._welcome(bench.dial(claims), hello)


async def test_a_relay_that_lost_its_tunnel_before_the_hub_noticed_learns_that_the_hub_stops(
    tmp_path: Path,
) -> None:
    async with open_bench(tmp_path) as bench, session_pair() as (hub, _), trio.open_nursery() as nursery:
        cluster = bench.directory.current.clusters_by_name["prod"]
        claims = HelloClaims(cluster.id, "relay-1", cluster.relay_keys[0].kid, "jti", 0, 60)
        hello = Hello(cluster=cluster.id, instance="relay-1", resume=Resume("session", 0, 0, 0, 1))
        await bench.keep(hub, nursery)
        bench.endpoint.leave(900, replaced=True)
        assert not hub.closed
        assert not await come_back(bench, claims, hello)
        assert await hub.wait_closed() == "the tunnel was lost, and a hub that is stopping resumes no session"
        with pytest.raises(Rejected, match="this hub is stopping, and resumes no session") as caught:
            bench.endpoint._welcome(bench.dial(claims), hello)
        assert caught.value.close_code == CloseCode.RESUME_UNKNOWN


async def test_a_relay_comes_back_to_its_session_while_its_token_cannot_be_recorded(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    key = SigningKey.generate()
    async with open_bench(tmp_path, key) as bench, detached_relay(bench) as (_, claims, hello):
        assert hello.resume is not None
        tokens = iter(range(100))

        async def dial(instance: str, session_id: str, signer: SigningKey = key) -> bool:
            token = issue_hello(
                signer,
                cluster_id=claims.cluster_id,
                hub_url="https://hub.example",
                instance=instance,
                jti=str(next(tokens)),
                now=NOW,
            )
            lines = (b"authorization", b"Bearer " + token.encode()), (SESSION_HEADER, session_id.encode())
            head = RequestHead.of(b"GET", b"/v1/tunnel", lines)
            arrival = bench.auth.limit.arrive()
            return (await bench.auth.authenticate(head, NOW, arrival, "192.0.2.9")).recorded

        async def dial_while_away(instance: str, session_id: str) -> None:
            try:
                found.append(await dial(instance, session_id))
            except ReplayStoreUnavailableError:
                found.append(None)

        own = "relay-1", hello.resume.session_id
        assert await dial(*own)
        found: list[bool | None] = []
        async with open_replays(unreachable(tmp_path)) as away:
            bench.auth._replays.store = away
            async with trio.open_nursery() as nursery:
                for session in (own, ("relay-2", own[1]), ("relay-1", "another")):
                    nursery.start_soon(dial_while_away, *session)
                await wait_all_tasks_blocked()
                # Half of the dial is left for the rest of it.
                mock_clock.jump(RESUME_DIAL_S / 2)
                await wait_all_tasks_blocked()
                assert found == [False]
                mock_clock.jump(WAIT_S)
            assert Counter(found) == {False: 1, None: 2}
            # A replay at this hub is known without the database.
            tokens = iter([0])
            with pytest.raises(ReplayedError):
                await dial(*own)


async def test_a_token_that_is_not_recorded_begins_no_session(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        cluster = bench.directory.current.clusters_by_name["prod"]
        claims = HelloClaims(cluster.id, "relay-1", "", "jti", 0, 60)
        hello = Hello(cluster=cluster.id, instance="relay-1")
        with pytest.raises(Rejected, match="is not recorded: try again"):
            bench.endpoint._welcome(bench.dial(claims, recorded=False), hello)


async def test_a_call_records_the_interruptions_of_its_tunnel(tmp_path: Path) -> None:
    async with session_pair() as (untouched, _):
        assert recorded_tunnel(untouched, untouched.interruptions) is None
    async with open_bench(tmp_path) as bench, detached_relay(bench) as (hub, _, _):
        told = recorded_tunnel(hub, Interruptions())
        assert told is not None
        assert told.detaches == 1
        assert told.gap_ms > 0


@pytest.mark.parametrize(
    ("kid", "instance"),
    [("another", "relay-1"), ("", "relay-2")],
    ids=["another key", "another instance"],
)
async def test_no_other_relay_resumes_a_session(kid: str, instance: str, tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench, detached_relay(bench) as (hub, claims, hello):
        assert not await come_back(
            bench, attrs.evolve(claims, kid=kid or claims.kid, instance=instance), hello
        )
        # And it does no harm to the session.
        assert hub.detached
        assert await come_back(bench, claims, hello)


async def test_a_relay_that_counts_otherwise_loses_the_session(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench, detached_relay(bench) as (hub, claims, hello):
        assert hello.resume is not None
        wrong = attrs.evolve(hello, resume=attrs.evolve(hello.resume, last_rx=10**9))
        assert not await come_back(bench, claims, wrong)
        assert hub.closed


async def test_a_hello_that_was_held_up_on_the_way_changes_nothing(tmp_path: Path) -> None:
    """A network may swallow a dial, and release it when the relay has long been back by the next one."""
    async with open_bench(tmp_path) as bench, detached_relay(bench) as (hub, claims, held_up):
        assert held_up.resume is not None
        resume = held_up.resume
        later = attrs.evolve(held_up, resume=attrs.evolve(resume, attempt=resume.attempt + 1))
        here, there = memory_transport_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.endpoint._resume, here, greetings.hello(later), bench.dial(claims))
            await wait_all_tasks_blocked()
            assert not hub.detached
            for late in (held_up, attrs.evolve(held_up, resume=attrs.evolve(resume, last_rx=10**9))):
                assert not await come_back(bench, claims, late)
                assert not hub.detached
                assert not hub.closed
            await there.aclose()


async def test_a_session_that_is_not_here_is_refused_and_no_other_one_begun(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        cluster = bench.directory.current.clusters_by_name["prod"]
        claims = HelloClaims(cluster.id, "relay-1", cluster.relay_keys[0].kid, "jti", 0, 60)
        hello = Hello(cluster=cluster.id, instance="relay-1", resume=Resume("gone"))
        assert not await come_back(bench, claims, hello)
        with pytest.raises(Rejected) as caught:
            bench.endpoint._welcome(bench.dial(claims), hello)
        assert caught.value.close_code == CloseCode.RESUME_UNKNOWN


@pytest.mark.parametrize("resume", [True, False])
async def test_what_the_hub_offers_is_configured(resume: bool, tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        bench.endpoint.config = attrs.evolve(bench.endpoint.config, tunnel=TunnelConfig(resume))
        cluster = bench.directory.current.clusters_by_name["prod"]
        claims = HelloClaims(cluster.id, "relay-1", "", "jti", 0, 60)
        hello = Hello(cluster=cluster.id, instance="relay-1", features=(RESUME,))
        welcome: Welcome = bench.endpoint._welcome(bench.dial(claims), hello)
        assert (welcome.features, welcome.resume_ttl_s) == (((RESUME,), 60) if resume else ((), 0))


@pytest.mark.parametrize(("linked", "tunnels"), [(True, 3), (False, 1)])
async def test_a_relay_is_asked_for_more_tunnels_by_hubs_that_are_linked(
    linked: bool, tunnels: int, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench:
        address = Address("192.0.2.1", 8445) if linked else None
        bench.endpoint.hub = "0a1b2c3d"
        bench.endpoint.config = attrs.evolve(
            bench.endpoint.config,
            peer=PeerConfig(address, address),
            limits=LimitsConfig(tunnels_per_relay=3),
        )
        cluster = bench.directory.current.clusters_by_name["prod"]
        claims = HelloClaims(cluster.id, "relay-1", "", "jti", 0, 60)
        hello = Hello(cluster=cluster.id, instance="relay-1")
        welcome: Welcome = bench.endpoint._welcome(bench.dial(claims), hello)
        assert (welcome.replica, welcome.tunnels) == ("0a1b2c3d", tunnels)


async def test_a_relay_that_is_away_is_asked_only_when_no_other_one_is_here(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench, detached_relay(bench) as (_, claims, _):
        registry: Registry = bench.endpoint.registry
        away = registry.session(claims.cluster_id)
        assert away is not None
        assert registry.is_away(claims.cluster_id)
        async with session_pair() as (hub, _):
            context = hub.add_context(1, b"token")
            hub.open_stream(b"", context=context)
            here = live(hub, "relay-2", claims.cluster_id)
            with registry.registered(here):
                assert registry.session(claims.cluster_id) is here
        # As if two seconds had passed.
        away.session._connection.status.detached_at -= 2
        assert registry.session(claims.cluster_id) is None
        assert registry.is_away(claims.cluster_id)
