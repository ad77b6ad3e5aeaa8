"""What a read call costs the hub and the relay beside forwarding: `python -m benchmarks.units.calls`.

A granted GET by kubectl in tunnel mode, its token seen before. The last figure is the whole of `Calls.handle`
with a stream that answers at once and a client that takes everything, so it has `forward` in it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import cast

import attrs
import trio
from prometheus_client import CollectorRegistry

import proxy.hub.calls.calls as calls_module
from audit.record import Event
from audit.record import Relay as RecordedRelay
from audit.recorder import Recorder
from auth.impersonation import impersonation_headers
from auth.key_rotation import TrustedKeys
from auth.keys import KeySet, SigningKey
from auth.policy.bundled import first_sources
from auth.policy.conditions import CelConditions
from auth.policy.match import compile_bundle
from auth.principal import Principal
from auth.requestinfo import parse
from auth.tokens import issue_access, issue_relay
from benchmarks.units.timing import RUNS, measure, report
from proxy.exchange.forward import CloseReason, Outcome
from proxy.exchange.server import ServerConnection
from proxy.hub.authorize.access import AccessTokens, bearer, decide
from proxy.hub.authorize.admission import Call, Caller, parse_request
from proxy.hub.authorize.decisions import Verdict, judge
from proxy.hub.authorize.events import Trail, impersonated
from proxy.hub.calls.calls import Calls, _closing
from proxy.hub.calls.live import LiveCall
from proxy.hub.calls.metrics import CallMetrics
from proxy.hub.calls.quick import QuickCall, begin
from proxy.hub.home.config import HubConfig, LimitsConfig
from proxy.hub.relays.contexts import TokenContexts
from proxy.hub.relays.direct import DirectRelays
from proxy.hub.relays.registry import LiveRelay, Registry
from proxy.hub.store.directory import Directory
from proxy.hub.store.entities import Agent, AgentState, Cluster, Mode, Snapshot
from proxy.message.head import RequestHead, ResponseHead
from proxy.relay.verify import Verifier
from tunnel import Context, Session
from tunnel.protocol.schedule import Group
from tunnel.protocol.streams import StreamState

AGENT_ID = "0199a1b2-79b0-7cc3-98c4-dc0c0c07398f"
ISSUER = "https://hub.example"
TARGET = b"/api/v1/namespaces/app-%d/pods?limit=500"
TARGETS = 64
ANSWER = (
    b"HTTP/1.1 200 OK\r\naudit-id: 0199a1b2-79b0-7cc3-98c4-dc0c0c07398f\r\n"
    b"cache-control: no-cache, private\r\ncontent-type: application/json\r\n"
    b"date: Fri, 15 Jan 2027 08:00:00 GMT\r\ncontent-length: 2048\r\n\r\n"
)
DONE = Outcome(200, 0, 2048, CloseReason.COMPLETE, None, False)


class Case:
    """A hub with one agent and one cluster, and a request of kubectl's; nothing of it waits."""

    def __init__(self) -> None:
        key = SigningKey.generate()
        self.key = key
        self.principal = Principal(
            "0199a1b2-79b0-7cc3-98c4-dc0c0c07398f", "robot-1", "acme", ("platform", "sre")
        )
        agent = Agent(
            id=self.principal.agent_id,
            name=self.principal.name,
            owner="ann@example.com",
            state=AgentState.ACTIVE,
            teams=self.principal.teams,
            team_ids=frozenset({"t1", "t2"}),
            created_at=0.0,
            last_used_at=None,
            principal=self.principal,
        )
        cluster = Cluster(
            id="0199a1b3-1111-7cc3-98c4-dc0c0c07398f",
            name="prod",
            labels={},
            teams=("sre",),
            team_ids=frozenset({"t2"}),
            mode=Mode.TUNNEL,
            relay_keys=(),
            relay_url=None,
            relay_ca_pem=None,
            relay_address_private=False,
            created_at=0.0,
        )
        self.agent, self.cluster = agent, cluster
        self.snapshot = Snapshot(
            org="acme",
            teams_by_name={},
            agents_by_id={agent.id: agent},
            agents_by_name={agent.name: agent},
            clusters_by_id={cluster.id: cluster},
            clusters_by_name={cluster.name: cluster},
            api_keys_by_hash={},
            agent_keys_by_kid={},
            codes_by_hash={},
            issuers_by_url={},
            rules_by_issuer={},
            admin_tokens_by_hash={},
            credentials={"sid-1": agent.id},
            bundle=compile_bundle(first_sources(), CelConditions(time.thread_time), version=1),
        )
        self.now = time.time()
        self.token = issue_access(
            key,
            issuer=ISSUER,
            principal=self.principal,
            cluster="prod",
            sid="sid-1",
            jti="jti-1",
            now=self.now,
        ).encode()
        self.tokens = AccessTokens(lambda: KeySet([key.public]), issuer=ISSUER, org="acme")
        self.targets = [TARGET % number for number in range(TARGETS)]
        self.heads = [
            RequestHead.of(
                b"GET",
                b"/clusters/prod" + target,
                (
                    (b"host", b"hub.example"),
                    (b"user-agent", b"kubectl/v1.37.0 (linux/amd64) kubernetes/8f1cd3a"),
                    (b"accept", b"application/json;as=Table;v=v1;g=meta.k8s.io,application/json"),
                    (b"authorization", b"Bearer " + self.token),
                    (b"accept-encoding", b"gzip"),
                ),
            )
            for target in self.targets
        ]
        self._turn = itertools.cycle(range(TARGETS))
        self.claims = self.tokens.verify(self.token, "prod", self.now)
        self.trail = Trail("acme")
        self.verdict = self.judged(0)
        self.relay = RecordedRelay("relay-7d9f-1", "hawse/0.1.0")

    def judged(self, turn: int) -> Verdict:
        """What the policies say of one of the requests."""
        info = parse(b"GET", self.targets[turn % TARGETS])
        return judge(self.snapshot.bundle, self.agent, self.cluster, info, self.now)

    def closing_event(self) -> Event:
        """One more call's event, as `Calls` makes it."""
        turn = next(self._turn)
        head, target = self.heads[turn], self.targets[turn]
        info = parse(b"GET", target)
        parsed = parse_request(b"GET", b"/clusters/prod" + target)
        opening = self.trail.call(
            head=head,
            parsed=parsed,
            client_ip="192.0.2.7",
            claims=self.claims,
            agent=self.agent,
            cluster=self.cluster,
            decision=self.verdict.recorded,
        )
        caller = Caller("prod", self.snapshot, self.claims, self.agent, self.cluster, None)
        call = Call(head, parsed, info, caller, self.agent, self.cluster, "192.0.2.7", self.verdict)
        live = LiveCall(call, opening.eid, cast(ServerConnection, None), self.now)
        live.relay = self.relay
        live.impersonated = impersonated(self.principal, "session-1")
        return _closing(live, opening, DONE, 1.25)


