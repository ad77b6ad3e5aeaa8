"""A made-up trail for the pages: events of every kind, the same each time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from random import Random

import attrs
import msgspec

from audit.ids import uuid7
from audit.record import (
    Actor,
    ActorType,
    Approval,
    Client,
    Cluster,
    Decision,
    Event,
    Impersonated,
    Kind,
    Phase,
    Relay,
    Request,
    Response,
    Stream,
    Tunnel,
    utc,
)
from audit.store import AuditStore
from tests.console.names import AGENTS, CLUSTERS, HOSTILE

BUNDLE = "3-0cb4271b433ad5bf"
KUBECTL = "kubectl/v1.37.0 (linux/amd64) kubernetes/4f2a1c9"
# Texts of clients that only the trail has.
HOSTILE_TEXTS = (
    *HOSTILE,
    "</textarea></template></script>",
    "a" * 3000,
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e2\u05d1\u05e8\u05d9\u05ea",
)


@attrs.frozen
class _Asked:
    """A request, with its answer."""

    verb: str
    resource: str
    group: str = ""
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    status: int = 200
    ms: float = 9.0
    rule: str = "granted"
    policy: str = "granted"
    reason: str = ""
    stream: Stream | None = None
    tunnel: Tunnel | None = None
    processed: str = "yes"

    @property
    def method(self) -> str:
        methods = {"create": "POST", "patch": "PATCH", "update": "PUT", "delete": "DELETE"}
        return "GET" if self.subresource in {"exec", "portforward"} else methods.get(self.verb, "GET")

    @property
    def target(self) -> str:
        base = f"/apis/{self.group}/v1" if self.group else "/api/v1"
        parts = [f"/namespaces/{self.namespace}" if self.namespace else "", f"/{self.resource}"]
        parts += [f"/{part}" for part in (self.name, self.subresource) if part]
        query = ""
        if self.verb == "watch":
            query = "?allowWatchBookmarks=true&watch=true"
        elif self.subresource == "exec":
            query = "?container=app&stdin=true&stdout=true&tty=true&command=sh"
        elif self.verb == "list":
            query = "?limit=500"
        return f"{base}{''.join(parts)}{query}"


_EXEC = Stream("v5.channel.k8s.io", ("sh", "-c", "tail -n 50 /var/log/app.log"), "app", True, 2311, 48211)
_WATCH = Stream("http", bytes_out=1_220_113, close_reason="client gone")
_LOG = Stream("http", container="app", bytes_out=18_400_221, close_reason="client gone")
_CALLS: Sequence[_Asked] = (
    _Asked("list", "pods", namespace="shop", ms=8.2),
    _Asked("get", "deployments", "apps", "shop", "checkout", ms=6.1),
    _Asked("watch", "deployments", "apps", "shop", ms=4_210_000, stream=_WATCH),
    _Asked("patch", "deployments", "apps", "shop", "checkout", ms=41.0, rule="deploy", policy="sre-prod"),
    _Asked("list", "events", namespace="shop", ms=23.4),
    _Asked("get", "pods", namespace="search", name="search-indexer-0", ms=5.5),
    _Asked("get", "pods", namespace="search", name="search-indexer-0", subresource="log", ms=610_000,
           stream=_LOG),
    _Asked("delete", "pods", namespace="kube-system", name="coredns-7c65d6cfc9-mq2vx", status=403, ms=0.2,
           rule="no-kill", policy="sre-prod", processed="no"),
    _Asked("get", "pods", namespace="shop", name="checkout-7d9c5b6f4-x2k9p", subresource="exec", status=101,
           ms=45_200, rule="exec", policy="sre-prod", stream=_EXEC),
    _Asked("list", "secrets", namespace="payments", status=403, ms=0.1, rule="secrets", policy="guard",
           processed="no"),
    _Asked("get", "configmaps", namespace="shop", name="feature-flags", ms=7.0),
    _Asked("list", "nodes", status=403, ms=11.0,
           reason="nodes is forbidden: User \"hawse:rightsizer\" cannot list resource \"nodes\""),
    _Asked("get", "jobs", "batch", "data", "backfill-2026-11-30", status=404, ms=6.4, reason="not found"),
    _Asked("create", "jobs", "batch", "data", ms=35.0, rule="jobs", policy="data-team", status=201),
    _Asked("list", "pods", namespace="data", status=503, ms=5_002.0,
           reason="cluster \"edge-lisbon\" is offline: no relay of it is connected", processed="no"),
    _Asked("update", "deployments", "apps", "search", "search-api", "scale", ms=18.8, rule="deploy",
           policy="sre-prod"),
    _Asked("get", "pods", namespace="data", name="postgres-0", subresource="portforward", status=101,
           ms=903_000, stream=Stream("spdy/3.1", bytes_in=88_211, bytes_out=91_002),
           tunnel=Tunnel(2, 4_210.0, 17)),
    _Asked("list", "ingresses", "networking.k8s.io", ms=14.2),
)  # fmt: skip


def made_up_events(
    now: float, count: int = 300, *, hostile: bool = False, seed: int = 7, within_s: float = 30_000
) -> list[Event]:
    """Return so many events up to now, the oldest first."""
    random = Random(seed)
    ages = sorted((random.random() ** 2 * within_s for _ in range(count)), reverse=True)
    events: list[Event] = []
    for number, age in enumerate(ages):
        if number % 12 == 7:
            events.append(_of_the_hub(random, number, now - age))
        else:
            events += _call(random, number, now - age, hostile=hostile)
    return sorted(events[-count:], key=lambda event: event.ts)


def write_trail(folder: Path, events: Sequence[Event]) -> None:
    """Append events to the trail of the bench in this folder."""
    with closing(AuditStore(folder / "audit.db")) as store:
        store.append(events)


def _eid(random: Random, at: float) -> str:
    return uuid7(int(at * 1000), random.randbytes(10))


def _call(random: Random, number: int, at: float, *, hostile: bool) -> list[Event]:
    asked = _CALLS[number * 5 % len(_CALLS)]
    agent, cluster = AGENTS[number * 3 % len(AGENTS)], CLUSTERS[number * 2 % len(CLUSTERS)]
    text = HOSTILE_TEXTS[number % len(HOSTILE_TEXTS)] if hostile else ""
    if hostile:
        asked = attrs.evolve(asked, name=text, namespace=text if number % 3 else asked.namespace)
        if asked.stream is not None and asked.stream.command:
            asked = attrs.evolve(asked, stream=Stream("v5.channel.k8s.io", HOSTILE_TEXTS, text, True, 1, 2))
    denied = asked.policy in {"guard", "sre-prod"} and asked.status == 403
    offline = asked.status == 503
    cluster = "edge-lisbon" if offline else cluster
    agent_id = f"a-{number * 3 % len(AGENTS):04d}"
    begun = Event(
        eid=_eid(random, at),
        kind=Kind.CALL,
        phase=Phase.INTENT,
        ts=utc(at),
        org="main",
        actor=Actor(
            ActorType.AGENT, agent, agent_id, "ada@example.com", ("platform", "sre"), "access-token",
            f"jti-{number:06d}",
        ),
        client=Client(f"198.51.100.{20 + number % 100}", text or KUBECTL, "tunnel", text),
        cluster=Cluster(f"c-{number % 5}", cluster),
        req=Request(
            asked.method, asked.target, asked.verb, asked.group, "v1", asked.resource, asked.subresource,
            asked.namespace, asked.name, body_bytes=412 if asked.method in {"POST", "PATCH", "PUT"} else None,
        ),
        impersonated=None if denied else Impersonated(
            f"hawse:{agent}", ("hawse:team:platform", "hawse:team:sre"), {"hawse.dev/agent-id": (agent_id,)}
        ),
        decision=Decision("deny" if denied else "allow", asked.rule, asked.policy, BUNDLE),
        stream=asked.stream,
        approval=Approval(text, text, text) if text else None,
        serves=text,
    )  # fmt: skip
    done = begun.completed(
        utc(at + 0.001 * min(asked.ms, 1000)),
        resp=Response(
            asked.status,
            text or asked.reason,
            412 if denied else 18_211,
            None if denied or offline else asked.ms * 0.86,
            asked.processed,
        ),
        stream=asked.stream,
        tunnel=asked.tunnel,
        relay=None if denied or offline else Relay(f"hawse-relay-{cluster}-{number % 2}", "0.1.0"),
        dur_ms=asked.ms,
    )
    if number % 41 == 40:
        return [begun]
    writes = asked.method != "GET" or asked.subresource in {"exec", "portforward"}
    if number % 53 == 52:
        return [begun, _unknown(begun)]
    rows = [begun, done] if writes and not denied else [done]
    return [_issued(random, begun, at - 4), *rows] if number % 9 == 0 else rows


def _issued(random: Random, call: Event, at: float) -> Event:
    """Return the event of the token that a call came with."""
    return msgspec.structs.replace(
        call,
        eid=_eid(random, at),
        kind=Kind.TOKEN_ISSUED,
        phase=Phase.COMPLETE,
        ts=utc(at),
        actor=msgspec.structs.replace(call.actor, credential="federation:github-deploys"),
        req=Request("POST", "/oauth/token"),
        impersonated=None,
        decision=Decision("allow"),
        resp=Response(200),
        stream=None,
    )


def _unknown(begun: Event) -> Event:
    return msgspec.structs.replace(begun, phase=Phase.UNKNOWN, ts=begun.ts + timedelta(seconds=40))


def _of_the_hub(random: Random, number: int, at: float) -> Event:
    operator = Actor(ActorType.OPERATOR, "local:ada", credential="admin-token")
    relay = Actor(ActorType.RELAY, "hawse-relay-prod-eu-1-0")
    anonymous = Actor(ActorType.ANONYMOUS)
    triage = Actor(ActorType.AGENT, "triage")
    kill = Request(verb="kill", resource="sessions")
    admin = Request(verb="grant", resource="clusters")
    flood = Request("GET", "/clusters/prod-eu-1/api/v1/pods")
    made = [
        (Kind.ADMIN, operator, admin, "cluster=staging team=search", 1, None),
        (Kind.AUTH_FAILED, anonymous, flood, "no valid access token", 37, "203.0.113.9"),
        (Kind.RELAY_CONNECTED, relay, None, "tunnel to prod-eu-1, version 0.1.0", 1, "192.0.2.10"),
        (Kind.HUB_STARTED, Actor(ActorType.HUB), None, "version 0.1.0, 5 clusters", 1, None),
        (Kind.RELAY_DISCONNECTED, relay, None, "the connection ended: reset by peer", 1, "192.0.2.10"),
        (Kind.AUDIT_READ, operator, None, "audit list agent=deploy-bot since=2h", 1, None),
        (Kind.SESSION_KILLED, operator, kill, "agent=triage killed=2", 1, None),
        (Kind.KEY_REGISTERED, triage, None, "key sha256:4f2a1c9", 1, "198.51.100.77"),
    ]  # fmt: skip
    kind, actor, req, note, count, ip = made[number // 12 % len(made)]
    return Event(
        eid=_eid(random, at),
        kind=kind,
        phase=Phase.COMPLETE,
        ts=utc(at),
        org="main",
        actor=actor,
        dur_ms=3.0 if req is not None and kind is Kind.ADMIN else None,
        client=Client(ip) if ip is not None else None,
        req=req,
        resp=Response(200) if kind is Kind.ADMIN else None,
        count=count,
        note=note,
    )
