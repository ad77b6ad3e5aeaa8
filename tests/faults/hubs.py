"""Three hubs with a fault on every leg: between each two of them, and between each and its PostgreSQL.

clients ──▶ balancer ──▶ hubs ◀──link──▶ hubs, ◀── balancer ◀── relays ──▶ API server
                          └──link──▶ PostgreSQL

The API server is scripted, and the relays are real.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import attrs
import trustme

from audit.postgres.reader import PostgresReader
from sandbox.balancer.backends import Policy
from sandbox.demo.hubs import HubProcess
from tests.fakes.apiserver import running_apiserver
from tests.faults.control import Link, open_proxy
from tests.faults.hub_on_postgres import LIMITS, READ, WRITE, OnPostgres
from tests.faults.postgres import faulty_postgres
from tests.system.chain import Chain, Trap
from tests.system.hubs import RELAYS, HubsWorld, rows_of, running_hubs
from tests.system.raw import RawClient

# After a hub's death another one ends its calls so.
UNKNOWN = Counter({"intent": 1, "unknown": 1})
UNKNOWN_WITHIN_S = 100.0
# A read that takes seconds is in the trail before its end.
LONG_READ = Counter({"start": 1, "complete": 1})
UNKNOWN_READ = Counter({"start": 1, "unknown": 1})
SETTLED_S = 60.0


@attrs.define(eq=False, kw_only=True)
class FaultyHubs(OnPostgres):
    """Three hubs, and the links."""

    peers: dict[str, Link]
    """By the name of the hub that is dialled."""
    databases: dict[str, Link]
    """By the hub's name."""

    @property
    def world(self) -> HubsWorld:
        assert isinstance(self.chain.world, HubsWorld)
        return self.chain.world

    def at(self, member: HubProcess) -> RawClient:
        """A client of one hub, past the balancer."""
        return RawClient(self.world, "tunnel", at=member.port)

    def ends(self) -> dict[str, Counter[str]]:
        """The phases of each call in the trail, and its `audit.late` events, by `eid`."""
        found: dict[str, Counter[str]] = {}
        with closing(PostgresReader(lambda: self.server.url)) as reader:
            for stored in reader.events(*reader.span()):
                event = json.loads(stored.line)
                if event["kind"] in ("call", "session.killed", "audit.late"):
                    phase = event["phase"] if event["kind"] != "audit.late" else "late"
                    found.setdefault(event["eid"], Counter())[phase] += 1
        return found

    def check_ends(self) -> int:
        """Raise unless no call has two ends; returns how many were ended as unknown."""
        found = self.ends()
        assert [eid for eid, phases in found.items() if phases["complete"] + phases["unknown"] > 1] == []
        return sum(phases["unknown"] for phases in found.values())

    def wait_for_two(self) -> None:
        """Wait until the hubs are settled, and two of them have a tunnel: none of them is the only one."""
        self.settle()
        self.world.until(
            lambda: sum(bool(names) for names in self.world.tunnels().values()) >= 2,
            "two hubs have a tunnel",
            SETTLED_S,
        )

    def settle(self, tunnels: int = 0, within_s: float = SETTLED_S) -> float:
        """Wait until all hubs serve and reach one another, with so many tunnels; how long that took."""
        return self.world.until(lambda: settled(self.world, tunnels), "the hubs are settled", within_s)


def hub_rows(world: HubsWorld, member: HubProcess | None = None) -> list[dict[str, object]]:
    """What `hawse admin hub list` would say at a hub."""
    return rows_of(member or world.one_running(), "hubs")


def settled(world: HubsWorld, tunnels: int = 0) -> bool:
    """Whether all hubs serve and reach one another, and have so many tunnels together."""
    rows = hub_rows(world)
    serving = [row for row in rows if row["state"] == "serving" and row["living"]]
    return (
        len(serving) == len(world.members)
        and not any(row["unreachable"] for row in serving)
        and sum(int(str(row["tunnels"])) for row in serving) >= tunnels
    )


@contextmanager
def faulty_hubs(
    folder: Path,
    *,
    settings: str = "",
    relays: tuple[str, ...] = RELAYS,
    policy: Policy = Policy.ROUND_ROBIN,
) -> Iterator[FaultyHubs]:
    """Bring all of it up; at the end, no log has an exception."""
    peers: dict[str, Link] = {}
    databases: dict[str, Link] = {}
    with faulty_postgres() as server, open_proxy(folder) as proxy, running_apiserver() as api:

        def database(hub: HubProcess) -> str:
            databases[hub.name] = link = proxy.link(server.port)
            return f"postgresql://postgres@127.0.0.1:{link.port}/postgres?sslmode=disable"

        def address(hub: HubProcess) -> str:
            peers[hub.name] = link = proxy.link(hub.peer_port)
            return f"127.0.0.1:{link.port}"

        kubeconfig = folder / "relay.kubeconfig"
        api.write_kubeconfig(kubeconfig)
        with running_hubs(
            folder,
            database,
            address_of=address,
            relay_kubeconfig=kubeconfig,
            relays=relays,
            policy=policy,
            settings=LIMITS + settings,
            flags=("--verbose",),
        ) as world:
            chain = Chain(world, api, Trap(0), trustme.CA())
            phases = (WRITE, READ, LONG_READ, UNKNOWN, UNKNOWN_READ)
            hubs = FaultyHubs(chain, server, phases, UNKNOWN_WITHIN_S, peers=peers, databases=databases)
            hubs.settle(len(relays))
            yield hubs
            chain.check_logs()