class TakesAll:
    """A recorder that keeps nothing, and a client that takes any answer."""

    healthy = True

    def complete(self, event: Event) -> None:
        pass

    def answer_nowait(self, head: ResponseHead, body: bytes) -> bool:
        return True


class StubStream:
    """A stream whose answer is complete when a callback is registered."""

    def on_answer(self, tell: Callable[[], None]) -> None:
        self.tell = tell

    def peek_whole_answer(self) -> tuple[bytes, int]:
        return ANSWER, 2048

    def take_whole_answer(self) -> bytes:
        return bytes(2048)


class StubSession:
    """A session whose streams are not read."""

    session_id = "session-1"
    may_open = True
    detaches = interruptions = 0
    stream_count = 0

    def add_context(self, group: int, payload: bytes) -> int:
        return 1

    def open_stream(self, head: bytes, *, context: int, eof: bool = False) -> StubStream:
        return StubStream()


class StubOutbound:
    def __init__(self, stream: object, request: RequestHead) -> None:
        pass

    async def aclose(self) -> None:
        pass


async def stub_forward(*_: object, **__: object) -> Outcome:
    return DONE


async def handle(case: Case, nursery: trio.Nursery) -> None:
    """Measure `Calls.handle` without `forward`, the recorder and the metrics."""
    vars(calls_module).update(forward=stub_forward, TunnelOutbound=StubOutbound)
    session = cast(Session, StubSession())
    registry = Registry()
    directory = cast(Directory, StubDirectory(case.snapshot))
    calls = Calls(
        config=HubConfig(org="acme", public_url=ISSUER, limits=LimitsConfig(requests_per_second=0)),
        directory=directory,
        tokens=case.tokens,
        registry=registry,
        direct=cast(DirectRelays, None),
        recorder=cast(Recorder, TakesAll()),
        trail=case.trail,
        observe=lambda event: None,
    )
    contexts = TokenContexts(session, lambda principal: "token", tuple)
    relay = LiveRelay(
        case.cluster.id, "prod", "relay-7d9f-1", "boot", "hawse/0.1.0", "192.0.2.9", 0.0, session, contexts
    )
    connection = cast(ServerConnection, TakesAll())
    number = 2000
    runs = []
    with registry.registered(relay):
        for _ in range(RUNS):
            began_s = time.process_time()
            for turn in range(number):
                await calls.handle(
                    connection, case.heads[turn % TARGETS], "192.0.2.7", authenticated=lambda _: None
                )
            runs.append((time.process_time() - began_s) * 1e6 / number)
        report("(g) Calls.handle but forward, recorder, metrics", runs)
        runs = []
        for _ in range(RUNS):
            began_s = time.process_time()
            for turn in range(number):
                live = begin(calls, "192.0.2.7", connection, case.heads[turn % TARGETS])
                assert isinstance(live, QuickCall)
                cast(StubStream, live.opened.stream).tell()
            runs.append((time.process_time() - began_s) * 1e6 / number)
        report("(g) the same without a task, its answer's head included", runs)


