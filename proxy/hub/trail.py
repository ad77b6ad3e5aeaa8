"""What the hub writes into the audit trail: its own view of a request, turned into events."""

from __future__ import annotations

import time
from urllib.parse import unquote_to_bytes

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
    Relay,
    Request,
    Stream,
    text,
    utc,
)
from auth.impersonation import AGENT_ID_KEY, SESSION_KEY
from auth.principal import Principal
from auth.requestinfo import RequestInfo, parse_query
from auth.tokens import AccessClaims
from proxy.head import RequestHead
from proxy.hub.entities import Agent
from proxy.hub.entities import Cluster as EnrolledCluster

# The one policy there is: what is granted to a team may be used, and the cluster's RBAC decides the rest.
GRANTED = "granted"
_BEARER_QUERY = b"access_token"


def impersonated(principal: Principal, session: str | None = None) -> Impersonated:
    """As whom the API server sees a call; `session` is known once a relay was chosen for it."""
    extra = {AGENT_ID_KEY: (principal.agent_id,)}
    return Impersonated(
        principal.user, principal.groups, extra if session is None else {**extra, SESSION_KEY: (session,)}
    )


class Trail:
    """Builds the hub's events; the recorder stores them."""

    def __init__(self, org: str) -> None:
        self._org = org

    def call(
        self,
        *,
        head: RequestHead,
        target: bytes,
        client_ip: str,
        claims: AccessClaims,
        agent: Agent | None,
        cluster: EnrolledCluster | None,
        info: RequestInfo | None,
        decision: Decision,
        kind: Kind = Kind.CALL,
        phase: Phase = Phase.COMPLETE,
        note: str = "",
    ) -> Event:
        """The event of a call whose agent is known; its intent, or the whole of a read or a denial."""
        principal = claims.principal
        return Event(
            eid=new_eid(),
            kind=kind,
            phase=phase,
            ts=utc(time.time()),
            org=self._org,
            actor=Actor(
                ActorType.AGENT,
                principal.name,
                principal.agent_id,
                agent.owner if agent is not None else "",
                agent.teams if agent is not None else principal.teams,
                "access-token",
                claims.jti,
            ),
            client=_client(head, client_ip, cluster.mode if cluster is not None else ""),
            cluster=Cluster(cluster.id, cluster.name) if cluster is not None else Cluster("", claims.cluster),
            req=_request(head, target, info),
            # The directory's principal, as in the relay's token: the agent's own may name teams of before.
            impersonated=impersonated(agent.principal)
            if decision.effect == "allow" and agent is not None and agent.principal is not None
            else None,
            decision=decision,
            stream=_stream(head, info),
            note=note,
        )

    def stranger(self, kind: Kind, *, client_ip: str, note: str, head: RequestHead | None = None) -> Event:
        """The event of a request by nobody we know: failed authentication, or bytes that are no request."""
        return Event(
            eid=new_eid(),
            kind=kind,
            phase=Phase.COMPLETE,
            ts=utc(time.time()),
            org=self._org,
            actor=Actor(ActorType.ANONYMOUS),
            client=_client(head, client_ip, "") if head is not None else Client(client_ip),
            req=_request(head, head.target, None) if head is not None else None,
            note=note,
        )

    def relay(
        self,
        kind: Kind,
        *,
        cluster: EnrolledCluster,
        instance: str,
        version: str,
        address: str,
        note: str = "",
    ) -> Event:
        """The event of a relay that came or went."""
        return Event(
            eid=new_eid(),
            kind=kind,
            phase=Phase.COMPLETE,
            ts=utc(time.time()),
            org=self._org,
            actor=Actor(ActorType.RELAY, instance),
            client=Client(address),
            cluster=Cluster(cluster.id, cluster.name),
            relay=Relay(instance, version),
            note=note,
        )

    def hub(self, kind: Kind, note: str = "") -> Event:
        """The event of something the hub itself did."""
        return Event(
            eid=new_eid(),
            kind=kind,
            phase=Phase.COMPLETE,
            ts=utc(time.time()),
            org=self._org,
            actor=Actor(ActorType.HUB),
            note=note,
        )


def _client(head: RequestHead, client_ip: str, mode: str) -> Client:
    return Client(client_ip, text(head.header(b"user-agent") or b""), mode)


def _request(head: RequestHead, target: bytes, info: RequestInfo | None) -> Request:
    raw_target = text(without_bearer(target))
    if info is None:
        return Request(text(head.method), raw_target)
    return Request(
        text(head.method),
        raw_target,
        info.verb,
        info.group,
        info.version,
        info.resource,
        info.subresource,
        info.namespace,
        info.name,
        info.dry_run,
    )


def without_bearer(target: bytes) -> bytes:
    """The target without the value of an `access_token` parameter: a credential never reaches a record."""
    path, mark, query = target.partition(b"?")
    if b"token" not in query and b"%" not in query:
        return target
    pairs = query.split(b"&")
    for number, pair in enumerate(pairs):
        key = pair.partition(b"=")[0]
        if unquote_to_bytes(key).lower() == _BEARER_QUERY:
            pairs[number] = key + b"=***"
    return path + mark + b"&".join(pairs)


def _stream(head: RequestHead, info: RequestInfo | None) -> Stream | None:
    """What a long-running call is, as far as its request tells; None for an ordinary one."""
    upgrade = head.upgrade
    if info is None or (upgrade is None and not info.long_running):
        return None
    proto = "http" if upgrade is None else text(upgrade).lower()
    if info.subresource not in {"exec", "attach"}:
        return Stream(proto)
    query = parse_query(info.query)
    return Stream(
        proto,
        tuple(query.get("command", ())),
        query.get("container", [""])[0],
        query.get("tty", ["false"])[0] == "true",
    )
