"""A made-up hub for the pages: the admin API over a real store, with a fleet and live calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random

import attrs
import trio

from audit.ids import uuid7
from auth.apikey import hash as hash_key
from auth.apikey import new_api_key
from auth.keys import SigningKey
from proxy.hub.admin.overview.shapes import Attention, HubFacts
from proxy.hub.admin.verbs.answers import time_text
from proxy.hub.relays.operations import RelayInfo, SessionInfo
from proxy.hub.store.clusters import RelayContact
from proxy.hub.store.directory import Directory
from proxy.hub.store.entities import Mode
from proxy.hub.store.store import Store
from tests.console.fleet_data import rules
from tests.console.names import AGENTS, CLUSTERS, HOSTILE, OWNERS, TEAMS
from tests.console.request_data import MADE_UP, made_up_requests
from tests.console.trail_events import made_up_events, write_trail
from tests.fakes.admin import PEPPER, Bench, Clock
from tests.fakes.admin_bench import open_bench


@asynccontextmanager
async def open_world(
    folder: Path,
    *,
    clusters: int = 5,
    agents: int = 7,
    calls: int = 9,
    events: int = 60,
    requests: int = len(MADE_UP),
    hostile: bool = False,
) -> AsyncIterator[Bench]:
    """Open a hub with so many of each, the same each time."""
    # First, so that it is there for all that the bench opens.
    write_trail(folder, made_up_events(Clock().now, events, hostile=hostile))
    made = _Made()
    async with open_bench(folder, facts=made.facts, denials=made, watched={"sessions": made.calls}) as bench:
        made.bench, made.text = bench, HOSTILE if hostile else ()
        now = bench.clock.now
        # The relay of the offline cluster was last heard some hours ago.
        bench.clock.now = now - 3 * 3600
        await bench.directory.change(lambda store: _fill(store, clusters, agents))
        await bench.directory.change(partial(_lose, lost=_lost(bench.directory)))
        if clusters and agents:
            for before_s, change in rules(_names(AGENTS, agents), hostile=hostile):
                bench.clock.now = now - before_s
                await bench.directory.change(change)
            await bench.directory.change(partial(_use, now=now))
        bench.clock.now = now
        bench.operations.live = _relays(bench.directory, now)
        reached = sorted({relay.cluster for relay in bench.operations.live})
        bench.sessions.live = _calls(bench.directory, reached, now, calls, hostile=hostile)
        bench.sessions.beside = 0
        bench.requests.found = made_up_requests(bench.directory.current, now, count=requests, texts=made.text)
        yield bench


@attrs.define
class _Made:
    """What the overview asks of a running hub and of its trail."""

    bench: Bench | None = None
    text: Sequence[str] = ()

    async def facts(self) -> HubFacts:
        await trio.lowlevel.checkpoint()
        assert self.bench is not None
        relays, calls = self.bench.operations.live, self.bench.sessions.live
        troubles = [
            Attention("certificate-ends", "warning", "hub", "", "its certificate ends in 6 days", None),
            *(Attention("made-up", "notice", "cluster", text, text) for text in self.text),
        ]
        return HubFacts(
            calls=Counter(call.cluster for call in calls),
            rtt_ms={relay.cluster: relay.rtt_ms for relay in relays if relay.rtt_ms is not None},
            lacks_rights={relay.cluster: self.bench.clock.now - 600 for relay in relays[:1]},
            troubles=troubles if relays else [],
        )

    def calls(self) -> object:
        return self.bench and len(self.bench.sessions.live)

    async def denials(self, count: int) -> Sequence[Mapping[str, object]]:
        await trio.lowlevel.checkpoint()
        assert self.bench is not None
        now, agents = self.bench.clock.now, sorted(self.bench.directory.current.agents_by_name)
        return [
            {
                "number": str(900 - number),
                "eid": str(uuid7(int((now - 700 * number) * 1000), bytes(10))),
                "time": time_text(now - 40 - 700 * number),
                "actor": f"agent:{agents[number % len(agents)]}",
                "agent": agents[number % len(agents)],
                "cluster": "prod-eu-1",
                "request": self.text[number % len(self.text)] if self.text else request,
                "result": "403",
                "why": why,
            }
            for number, (request, why) in enumerate(_DENIED[:count] if agents else ())
        ]


_DENIED = (
    ("delete deployments checkout -n shop", "denied by guard: no-deletes-in-prod"),
    ("get secrets -n kube-system", "denied by base: no-secrets"),
    ("exec payments-5c7f -n payments -- sh", "denied by guard: exec-needs-a-ticket"),
    ("list nodes", "no rule allows it"),
)


def _fill(store: Store, clusters: int, agents: int) -> None:
    """Write the rows of a fleet."""
    if not clusters:
        return
    for name in TEAMS:
        store.add_team(name)
    for number, name in enumerate(_names(CLUSTERS, clusters)):
        teams = tuple(TEAMS[(number + step) % len(TEAMS)] for step in range(1 + number % 3))
        labels = {"env": name.partition("-")[0], "region": ("eu", "us")[number % 2]}
        store.add_cluster(
            name, relay_key=SigningKey.generate().public, mode=Mode.TUNNEL, teams=teams, labels=labels
        )
    for number, name in enumerate(_names(AGENTS, agents)):
        teams = tuple(TEAMS[(number + step) % len(TEAMS)] for step in range(1 + number % 2))
        digest = hash_key(new_api_key(f"{name}".encode().ljust(32, b"k")[:32]), PEPPER)
        store.add_agent(
            name, owner=OWNERS[number % len(OWNERS)], teams=teams, key_hash=digest, key_hint="hws_abc123"
        )
        if number % 7 == 4:
            store.lock_agent(name)


def _use(store: Store, now: float) -> None:
    """Note that most agents were used, and when."""
    agents = store.snapshot().agents_by_name
    used = {agent.id: now - 7 - 900.0 * (number % 12) ** 2 for number, agent in enumerate(agents.values())}
    # The last one has just been added.
    used.popitem()
    keys = {key: used[agent_id] for key, agent_id in store.snapshot().credentials.items() if agent_id in used}
    store.note_use(agents=used, credentials=keys, admin_tokens={}, relays={})


def _lost(directory: Directory) -> list[RelayContact]:
    """Return a relay for half of the clusters without one; the others still wait for their first."""
    offline = sorted(directory.current.clusters_by_name.values(), key=lambda cluster: cluster.name)[1::5]
    return [
        RelayContact(cluster.id, f"hawse-relay-{cluster.name}-0", "boot", "0.1.0", "192.0.2.9")
        for cluster in offline[: (len(offline) + 1) // 2]
    ]


def _lose(store: Store, lost: Sequence[RelayContact]) -> None:
    for contact in lost:
        store.relay_connected(contact)
        store.relay_disconnected(contact.cluster_id, contact.instance, contact.boot)


def _names(base: Sequence[str], count: int) -> list[str]:
    return [base[n] if n < len(base) else f"{base[n % len(base)]}-{n}" for n in range(count)]


def _relays(directory: Directory, now: float) -> list[RelayInfo]:
    """Two relays for most clusters; each fifth cluster is offline."""
    return [
        RelayInfo(
            name, f"hawse-relay-{name}-{replica}", "0.1.0", f"192.0.2.{10 + number % 200}",
            now - 86400 * (number + 1), now - 3, 12.0 + 7 * number % 90, number % 4,
        )
        for number, name in enumerate(sorted(directory.current.clusters_by_name))
        if number % 5 != 1
        for replica in range(2)
    ]  # fmt: skip


_WHAT = (
    ("exec/websocket", "create", "pods/exec", "checkout-7d9c5b6f4-x2k9p", 45, 101, 2_311, 48_211),
    ("watch", "watch", "deployments", "", 4_210, 200, 0, 1_220_113),
    ("log", "get", "pods/log", "search-indexer-0", 610, 200, 0, 18_400_221),
    ("request", "list", "pods", "", 0.4, 0, 0, 0),
    ("portforward/spdy/3.1", "create", "pods/portforward", "postgres-0", 900, 101, 88_211, 91_002),
    ("watch", "watch", "events", "", 86_000, 200, 0, 9_310_000),
)


def _calls(
    directory: Directory, clusters: Sequence[str], now: float, count: int, *, hostile: bool
) -> list[SessionInfo]:
    random = Random(7)
    agents = sorted(directory.current.agents_by_name)
    made: list[SessionInfo] = []
    for number in range(count if agents and clusters else 0):
        kind, verb, resource, name, age, status, received, sent = _WHAT[number % len(_WHAT)]
        text = HOSTILE[number % len(HOSTILE)] if hostile else ""
        made.append(
            SessionInfo(
                id=str(uuid7(int((now - age - number) * 1000), random.randbytes(10))),
                agent=agents[number * 3 % len(agents)],
                cluster=clusters[number * 3 % len(clusters)],
                kind=kind,
                verb=verb,
                resource=resource,
                namespace=text or ("shop", "search", "kube-system")[number % 3],
                name=text or name,
                client=f"198.51.100.{20 + number % 100}",
                relay=f"hawse-relay-{clusters[number * 3 % len(clusters)]}-{number % 2}",
                started_at=now - age - number,
                status=status,
                bytes_in=received,
                bytes_out=sent,
                claimed_reason=text,
            )
        )
    return sorted(made, key=lambda call: call.started_at)
