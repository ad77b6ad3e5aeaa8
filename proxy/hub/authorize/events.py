"""Builds the hub's audit events from requests.

Most of a call's event repeats from call to call: the agent, the cluster, the client, and for an agent that
polls the request too. These sections are frozen, so they are built once and shared by the events. The caches
are bounded by number and by size, and no entry outlives a change of the directory that it depends on.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256

import attrs
from msgspec.structs import replace

from audit.bounds import (
    ARGV_ITEMS_MAX,
    EXCERPT_CHARACTERS_MAX,
    NAME_CHARACTERS_MAX,
    READ_QUERY_CHARACTERS_MAX,
    TARGET_CHARACTERS_MAX,
)
from audit.events import new_event
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
    proto_of,
    text,
)
from auth.impersonation import AGENT_ID_KEY, SESSION_KEY
from auth.principal import Principal
from auth.requestinfo import RequestInfo, decode_value, first_values, raw_values
from auth.tokens import AccessClaims
from proxy.hub.authorize.access import TOKENS_REMEMBERED_MAX
from proxy.hub.authorize.admission import AuditView, Call, ParsedRequest
from proxy.hub.store.entities import Agent
from proxy.hub.store.entities import Cluster as EnrolledCluster
from proxy.message.head import RequestHead
from proxy.message.rewrite import ACCESS_TOKEN_NAME

# The rule named when the cluster owner's guardrails at the relay deny a call that the hub allows.
GUARDRAILS = "relay-guardrails"
# A pattern, not a parser: decoding the names of 350,000 parameters, which fit into one head, takes a third of
# a second.
_BEARER_PARAMETER = re.compile(rb"(&%b)(?:=[^&]*+)?+(?=&|\Z)" % ACCESS_TOKEN_NAME, re.IGNORECASE)
# Distinct clients, by address and user agent, and the bytes of a user agent: 2 MiB at most.
_CLIENTS_REMEMBERED_MAX = 4096
_USER_AGENT_BYTES_MAX = 256
# More than a record keeps in any encoding. Decoding invalid UTF-8 is expensive.
_USER_AGENT_BYTES_SHOWN = 4 * NAME_CHARACTERS_MAX
# Replaces the part of a target that is not scanned: a mark that no target contains, and a SHA-256 in hex.
_REST_CHARACTERS_MAX = 65
# The part of such a target that is scanned.
_SEEN_CHARACTERS_MAX = TARGET_CHARACTERS_MAX - _REST_CHARACTERS_MAX


def impersonated(principal: Principal, session: str | None = None) -> Impersonated:
    """The identity that the API server sees; `session` is known once a relay was chosen for the call."""
    extra = {AGENT_ID_KEY: (principal.agent_id,)}
    return Impersonated(
        principal.user, principal.groups, extra if session is None else {**extra, SESSION_KEY: (session,)}
    )


@attrs.define(eq=False)
class _Party:
    """The sections of an event that follow from one token."""

    claims: AccessClaims
    agent: Agent | None
    enrolled: EnrolledCluster | None
    actor: Actor
    cluster: Cluster
    mode: str
    impersonated: Impersonated | None
    """None when the agent is unknown, or has no team."""


class Trail:
    """Builds the hub's events; the recorder stores them."""

    def __init__(self, org: str) -> None:
        self._org = org
        # By the token's id; as many as the cache of verified tokens holds.
        self._parties: dict[str, _Party] = {}

    def _party(self, claims: AccessClaims, agent: Agent | None, cluster: EnrolledCluster | None) -> _Party:
        party = self._parties.get(claims.jti)
        if (
            party is not None
            and party.agent is agent
            and party.enrolled is cluster
            and party.claims is claims
        ):
            return party
        principal = claims.principal
        party = _Party(
            claims,
            agent,
            cluster,
            Actor(
                ActorType.AGENT,
                principal.name,
                principal.agent_id,
                agent.owner if agent is not None else "",
                agent.teams if agent is not None else principal.teams,
                "access-token",
                claims.jti,
            ),
            Cluster(cluster.id, cluster.name) if cluster is not None else Cluster("", claims.cluster or ""),
            cluster.mode.value if cluster is not None else "",
            # The directory's principal, as in the relay's token. The principal in the agent's token may have
            # old teams.
            impersonated(agent.principal) if agent is not None and agent.principal is not None else None,
        )
        self._parties.pop(claims.jti, None)
        if len(self._parties) >= TOKENS_REMEMBERED_MAX:
            del self._parties[next(iter(self._parties))]
        self._parties[claims.jti] = party
        return party

    def call(
        self,
        *,
        head: RequestHead,
        parsed: ParsedRequest,
        client_ip: str,
        claims: AccessClaims,
        agent: Agent | None,
        cluster: EnrolledCluster | None,
        decision: Decision,
        kind: Kind = Kind.CALL,
        phase: Phase = Phase.COMPLETE,
        note: str = "",
        eid: str = "",
        began_at: float | None = None,
        undecided: bool = False,
        approval: Approval | None = None,
        serves: str = "",
        claimed_reason: str = "",
    ) -> Event:
        """The event of a known agent's call: its intent, or the whole of a read or a denial.

        `eid` and `began_at` (epoch seconds) are given for an open call, whose id is already recorded. A call
        that a limit refuses (`undecided`) has an excerpt of its target.
        """
        party = self._party(claims, agent, cluster)
        return new_event(
            kind,
            party.actor,
            org=self._org,
            at=began_at,
            eid=eid,
            phase=phase,
            client=_client(head, client_ip, party.mode, claimed_reason),
            cluster=party.cluster,
            req=parsed.audit_view or _audit_view(head, parsed, undecided=undecided),
            impersonated=party.impersonated if decision.effect == "allow" else None,
            decision=decision,
            stream=stream_of(head, parsed.info, undecided=undecided),
            approval=approval,
            serves=serves,
            note=note,
        )

    def read(
        self,
        call: Call,
        eid: str,
        relay: Relay,
        impersonated: Impersonated,
        resp: Response,
        took_ms: float,
        tunnel: Tunnel | None,
    ) -> Event:
        """The one event of an allowed read that has ended, and was no stream."""
        caller, parsed = call.caller, call.parsed
        # The headers belong to one connection, so this view of them is cached with them.
        view = caller.audit_view
        if view is None:
            party = self._party(caller.claims, call.agent, call.cluster)
            client = _client(call.head, call.client_ip, party.mode, caller.claimed_reason)
            caller.audit_view = view = AuditView(party.actor, party.cluster, client)
        # Not by new_event: most events are of small reads, and a call costs as much as the rest.
        return Event(
            eid=eid,
            kind=Kind.CALL,
            phase=Phase.COMPLETE,
            ts=datetime.now(UTC),
            org=self._org,
            actor=view.actor,
            dur_ms=took_ms,
            client=view.client,
            cluster=view.cluster,
            relay=relay,
            req=parsed.audit_view or _audit_view(call.head, parsed),
            impersonated=impersonated,
            decision=call.verdict.recorded,
            resp=resp,
            tunnel=tunnel,
        )

    def unauthenticated(
        self, kind: Kind, *, client_ip: str, note: str, head: RequestHead | None = None
    ) -> Event:
        """The event of an unauthenticated request: failed authentication, or bytes that are no HTTP."""
        return new_event(
            kind,
            Actor(ActorType.ANONYMOUS),
            org=self._org,
            client=_client(head, client_ip, "") if head is not None else Client(client_ip),
            req=_excerpt(head) if head is not None else None,
            note=note,
        )

    def relay(
        self,
        kind: Kind,
        *,
        cluster_id: str,
        cluster_name: str,
        instance: str,
        version: str,
        address: str,
        note: str = "",
    ) -> Event:
        """The event of a relay that connected or disconnected."""
        return new_event(
            kind,
            Actor(ActorType.RELAY, instance),
            org=self._org,
            client=Client(address),
            cluster=Cluster(cluster_id, cluster_name),
            relay=Relay(instance, version),
            note=note,
        )

    def hub(self, kind: Kind, note: str = "") -> Event:
        """The event of an action of the hub itself."""
        return new_event(
            kind,
            Actor(ActorType.HUB),
            org=self._org,
            note=note,
        )


