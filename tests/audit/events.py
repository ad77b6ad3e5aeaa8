"""Sample events."""

from __future__ import annotations

from msgspec.structs import replace

from audit.ids import new_eid
from audit.record import (
    Actor,
    ActorType,
    Client,
    Cluster,
    Decision,
    Event,
    Impersonated,
    Kind,
    Phase,
    Request,
    Response,
    utc,
)

NOW_S = 1_790_000_000.0
# C42: characters that must not reach a terminal.
HOSTILE = "\x1b]0;owned\x07 \x1b[2J \r\n \x9b31m \u202egnp.exe \u2066x \u200bz\x7f\u0301 \U000e0041 שלום"


def call(
    *,
    agent: str = "robot",
    cluster: str = "prod",
    target: str = "/api/v1/namespaces/app/pods/web",
    phase: Phase = Phase.INTENT,
    at_s: float = NOW_S,
) -> Event:
    return Event(
        eid=new_eid(),
        kind=Kind.CALL,
        phase=phase,
        ts=utc(at_s),
        org="acme",
        actor=Actor(ActorType.AGENT, agent, id="a-1", owner="ann", teams=("sre",), credential="key-1"),
        client=Client("10.0.0.9", "kubectl/v1.37.0"),
        cluster=Cluster("c-1", cluster),
        req=Request("DELETE", target, "delete", "", "v1", "pods", "", "app", "web"),
        impersonated=Impersonated(f"agent:{agent}", ("acme/sre",), {"hawse.dev/agent": ("a-1",)}),
        decision=Decision("allow", "all", "granted"),
        resp=Response(200, "OK", 120, 3.5, "yes") if phase is Phase.COMPLETE else None,
    )


def failure(*, ip: str = "10.0.0.9", note: str = "the token has expired", at_s: float = NOW_S) -> Event:
    return Event(
        eid=new_eid(),
        kind=Kind.AUTH_FAILED,
        phase=Phase.COMPLETE,
        ts=utc(at_s),
        actor=Actor(ActorType.ANONYMOUS),
        client=Client(ip),
        resp=Response(401, "Unauthorized"),
        note=note,
    )


def with_user_agent(event: Event, user_agent: str) -> Event:
    return replace(event, client=Client("10.0.0.9", user_agent))
