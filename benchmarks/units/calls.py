"""What a read call costs the hub and the relay beside forwarding: `python -m benchmarks.units.calls`.

A granted GET by kubectl in tunnel mode, with a token that was seen before.
"""

from __future__ import annotations

import itertools
import time
from typing import cast

from prometheus_client import CollectorRegistry

from audit.record import Event
from audit.record import Relay as RecordedRelay
from auth.impersonation import impersonation_headers
from auth.key_rotation import TrustedKeys
from auth.keys import KeySet, SigningKey
from auth.policy.bundled import first_sources
from auth.policy.conditions import CelConditions
from auth.policy.match import compile_bundle
from auth.principal import Principal
from auth.requestinfo import parse
from auth.tokens import issue_access, issue_relay
from benchmarks.units.timing import measure
from proxy.exchange.server import ServerConnection
from proxy.hub.admin.metrics.calls import CallMetrics
from proxy.hub.authorize.access import AccessTokens, bearer, decide
from proxy.hub.authorize.admission import Call, Caller, parse_request
from proxy.hub.authorize.decisions import Verdict, judge
from proxy.hub.authorize.events import Trail, impersonated
from proxy.hub.calls.closing import closing_event
from proxy.hub.calls.live import LiveCall
from proxy.hub.calls.outcome import CloseReason, Outcome
from proxy.hub.store.entities import Agent, AgentState, Cluster, Mode, Snapshot
from proxy.hub.store.versions.version import Version
from proxy.message.head import RequestHead
from proxy.relay.verify import Verifier
from tunnel import Context
from tunnel.protocol.schedule import Group
from tunnel.protocol.streams import StreamState

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
            version=Version(1, ""),
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
        live = LiveCall(call, opening.eid, cast(ServerConnection, None), self.now, time.monotonic())
        live.relay = self.relay
        live.impersonated = impersonated(self.principal, "session-1")
        return closing_event(live, opening, DONE, 1.25)


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
    measure("(g) relay: Verifier.of_context, warm", lambda: verifier.of_context(context))
    measure(
        "(g) relay: impersonation_headers, once a token",
        lambda: impersonation_headers(claims.user, claims.groups, claims.extra),
    )


def main() -> None:
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
    relay_side(case)


if __name__ == "__main__":
    main()