def _client(head: RequestHead, client_ip: str, mode: str, claimed_reason: str = "") -> Client:
    if claimed_reason:
        return replace(_client(head, client_ip, mode), claimed_reason=claimed_reason)
    user_agent = head.header(b"user-agent") or b""
    if len(user_agent) <= _USER_AGENT_BYTES_MAX:
        return _remembered_client(client_ip, user_agent, mode)
    shown = text(user_agent[:_USER_AGENT_BYTES_SHOWN])
    # The rest is not recorded, so it is not decoded. The record still counts the bytes it cut.
    return Client(client_ip, shown + "*" * (len(user_agent) - _USER_AGENT_BYTES_SHOWN), mode)


@lru_cache(_CLIENTS_REMEMBERED_MAX)
def _remembered_client(client_ip: str, user_agent: bytes, mode: str) -> Client:
    return Client(client_ip, text(user_agent), mode)


def _audit_view(head: RequestHead, parsed: ParsedRequest, *, undecided: bool = False) -> Request:
    """The audit view of a request line, cached with it because most request lines repeat.

    A long one is not cached: its recorded length depends on the decision.
    """
    info, target = parsed.info, parsed.target
    if info is None:
        view = Request(text(head.method), text(without_bearer(target)))
    else:
        # A fault means that a token was found in the target.
        view = recorded_request(info, text(without_bearer(target, whole=not parsed.fault)))
    if len(target) <= EXCERPT_CHARACTERS_MAX:
        parsed.audit_view = view
        return view
    kept, whole_bytes = EXCERPT_CHARACTERS_MAX, parsed.whole_bytes(head)
    if info is not None and not undecided and whole_bytes <= TARGET_CHARACTERS_MAX:
        if whole_bytes == len(target):
            return view
        # Never include the mark of an unscanned rest, which is cut off with it.
        kept = min(whole_bytes + 1 + READ_QUERY_CHARACTERS_MAX, _SEEN_CHARACTERS_MAX)
    if len(view.raw_target) <= kept:
        return view
    return replace(view, target_kept=kept, target_bytes=len(target))


