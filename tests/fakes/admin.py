"""A bench for the admin API: its app over a real store, beside a fake trail and fake relays."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs
import trio
from starlette.applications import Starlette

from audit.errors import AuditUnavailable
from audit.record import Event, Phase
from auth.apikey import hash as hash_key
from auth.apikey import new_api_key
from proxy.hub.admin.simulation.job import Job, Outcome, Progress
from proxy.hub.admin.simulation.simulations import Simulations
from proxy.hub.admin.trail.service import TrailService
from proxy.hub.admin.verbs.verb import Endpoint
from proxy.hub.approvals.request import Request
from proxy.hub.home.keyring import KeyRing
from proxy.hub.membership.spread import Spread
from proxy.hub.relays.operations import CallsElsewhere, RelayInfo, SessionInfo
from proxy.hub.store.directory import Directory
from proxy.hub.store.roles import Role
from tests.fakes.asgi import Reply, call
from tests.fakes.requests import FakeRequests

PEPPER = b"p" * 32
TOKEN = new_api_key(b"t" * 32)


class FakeRecorder:
    """Keeps events; with `down` set it fails like a trail whose disk is full."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.down = False
        self.meanwhile: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint

    async def intent(self, event: Event) -> None:
        assert event.phase is Phase.INTENT
        await self.meanwhile()
        if self.down:
            raise AuditUnavailable("the disk is full")
        self.events.append(event)

    def complete(self, event: Event) -> None:
        assert event.phase is Phase.COMPLETE
        self.events.append(event)

    def keep(self, event: Event, settled: Callable[[], None]) -> None:
        self.complete(event)


class FakeOperations:
    def __init__(self) -> None:
        self.live: list[RelayInfo] = []
        self.others: list[RelayInfo] = []
        self.asked = 0

    def relays(self) -> Sequence[RelayInfo]:
        self.asked += 1
        return self.live

    async def elsewhere(self) -> Sequence[RelayInfo]:
        await trio.lowlevel.checkpoint()
        return self.others

    def instances(self) -> set[tuple[str, str]]:
        return {(relay.cluster, relay.instance) for relay in [*self.relays(), *self.others]}


class FakeSessions:
    def __init__(self) -> None:
        self.live: list[SessionInfo] = []
        self.killed: list[dict[str, str | None]] = []
        self.beside = 1

    async def sessions(
        self, *, agent: str | None = None, cluster: str | None = None
    ) -> Sequence[SessionInfo]:
        return [one for one in self.live if agent in (None, one.agent) and cluster in (None, one.cluster)]

    async def hubs_beside(self) -> int:
        await trio.lowlevel.checkpoint()
        return self.beside

    async def kill(
        self, *, session_id: str | None, agent: str | None, cluster: str | None, reason: str
    ) -> Sequence[SessionInfo]:
        await trio.lowlevel.checkpoint()
        self.killed.append({"id": session_id, "agent": agent, "cluster": cluster, "reason": reason})
        fitting = await self.sessions(agent=agent, cluster=cluster)
        return [one for one in fitting if session_id in (None, one.id)]


class FakeOtherHubs:
    """The other hubs: calls there, and hubs that do not answer."""

    def __init__(self) -> None:
        self.live: list[SessionInfo] = []
        self.silent: list[str] = []
        self.killed: list[dict[str, str | None]] = []

    async def sessions(self, *, agent: str | None = None, cluster: str | None = None) -> CallsElsewhere:
        await trio.lowlevel.checkpoint()
        fitting = [one for one in self.live if agent in (None, one.agent) and cluster in (None, one.cluster)]
        return CallsElsewhere(fitting, self.silent)

    async def kill(
        self, *, session_id: str | None, agent: str | None, cluster: str | None, reason: str
    ) -> CallsElsewhere:
        self.killed.append({"id": session_id, "agent": agent, "cluster": cluster, "reason": reason})
        fitting = (await self.sessions(agent=agent, cluster=cluster)).calls
        return CallsElsewhere([one for one in fitting if session_id in (None, one.id)], self.silent)


class FakeWork:
    """Runs simulations as long as a test wants: each waits for `go`, unless there is none."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.cancelled = 0
        self.go: trio.Event | None = None
        self.outcome = Outcome({"calls": 0})

    async def run(self, job: Job, tell: Callable[[Progress], None]) -> Outcome:
        self.jobs.append(job)
        tell(Progress(1, 2))
        try:
            if self.go is not None:
                await self.go.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        return self.outcome


WATCH = SessionInfo(
    id="0199a1b2-0000-7cc3-98c4-dc0c0c07398f",
    agent="sre-1",
    cluster="prod",
    kind="watch",
    verb="watch",
    resource="pods",
    namespace="dev",
    name="",
    client="192.0.2.7",
    relay="relay-1",
    started_at=1_800_000_000.0,
    status=200,
    bytes_in=0,
    bytes_out=4096,
)


@attrs.define
class Clock:
    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@attrs.define
class Bench:
    app: Starlette
    directory: Directory
    recorder: FakeRecorder
    operations: FakeOperations
    ring: KeyRing
    sessions: FakeSessions
    clock: Clock
    spread: Spread
    simulations: Simulations
    work: FakeWork
    trail: TrailService = attrs.Factory(TrailService.without_trail)
    requests: FakeRequests = attrs.Factory(FakeRequests)

    async def ask(
        self, method: str, target: str, body: object = None, *, token: str | None = TOKEN, **headers: str
    ) -> Reply:
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        chunks = [json.dumps(body).encode()] if body is not None else None
        reply = await call(self.app, method, target, headers=headers, chunks=chunks)
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-store"
        assert (reply.status >= 400) == (b'{"error":' in reply.body)
        return reply

    async def ok(self, method: str, target: str, body: object = None) -> Any:
        reply = await self.ask(method, target, body)
        assert reply.status in {200, 201, 202}, reply.body
        return reply.json


async def enrol(bench: Bench) -> dict[str, Any]:
    await bench.ok("POST", "/v1/teams", {"name": "sre"})
    cluster = await bench.ok(
        "POST", "/v1/clusters", {"name": "prod", "teams": ["sre"], "labels": {"env": "prod"}}
    )
    agent = await bench.ok("POST", "/v1/agents", {"name": "sre-1", "owner": "ada", "teams": ["sre"]})
    return {"cluster": cluster, "agent": agent}


def opened(bench: Bench, **more: Any) -> Request:
    """Open a request of the agent that `enrol` has made; `more` is for FakeRequests.add."""
    now = bench.directory.current
    agent, cluster = now.agents_by_name["sre-1"], now.clusters_by_name["prod"]
    return bench.requests.add(agent.id, cluster.id, **more)


def path_of(endpoint: Endpoint) -> str:
    """Return the path of an endpoint with names that the bench does not know."""
    return endpoint.path.format(name="x", team="y", id="z", other="v")


PERSON = "grace@example.com"
ROLE_TOKENS = {role: new_api_key(role.encode().ljust(32, b".")) for role in Role}


def person_of(role: Role) -> str:
    """Return the person of a token with this role; only an approver's has one."""
    return PERSON if role is Role.APPROVER else ""


async def give_each_role_a_token(bench: Bench) -> None:
    for role, token in ROLE_TOKENS.items():
        digest = hash_key(token, PEPPER)
        await bench.directory.change(
            lambda store, role=role, digest=digest: store.add_admin_token(
                f"a-{role}", digest, role=role, person=person_of(role)
            )
        )