@attrs.frozen
class StubDirectory:
    current: Snapshot


def relay_side(case: Case) -> None:
    token = issue_relay(
        case.key,
        issuer=ISSUER,
        cluster_id=case.cluster.id,
        principal=case.principal,
        session="session-1",
        jti="jti-2",
        now=case.now,
    )
    verifier = Verifier(TrustedKeys(KeySet([case.key.public]), ISSUER), ISSUER, case.cluster.id, time.time)
    context = Context(1, 1, token.encode(), share=cast(Group[StreamState], None))
    claims = verifier.of_context(context)
    measure("(h) relay: Verifier.of_context, warm", lambda: verifier.of_context(context))
    measure(
        "(h) relay: impersonation_headers, once a token",
        lambda: impersonation_headers(claims.user, claims.groups, claims.extra),
    )


async def main() -> None:
    case = Case()
    head = case.heads[0]
    measure("(a) bearer", lambda: bearer(head))
    measure("(a) verify, warm", lambda: case.tokens.verify(case.token, "prod", case.now))
    measure("(a) decide", lambda: decide(case.snapshot, case.claims, "prod"))
    turns = itertools.cycle(range(TARGETS))
    measure("(a) judge by the policies, and parse, repeated", lambda: case.judged(next(turns)))
    # Another one each time, also to a cache: its bound is far below these.
    new = iter([TARGET % number for number in range(100, 60_100)])
    measure("(b) requestinfo.parse, each target new", lambda: parse(b"GET", next(new)))
    same = itertools.cycle(case.targets)
    measure("(b) requestinfo.parse, repeated", lambda: parse(b"GET", next(same)))
    measure("(c) building the closing event", case.closing_event)
    closing = case.closing_event()
    metrics = CallMetrics(CollectorRegistry())
    measure("(f) CallMetrics.observe", lambda: metrics.observe(closing))
    async with trio.open_nursery() as nursery:
        await handle(case, nursery)
    relay_side(case)


if __name__ == "__main__":
    trio.run(main)
