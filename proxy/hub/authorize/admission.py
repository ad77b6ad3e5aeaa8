"""Decides whether a request is admitted: from its head to a Call, or to a Refusal.

Nothing here waits, or has side effects beyond its caches. Agents send the same headers with every request of
a connection, and repeat their requests. So results that depend on the request line alone are cached by it.
Results that depend on the headers are cached with them, while the token and the directory's snapshot are
valid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

from audit.bounds import TARGET_CHARACTERS_MAX
from audit.record import Actor, Client, Decision, Kind, Request, text
from audit.record import Cluster as RecordedCluster
from auth.memo import is_cacheable, memoized
from auth.requestinfo import BadTarget, RequestInfo, parse
from auth.tokens import AccessClaims
from proxy.hub.authorize.access import AccessTokens, Denied, bearer, decide
from proxy.hub.authorize.decisions import Verdict, denial, judge
from proxy.hub.store.directory import Directory
from proxy.hub.store.entities import Agent, Cluster, Mode, Snapshot
from proxy.message.head import RequestHead
from proxy.message.reason import REASON_HEADER, ReasonError, read_reason
from proxy.message.rewrite import has_access_token, identity_headers, is_tail

PREFIX = b"/clusters/"
# Distinct requests that one client repeats on one connection. Beyond this number they are judged again.
GRANTS_REMEMBERED_MAX = 32
# A cluster's name is a slug. After it comes the API server's own path, or nothing.
_TARGET = re.compile(rb"/clusters/([a-z0-9-]{1,63})((?:[/?].*)?)", re.DOTALL)


@attrs.define(eq=False)
class ParsedRequest:
    """The facts that follow from a request line alone."""

    cluster: str
    """Empty when the target names no cluster."""
    target: bytes
    """The target without the cluster's prefix."""
    info: RequestInfo | None
    fault: str = ""
    """Why every sender is refused; `info` is None when the line cannot be parsed."""
    durable: bool = True
    """The audit intent must be on disk before the request is forwarded."""
    tail: bool = False
    """The API server forwards it to a backend (services, pods or nodes proxy)."""
    long_running: bool = True
    line: bytes | None = None
    """The request line as sent to the cluster; None before the first request."""
    audit_view: Request | None = None
    """The request line as audit events have it; None before the first event."""
    cacheable: bool = False
    """It may be cached: it holds no credential, and it is short."""
    small: bool = attrs.field(init=False)
    """An ordinary read, complete when it is answered."""

    @small.default
    def _is_small(self) -> bool:
        return not (self.durable or self.long_running)

    def whole_bytes(self, head: RequestHead) -> int:
        """How many bytes of the target the record keeps: all for a write or upgrade, the path for a read.

        A command that is cut would hide what was executed.
        """
        acts = self.durable or head.fields.upgrade is not None
        path_bytes = self.target.find(b"?")
        return len(self.target) if acts or path_bytes < 0 else path_bytes


@memoized
def parse_request(method: bytes, target: bytes) -> ParsedRequest:
    """Parse a request line; never raises."""
    match = _TARGET.fullmatch(target)
    if match is None:
        return ParsedRequest("", b"", None, "the target names no cluster")
    cluster, inner = match[1].decode("ascii"), match[2]
    if not inner.startswith(b"/"):
        inner = b"/" + inner
    try:
        info = parse(method, inner)
    except BadTarget as error:
        return ParsedRequest(cluster, inner, None, error.reason)
    fault = "a token in the URL is refused" if has_access_token(inner) else ""
    cacheable, tail = is_cacheable(target), is_tail(info)
    return ParsedRequest(
        cluster, inner, info, fault, info.is_write, tail, info.long_running, cacheable=cacheable
    )


@attrs.define(eq=False)
class Caller:
    """The sender of some headers to one cluster, and its results under one snapshot of the directory."""

    cluster_name: str
    snapshot: Snapshot
    claims: AccessClaims
    agent: Agent | None
    cluster: Cluster | None
    refusal: Refusal | None
    """Why all its requests are refused; when None, there are an agent and a cluster."""
    claimed_reason: str = ""
    """The reason that the headers state; empty without one, and for one that is refused."""
    audit_view: AuditView | None = None
    """The sender as audit events have it; None before the first event."""
    granted: dict[ParsedRequest, Grant] = attrs.field(factory=dict, init=False)
    """Grants that do not depend on the time."""
    tunnelled: Cluster | None = attrs.field(init=False)
    """The cluster, if its relays use tunnels and no refusal applies to all requests."""

    @tunnelled.default
    def _reached_by_tunnels(self) -> Cluster | None:
        if self.refusal is not None or self.cluster is None or self.cluster.mode is not Mode.TUNNEL:
            return None
        return self.cluster


@attrs.frozen(eq=False)
class Grant:
    """An allowed request, or one that needs an approval, with its agent and cluster."""

    info: RequestInfo
    agent: Agent
    cluster: Cluster
    verdict: Verdict


@attrs.frozen(eq=False)
class AuditView:
    """The actor, the cluster and the client as audit events have them."""

    actor: Actor
    cluster: RecordedCluster
    client: Client


@attrs.define(eq=False)
class Call:
    """An authenticated, parsed and allowed request, or one for which the `verdict` asks for an approval."""

    head: RequestHead
    parsed: ParsedRequest
    info: RequestInfo
    caller: Caller
    agent: Agent
    cluster: Cluster
    client_ip: str
    verdict: Verdict

    @property
    def claims(self) -> AccessClaims:
        return self.caller.claims

    @property
    def movable(self) -> bool:
        """Whether a second relay may be tried while the outcome at the first one is unknown.

        True for reads as policies define them: no upgrade, and nothing that the API server forwards to a
        backend.
        """
        return not (self.durable or self.parsed.tail)

    @property
    def durable(self) -> bool:
        """Whether the audit intent must be on disk before the request is forwarded."""
        return self.parsed.durable or self.head.upgrade is not None

    @property
    def long(self) -> bool:
        """Whether the call is a watch, a followed log or an upgrade."""
        return self.parsed.long_running or self.head.upgrade is not None


