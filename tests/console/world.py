"""A made-up hub for the pages: the admin API over a real store, with a fleet and live calls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

from audit.ids import uuid7
from auth.apikey import hash as hash_key
from auth.apikey import new_api_key
from auth.keys import SigningKey
from proxy.hub.relays.operations import RelayInfo, SessionInfo
from proxy.hub.store.directory import Directory
from proxy.hub.store.entities import Mode
from proxy.hub.store.store import Store
from tests.console.fleet_data import fill_rules, note_relays
from tests.fakes.admin import PEPPER, Bench
from tests.fakes.admin_bench import open_bench

TEAMS = ("platform", "payments", "search", "data", "incident-response")
CLUSTERS = ("prod-eu-1", "prod-us-1", "staging", "dev", "edge-lisbon")
AGENTS = (
    "deploy-bot",
    "oncall-helper",
    "rightsizer",
    "cost-reporter",
    "db-migrator",
    "search-indexer",
    "triage",
)
OWNERS = ("ada@example.com", "grace@example.com", "linus@example.com")
# What agents, relays and clients choose, so that every page meets it.
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\x1b]0;owned\x07\x1b[2J",
    "safe\u202egnp.exe",
    "'; background:url(//evil.example/x)",
    "{{ 7*7 }}{% raw %}",
    "javascript:alert(1)",
    "a" * 300,
)


@asynccontextmanager
async def open_world(
    folder: Path, *, clusters: int = 5, agents: int = 7, calls: int = 9, hostile: bool = False
) -> AsyncIterator[Bench]:
    """Open a hub with so many of each, the same each time."""
    async with open_bench(folder) as bench:
        await bench.directory.change(lambda store: _fill(store, clusters, agents))
        if clusters and agents:
            known = bench.directory.current
            # The last by name has been there, and is offline.
            offline = [known.clusters_by_name[name].id for name in sorted(known.clusters_by_name)[2::5][-1:]]
            await bench.directory.change(
                lambda store: fill_rules(store, _names(AGENTS, agents), hostile=hostile)
            )
            await bench.directory.change(lambda store: note_relays(store, offline, hostile=hostile))
        now = bench.clock.now
        bench.operations.live = _relays(bench.directory, now)
        bench.sessions.live = _calls(bench.directory, now, calls, hostile=hostile)
        bench.sessions.beside = 0
        yield bench


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
        if number % 5 != 2
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


def _calls(directory: Directory, now: float, count: int, *, hostile: bool) -> list[SessionInfo]:
    random = Random(7)
    agents = sorted(directory.current.agents_by_name)
    clusters = sorted(directory.current.clusters_by_name)
    made: list[SessionInfo] = []
    for number in range(count if agents and clusters else 0):
        kind, verb, resource, name, age, status, received, sent = _WHAT[number % len(_WHAT)]
        text = HOSTILE[number % len(HOSTILE)] if hostile else ""
        made.append(
            SessionInfo(
                id=str(uuid7(int((now - age - number) * 1000), random.randbytes(10))),
                agent=agents[number * 3 % len(agents)],
                cluster=clusters[number * 2 % len(clusters)],
                kind=kind,
                verb=verb,
                resource=resource,
                namespace=text or ("shop", "search", "kube-system")[number % 3],
                name=text or name,
                client=f"198.51.100.{20 + number % 100}",
                relay=f"hawse-relay-{clusters[number * 2 % len(clusters)]}-{number % 2}",
                started_at=now - age - number,
                status=status,
                bytes_in=received,
                bytes_out=sent,
            )
        )
    return sorted(made, key=lambda call: call.started_at)
