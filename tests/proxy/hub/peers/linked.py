"""Linked hubs in one process, without a database, TLS or sockets: their meshes over transports in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress

import attrs
import trio

from proxy.hub.membership.member import ENDED, Member, MemberState
from proxy.hub.peers.link import PeerLink
from proxy.hub.peers.mesh import Mesh
from proxy.hub.peers.routes import Route
from tunnel import (
    Rejected,
    RemoteProtocolError,
    SessionClosed,
    Transport,
    TransportClosed,
    memory_transport_pair,
)
from tunnel.dialing.failure import DialFailed
from tunnel.websocket.transport import MemoryTransport


def member(hub: str, boot: str = "", **more: object) -> Member:
    """A serving hub, whose row was renewed now."""
    fields: dict[str, object] = {
        "hub": hub,
        "boot": boot or f"{hub}-boot",
        "epoch": 1,
        "address": f"{hub}:8445",
        "software": "hawse/test",
        "state": MemberState.SERVING,
        "applied": 1,
        "started_at": 0.0,
        "age_s": 0.0,
        "stale_s": 10.0,
        "stale_streams_s": 60.0,
        **more,
    }
    return Member(**fields)  # type: ignore[arg-type]  # a test states what it is about


@attrs.define(eq=False)
class FakeMembers:
    """What one hub has read of all."""

    me: Member
    rows: dict[str, Member] = attrs.Factory(dict)
    """By boot; `read` sets them."""
    _callbacks: list[Callable[[], None]] = attrs.Factory(list)

    def others(self) -> list[Member]:
        """See Membership."""
        return [each for each in self.rows.values() if each.boot != self.me.boot and each.state not in ENDED]

    def by_boot(self, boot: str) -> Member | None:
        """See Membership."""
        return self.rows.get(boot)

    def on_change(self, callback: Callable[[], None]) -> None:
        """See Membership."""
        self._callbacks.append(callback)

    def read(self, *rows: Member) -> None:
        """Take these rows beside those that were read before, as a reading of the table does."""
        self.rows.update({each.boot: each for each in rows})
        self.me = self.rows.get(self.me.boot, self.me)
        for callback in self._callbacks:
            callback()


def route(session: str, **more: object) -> Route:
    """The route of a relay's session."""
    fields: dict[str, object] = {
        "session": session,
        "cluster": "c1",
        "instance": "relay-1",
        "boot": "relay-boot",
        "version": "hawse/test",
        "kid": "kid",
        "address": "192.0.2.1:5000",
        "connected_at": 0.0,
        "streams": 0,
        "leaving": False,
        "away": False,
        **more,
    }
    return Route(**fields)  # type: ignore[arg-type]  # a test states what it is about


@attrs.define(eq=False)
class FakeRelay:
    """What stands for a route of another hub (RouteHandle)."""

    link: PeerLink
    route: Route
    relays: list[FakeRelay] = attrs.field(repr=False)
    updates: int = 0
    is_away: bool = False

    def update(self, route: Route) -> None:
        """See RouteHandle."""
        self.route = route
        self.updates += 1

    def away(self) -> None:
        """See RouteHandle."""
        self.is_away = True

    def back(self) -> None:
        """See RouteHandle."""
        self.is_away = False

    def end(self) -> None:
        """See RouteHandle."""
        self.relays.remove(self)


@attrs.define(eq=False)
class Linked:
    """One of the hubs."""

    members: FakeMembers
    mesh: Mesh
    routes: dict[str, Route] = attrs.Factory(dict)
    """Its own sessions, which a test sets."""
    relays: list[FakeRelay] = attrs.Factory(list)
    """Those that the others have announced, and that have not ended."""

    @property
    def link(self) -> PeerLink:
        """The link to the other hub, of two."""
        (link,) = [each for each in self.mesh.links if each.up]
        return link

    def tell(self, *routes: Route) -> None:
        """Have these sessions, and tell of them at once."""
        self.routes = {each.session: each for each in routes}
        self.mesh.routes_changed()


@attrs.define(eq=False)
class Wires:
    """What joins the hubs."""

    nursery: trio.Nursery
    hubs: dict[str, Linked] = attrs.Factory(dict)
    """By boot. One that is not here is not reached."""
    split: bool = False
    """No dial gets through."""
    swallows: bool = False
    """Dials get through, and are not answered."""
    dials: list[tuple[str, str]] = attrs.Factory(list)
    """The boots of both sides."""
    _pairs: list[MemoryTransport] = attrs.Factory(list)
    forgets: bool = False
    """The next dials are refused as those of a hub that was started again."""

    def cut(self) -> None:
        """Cut each connection, as a lost network does."""
        pairs, self._pairs = self._pairs, []
        for each in pairs:
            each.cut()

    @asynccontextmanager
    async def connect(self, own: Callable[[], Member], to: Member, session: str) -> AsyncIterator[Transport]:
        """See mesh.Connect."""
        await trio.sleep(0.001)
        me = own()
        self.dials.append((me.boot, to.boot))
        other = self.hubs.get(to.boot)
        if self.forgets:
            raise DialFailed("another process answers", forgotten=True)
        if self.split or other is None:
            raise DialFailed("cannot connect: split")
        here, there = memory_transport_pair()
        self._pairs.append(here)
        if not self.swallows:
            self.nursery.start_soon(_accept, other.mesh, me, there)  # noqa: ASYNC113 - it answers later
        try:
            yield here
        finally:
            await here.aclose()

    def add(self, me: Member) -> Linked:
        """Make a hub; it knows no other one yet."""
        members = FakeMembers(me)
        relays: list[FakeRelay] = []

        def make(link: PeerLink, route: Route) -> FakeRelay:
            relay = FakeRelay(link, route, relays)
            relays.append(relay)
            return relay

        def own() -> Iterable[Route]:
            return hub.routes.values()

        mesh = Mesh(members, lambda to, session: self.connect(lambda: members.me, to, session), own, make)
        hub = Linked(members, mesh, relays=relays)
        self.hubs[me.boot] = hub
        return hub


async def _accept(mesh: Mesh, dialer: Member, transport: Transport) -> None:
    with suppress(Rejected, SessionClosed, RemoteProtocolError, TransportClosed):
        await mesh.accept(dialer, transport)
    with trio.CancelScope(shield=True):
        await transport.aclose()


@asynccontextmanager
async def open_hubs(*rows: Member) -> AsyncIterator[tuple[Wires, list[Linked]]]:
    """Hubs that run and know each other; their links may not be up yet."""
    async with trio.open_nursery() as nursery:
        wires = Wires(nursery)
        hubs = [wires.add(row) for row in rows]
        for hub in hubs:
            hub.members.read(*rows)
            nursery.start_soon(hub.mesh.run)
        yield wires, hubs
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_linked_hubs() -> AsyncIterator[tuple[Linked, Linked, Wires]]:
    """Two linked hubs: the first has dialled."""
    async with open_hubs(member("aaaaaaaa"), member("bbbbbbbb")) as (wires, (first, second)):
        while not (first.mesh.links and second.mesh.links):  # noqa: ASYNC110 - on virtual time
            await trio.sleep(0.01)
        yield first, second, wires