@attrs.frozen(eq=False)
class Refusal:
    """The refusal of a known agent's call, for the agent and for the trail."""

    status: int
    rule: str
    message: str
    kind: Kind = Kind.CALL
    note: str = ""
    """For the trail, when its text differs from the agent's."""
    decision: Decision | None = None
    """For the trail, when a policy decided."""
    details: Mapping[str, object] | None = None
    """For programs of the agent."""
    reason: str = ""
    """As in a Status, if it is not the status's usual one."""


@attrs.define(eq=False)
class Admission:
    """Parses requests, and decides whether they are allowed."""

    tokens: AccessTokens
    directory: Directory

    def caller(self, head: RequestHead, parsed: ParsedRequest, now: float) -> Caller:
        """Return the sender of a request, by its token; raises TokenError when the token is not accepted now.

        `now` is in epoch seconds.
        """
        kept = head.fields.note
        snapshot = self.directory.current
        if (
            type(kept) is Caller
            and kept.snapshot is snapshot
            and kept.cluster_name == parsed.cluster
            and now < kept.claims.expires_at
        ):
            return kept
        claims = self.tokens.verify(bearer(head), parsed.cluster, now)
        decided = decide(snapshot, claims, parsed.cluster)
        agent, cluster = (None, None) if isinstance(decided, Denied) else decided
        refusal = None
        if forged := identity_headers(head):
            message = (
                f"{text(forged[0])} is refused: the identity is agent:{claims.principal.name}, "
                "from the credential alone (kubectl --as cannot be used here)"
            )
            refusal = Refusal(403, "no-impersonation", message, Kind.HEADER_SMUGGLING)
        elif isinstance(decided, Denied):
            refusal = Refusal(403, decided.rule, decided.message)
        reason = ""
        if REASON_HEADER in head.fields.by_name:
            try:
                reason = read_reason(head.header_values(REASON_HEADER))
            except ReasonError as error:
                message = f"the header Hawse-Reason {error}"
                refusal = refusal or Refusal(400, "stated-reason", message, Kind.MALFORMED)
        caller = Caller(parsed.cluster, snapshot, claims, agent, cluster, refusal, reason)
        head.fields.note = caller
        return caller

    def fault(self, head: RequestHead, parsed: ParsedRequest, caller: Caller) -> Refusal | None:
        """Return what is wrong with a request before any policy is evaluated; None when nothing is."""
        if parsed.info is None:
            message = f"the request is refused: {parsed.fault}"
            return Refusal(400, "malformed", message, Kind.MALFORMED, parsed.fault)
        if caller.refusal is not None:
            return caller.refusal
        if parsed.fault:
            return Refusal(400, "token-in-url", parsed.fault, Kind.MALFORMED)
        if len(parsed.target) > TARGET_CHARACTERS_MAX:
            whole_bytes = parsed.whole_bytes(head)
            if whole_bytes > TARGET_CHARACTERS_MAX:
                part = "request target" if whole_bytes == len(parsed.target) else "request target's path"
                message = (
                    f"the {part} has {whole_bytes} bytes, and at most {TARGET_CHARACTERS_MAX} of them can be "
                    "recorded: send a long script by the command's standard input, and a long body as a body"
                )
                return Refusal(414, "target-too-long", message, Kind.MALFORMED)
        if head.fields.upgrade is not None and head.fields.body_length != 0:
            message = "an upgrade request cannot have a body"
            return Refusal(400, "upgrade-with-body", message, Kind.MALFORMED)
        return None

    def admit(
        self, head: RequestHead, parsed: ParsedRequest, caller: Caller, client_ip: str, now: float
    ) -> Call | Refusal:
        """Return the call, or why it is refused."""
        grant = caller.granted.get(parsed) or self._grant(head, parsed, caller, now)
        if isinstance(grant, Refusal):
            return grant
        return Call(head, parsed, grant.info, caller, grant.agent, grant.cluster, client_ip, grant.verdict)

    def _grant(self, head: RequestHead, parsed: ParsedRequest, caller: Caller, now: float) -> Grant | Refusal:
        fault = self.fault(head, parsed, caller)
        if fault is not None:
            return fault
        info, agent, cluster = parsed.info, caller.agent, caller.cluster
        assert info is not None, "nothing is refused"
        assert agent is not None, "nothing is refused"
        assert cluster is not None, "nothing is refused"
        if head.fields.upgrade is not None:
            info = info.upgraded()
        bundle = caller.snapshot.bundle
        verdict = judge(bundle, agent, cluster, info, now)
        decision = verdict.decision
        if not decision.allowed and decision.ask is None:
            denied = denial(verdict, agent, cluster, info)
            return Refusal(
                403, decision.rule, denied.message, decision=verdict.recorded, details=denied.details
            )
        grant = Grant(info, agent, cluster, verdict)
        # Long-running requests are made once on a connection, and would keep the cached grant alive for
        # hours. An asked call is seldom repeated.
        lasts = parsed.long_running or head.fields.upgrade is not None or decision.ask is not None
        if parsed.cacheable and not (lasts or bundle.timed):
            if len(caller.granted) >= GRANTS_REMEMBERED_MAX:
                caller.granted.clear()
            caller.granted[parsed] = grant
        return grant
