"""Two hubs in one process: real sessions as the link and as the relay's tunnel, and a directory each."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import cast

import attrs
import trio

from auth.policy.match import Bundle
from auth.principal import Principal
from proxy.hub.hop.forwarded import ForwardedCalls
from proxy.hub.hop.local_routes import local_routes
from proxy.hub.hop.peer_relay import PeerRelay, PeerRelays
from proxy.hub.peers.link import PeerLink
from proxy.hub.peers.routes import Route
from proxy.hub.relays.registry import LiveRelay, Registry
from proxy.hub.store.directory import Directory
from proxy.hub.store.entities import Agent, AgentState, Cluster, Mode, Snapshot
from proxy.hub.store.versions.snapshot_age import SnapshotAge
from proxy.hub.store.versions.version import Version
from tests.proxy.hub.calls.bench import Bench
from tests.proxy.hub.calls.sessions import session_pair
from tests.proxy.hub.relays.live_relays import live
from tests.tunnel.pairs import Pair, open_pair
from tests.tunnel.trio_stream import TrioStream, accept
from tunnel import Session

AGENT = Principal("a1", "claude", "main", ("dev",))


def agent(
    teams: tuple[str, ...] = ("dev",), state: AgentState = AgentState.ACTIVE, agent_id: str = "a1"
) -> Agent:
    principal = Principal(agent_id, "claude", "main", teams) if teams else None
    return Agent(agent_id, "claude", "ops", state, teams, frozenset(teams), 0.0, principal)


def cluster(granted: tuple[str, ...] = ("dev",), cluster_id: str = "c1") -> Cluster:
    return Cluster(
        cluster_id, "prod", {}, granted, frozenset(granted), Mode.TUNNEL, (), None, None, False, 0.0
    )


def snapshot(number: int, *entities: Agent | Cluster) -> Snapshot:
    agents = {each.id: each for each in entities if isinstance(each, Agent)}
    clusters = {each.id: each for each in entities if isinstance(each, Cluster)}
    return Snapshot(
        org="main",
        version=Version(number, f"nonce-{number}"),
        teams_by_name={},
        agents_by_id=agents,
        agents_by_name={each.name: each for each in agents.values()},
        clusters_by_id=clusters,
        clusters_by_name={each.name: each for each in clusters.values()},
        api_keys_by_hash={},
        agent_keys_by_kid={},
        codes_by_hash={},
        issuers_by_url={},
        rules_by_issuer={},
        admin_tokens_by_hash={},
        bundle=cast(Bundle, None),
    )


class FakeDirectory:
    """The snapshot of one hub, as the test sets it."""

    def __init__(self) -> None:
        self.current = snapshot(1, agent(), cluster())
        self.age = SnapshotAge(trio.current_time())
        self.polls = 0

    def poll_soon(self) -> None:
        self.polls += 1


@attrs.define(eq=False)
class Hubs:
    """The first hub, the link, the second hub and a relay."""

    link: Pair
    first: Registry
    second: Registry
    directory: FakeDirectory
    """The second hub's."""
    forwarded: ForwardedCalls
    relay: LiveRelay
    """The second hub's relay."""
    there: Session
    """The relay's end of its session."""
    peers: PeerRelays
    version: list[int]
    """The first hub's version of the directory."""
    minted: list[Principal]

    def change(self, *entities: Agent | Cluster, number: int | None = None) -> None:
        """Give the second hub another snapshot."""
        before = self.directory.current.version.number
        self.directory.current = snapshot(before + 1 if number is None else number, *entities)
        self.forwarded.reconsider()

    @property
    def route(self) -> PeerRelay:
        """The first hub's relay."""
        found = self.first.session("c1")
        assert isinstance(found, PeerRelay)
        return found

    def open(self, head: bytes = b"head", *, eof: bool = False, principal: Principal = AGENT) -> TrioStream:
        """Open a stream as a call of the first hub does."""
        route = self.route
        context = route.contexts.context_for(principal, time.time())
        return TrioStream(route.session.open_stream(head, context=context.index, eof=eof))

    async def streams(self, head: bytes = b"head", *, eof: bool = False) -> tuple[TrioStream, TrioStream]:
        """The first hub's and the relay's end of a forwarded stream."""
        opened = self.open(head, eof=eof)
        return opened, await accept(self.there)


@asynccontextmanager
async def open_hubs() -> AsyncIterator[Hubs]:
    """The hubs know the agent `a1` of team `dev`, and the cluster `c1`; the relay's session is `s1`."""
    async with (
        trio.open_nursery() as nursery,
        open_pair() as link,
        session_pair(session_id="s1") as (here, there),
    ):
        first, second, directory = Registry(), Registry(), FakeDirectory()
        forwarded = ForwardedCalls(second, cast(Directory, directory), trio.current_time)
        nursery.start_soon(forwarded.run)
        link.dialer.on_stream(lambda stream: forwarded.serve(None, stream))
        version, minted = [1], list[Principal]()
        peers = PeerRelays(first, lambda: version[0])
        relay = live(here)

        def mint(principal: Principal) -> str:
            minted.append(principal)
            return f"token-{len(minted)}"

        relay.contexts._mint = mint
        with second.registered(relay):
            [route] = local_routes(second)
            peers(link_of(link.listener), route)
            yield Hubs(link, first, second, directory, forwarded, relay, there, peers, version, minted)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def second_hub(bench: Bench, *instances: str) -> AsyncIterator[dict[str, tuple[LiveRelay, Session]]]:
    """Link the bench's hub to another one, which has these relays; yields them with their own ends."""
    cluster = bench.directory.current.clusters_by_name["prod"]
    registry, relays = Registry(), dict[str, tuple[LiveRelay, Session]]()
    forwarded = ForwardedCalls(registry, bench.directory)
    bench.directory.on_change(forwarded.reconsider)
    peers = PeerRelays(bench.registry, lambda: bench.directory.current.version.number)

    @asynccontextmanager
    async def connected(rest: tuple[str, ...]) -> AsyncIterator[None]:
        if not rest:
            yield
            return
        async with session_pair(session_id=f"session-of-{rest[0]}") as (here, there):
            relay = live(here, rest[0], cluster.id)
            with registry.registered(relay):
                relays[rest[0]] = relay, there
                async with connected(rest[1:]):
                    yield

    async with trio.open_nursery() as nursery, open_pair() as link, connected(instances):
        nursery.start_soon(forwarded.run)
        link.dialer.on_stream(lambda stream: forwarded.serve(None, stream))
        for route in local_routes(registry):
            peers(link_of(link.listener), route)
        yield relays
        nursery.cancel_scope.cancel()


def link_of(session: Session) -> PeerLink:
    return cast(PeerLink, SimpleNamespace(session=session))


def route(session: str, cluster_id: str = "c1", **changes: object) -> Route:
    told = Route(session, cluster_id, "relay-1", "boot", "1", "kid", "192.0.2.1", 0.0, 0, False, False)
    evolve: Callable[..., Route] = attrs.evolve
    return evolve(told, **changes)