def recorded_request(info: RequestInfo, raw_target: str) -> Request:
    """Return a parsed request as the trail records it."""
    return Request(
        info.method,
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


def _excerpt(head: RequestHead) -> Request:
    """The audit view of an unauthenticated request line."""
    target, view = head.target, Request(text(head.method), text(without_bearer(head.target)))
    if len(target) <= EXCERPT_CHARACTERS_MAX:
        return view
    return replace(view, target_kept=EXCERPT_CHARACTERS_MAX, target_bytes=len(target))


def without_bearer(target: bytes, *, whole: bool = False) -> bytes:
    """The target without the values of `access_token` parameters: a credential never reaches a record.

    The part beyond TARGET_CHARACTERS_MAX is neither scanned nor recorded. Its digest replaces it when `whole`
    says that the target is known to hold no such parameter.
    """
    rest = b""
    if len(target) > TARGET_CHARACTERS_MAX:
        target, rest = target[:_SEEN_CHARACTERS_MAX], target[_SEEN_CHARACTERS_MAX:]
    path, mark, query = target.partition(b"?")
    if query:
        target = path + mark + _BEARER_PARAMETER.sub(rb"\1=***", b"&" + query)[1:]
    if not rest:
        return target
    return target + b"#" + (sha256(rest).hexdigest().encode("ascii") if whole else b"")


def stream_of(head: RequestHead, info: RequestInfo | None, *, undecided: bool = False) -> Stream | None:
    """Describe a long-running call by its request; None for an ordinary one.

    The command of a request refused as `undecided` is left out: it was never executed.
    """
    upgrade = head.upgrade
    if info is None or (upgrade is None and not info.long_running):
        return None
    proto = proto_of(upgrade)
    if undecided or info.subresource not in {"exec", "attach"}:
        return Stream(proto)
    query = first_values(info.query, ("container", "tty"))
    return Stream(
        proto, _command(info.query), query.get("container", [""])[0], query.get("tty", [""])[0] == "true"
    )


def _command(query: bytes) -> tuple[str, ...]:
    """The arguments of an exec. Only those that a record keeps are decoded; the others are counted."""
    kept: list[str] = []
    left = TARGET_CHARACTERS_MAX
    values = raw_values(query, "command")
    for value in values:
        if (argument := decode_value(value)) is not None:
            kept.append(argument)
            left -= len(argument)
            if left <= 0 or len(kept) == ARGV_ITEMS_MAX:
                break
    return (*kept, *("" for _ in values))
