"""The hub's relays in direct mode, before a relay whose API server names the caller it sees."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Set
from contextlib import asynccontextmanager
from unittest.mock import Mock

import trio

from audit.ids import new_eid
from auth.principal import Principal
from proxy.exchange.engine import Exchange
from proxy.hub.calls.direct import DirectPort
from proxy.hub.relays.direct import DirectRelays
from proxy.hub.relays.pins import Pins
from proxy.hub.store.directory import Directory
from proxy.hub.store.entities import Cluster, Mode
from proxy.hub.store.secrets.signing_keys import SigningKeys
from proxy.message.failure import Failure, OutboundBroken
from tests.proxy.exchange.fake_ports import FakePort
from tests.proxy.relay.apiserver import Connection, headers
from tests.proxy.relay.ways import CLUSTER_ID, HUB, KEY, DirectWay, inner

ANN = Principal("agent-1", "ann", "acme", ("sre",))
# Relays without a statement need no pins.
NO_PINS = Pins(Mock(), Mock(), Mock())


async def name_the_caller(connection: Connection) -> None:
    while head := await connection.request():
        who = " ".join([*headers(head, "impersonate-user"), *headers(head, "impersonate-group")]).encode()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(who), who))


@asynccontextmanager
async def open_relays(
    keys: Callable[[], SigningKeys],
    enrolled: Set[str] = frozenset({CLUSTER_ID}),
    pins: Pins | None = None,
) -> AsyncIterator[DirectRelays]:
    async with trio.open_nursery() as nursery:
        relays = DirectRelays(
            keys=keys,
            issuer=HUB,
            new_id=new_eid,
            nursery=nursery,
            enrolled=lambda: enrolled,
            pins=pins or NO_PINS,
        )
        yield relays
        await close_kept(relays)
        nursery.cancel_scope.cancel()


async def close_kept(relays: DirectRelays) -> None:
    """Close the connections that the hub keeps until it ends."""
    for relay in relays._relays.values():
        await relay.connections.aclose()


async def enrol_far(directory: Directory, port: int, ca_pem: str | None) -> None:
    """Enrol the cluster `far` with a relay at this port."""
    await directory.change(
        lambda store: store.add_cluster(
            "far",
            teams=["sre"],
            mode=Mode.DIRECT,
            relay_url=f"https://127.0.0.1:{port}",
            relay_ca_pem=ca_pem,
            relay_address_private=True,
        )
    )


def old_keys() -> SigningKeys:
    return SigningKeys(KEY, (KEY,))


def cluster_at(way: DirectWay) -> Cluster:
    return Cluster(
        id=CLUSTER_ID,
        name="far",
        labels={},
        teams=("sre",),
        team_ids=frozenset(),
        mode=Mode.DIRECT,
        relay_keys=(),
        relay_url=f"https://127.0.0.1:{way.port}",
        relay_ca_pem=way.ca_pem,
        relay_address_private=True,
        created_at=0.0,
    )


async def ask(relays: DirectRelays, cluster: Cluster, principal: Principal, *, renew: bool = False) -> bytes:
    """Return the identity that the API server saw."""
    failures: list[Failure | None] = []
    over = trio.Event()

    def done(failure: Failure | None) -> None:
        failures.append(failure)
        over.set()

    request = relays.request(cluster, principal, inner(), renew=renew)
    port = DirectPort(request, cluster, lambda head: head, long=False)
    client = FakePort(drains_at_once=True)
    exchange = Exchange(client, port, done, bodiless=True)
    try:
        await port.open()
        exchange.start()
        await over.wait()
    finally:
        port.close()
    if failures[0] is not None:
        raise OutboundBroken(failures[0])
    return bytes(client.out)
