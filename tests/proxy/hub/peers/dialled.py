"""Two hubs that are joined by TCP and TLS, each with its own identity and listener."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

from proxy.hub.membership.member import Member
from proxy.hub.peers.dial import PeerDialer
from proxy.hub.peers.identity import LinkIdentity
from proxy.hub.peers.listener import PeerListener
from proxy.hub.peers.mesh import Mesh
from proxy.listener.accept import open_listeners, serve_connections
from proxy.process.config import Address
from tests.proxy.hub.peers.linked import FakeMembers, FakeRelay, member
from tunnel.net.tcp import TCPListener


@attrs.define(eq=False)
class Dialled:
    """One of the hubs."""

    members: FakeMembers
    identity: LinkIdentity
    dialer: PeerDialer
    mesh: Mesh
    listener: PeerListener
    relays: list[FakeRelay]
    sockets: list[TCPListener]

    @property
    def me(self) -> Member:
        """Its row."""
        return self.members.me


async def make_hub(hub: str, boot: str = "") -> Dialled:
    """A hub that listens, but does not accept yet."""
    sockets = await open_listeners(Address("127.0.0.1", 0), "peer.listen")
    port = sockets[0].socket.getsockname()[1]
    bare = member(hub, boot)
    identity = LinkIdentity.make(bare.boot)
    me = attrs.evolve(bare, address=f"127.0.0.1:{port}", certificate=identity.certificate)
    members = FakeMembers(me)
    relays: list[FakeRelay] = []

    def make(link: object, route: object) -> FakeRelay:
        relays.append(FakeRelay(link, route, relays))  # type: ignore[arg-type]  # as the mesh calls it
        return relays[-1]

    dialer = PeerDialer(me.hub, me.boot, identity)
    mesh = Mesh(members, dialer.connect, list, make)
    listener = PeerListener(mesh, identity, time.time)
    return Dialled(members, identity, dialer, mesh, listener, relays, sockets)


@asynccontextmanager
async def listening(*hubs: Dialled) -> AsyncIterator[tuple[Dialled, ...]]:
    """Close the hubs' listeners after the block."""
    try:
        yield hubs
    finally:
        for hub in hubs:
            for each in hub.sockets:
                await each.aclose()


@asynccontextmanager
async def serving(*hubs: Dialled) -> AsyncIterator[trio.Nursery]:
    """Run hubs, which know only what `members.read` has told them."""
    async with trio.open_nursery() as nursery:
        for hub in hubs:
            nursery.start_soon(hub.mesh.run)
            await nursery.start(serve_connections, hub.listener.handle_client, hub.sockets, nursery)
        yield nursery
        nursery.cancel_scope.cancel()


async def linked(hub: Dialled, within_s: float = 5.0) -> None:
    """Wait until a hub has a link."""
    with trio.fail_after(within_s):
        while not hub.mesh.links:  # noqa: ASYNC110 - the mesh has no event for it
            await trio.sleep(0.01)
