"""Who asks for what, and whether it is granted: from a request's head to a call, or to why there is none.

Nothing here waits, and nothing is done yet but to find out. Agents send the same headers with every request
of a connection, and ask for the same things again and again. So what follows from the request line alone is
remembered by it, and what follows from the headers is kept with them, for as long as the token lives and the
directory stays what it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

from audit.record import TARGET_CHARACTERS_MAX, Actor, Client, Decision, Kind, Request, text
from audit.record import Cluster as RecordedCluster
from auth.memo import is_cacheable, memoized
from auth.requestinfo import BadTarget, RequestInfo, parse
from auth.tokens import AccessClaims
from proxy.hub.authorize.access import AccessTokens, Denied, bearer, decide
from proxy.hub.authorize.decisions import Verdict, denial, judge
from proxy.hub.store.directory import Directory
from proxy.hub.store.entities import Agent, Cluster, Mode, Snapshot
from proxy.message.head import RequestHead
from proxy.message.rewrite import has_access_token, identity_headers, is_tail

PREFIX = b"/clusters/"
# What one client asks for again and again, on one connection; beyond that it is judged anew.
GRANTS_REMEMBERED_MAX = 32
# A cluster's name is a slug; what follows it is the API server's own path, or nothing.
_TARGET = re.compile(rb"/clusters/([a-z0-9-]{1,63})((?:[/?].*)?)", re.DOTALL)


@attrs.define(eq=False)
class Asked:
    """What a request line asks for."""

    cluster: str
    """Empty when the target names none."""
    target: bytes
    """In the cluster: without the prefix."""
    info: RequestInfo | None
    fault: str = ""
    """Why it is refused, whoever asks; without `info` because it cannot be understood."""
    durable: bool = True
    """Its intent has to be on the disk before it moves."""
    tail: bool = False
    """It goes on to a backend behind the API server."""
    long_running: bool = True
    line: bytes | None = None
    """The request line in the cluster, once it was sent."""
    told: Request | None = None
    """What the trail says of it, once it was asked."""
    kept: bool = False
    """It may be remembered: no credential is in it, and it is not long."""
    small: bool = attrs.field(init=False)
    """It is an ordinary read, and over as soon as it is answered."""

    @small.default
    def _is_small(self) -> bool:
        return not (self.durable or self.long_running)

    def whole_bytes(self, head: RequestHead) -> int:
        """How many bytes of the target are recorded whole: all for a write or upgrade, the path for a read.

        A command that is cut would hide what was run.
        """
        acts = self.durable or head.fields.upgrade is not None
        path_bytes = self.target.find(b"?")
        return len(self.target) if acts or path_bytes < 0 else path_bytes


@memoized
def understand(method: bytes, target: bytes) -> Asked:
    """What a request line asks for; never raises."""
    match = _TARGET.fullmatch(target)
    if match is None:
        return Asked("", b"", None, "the target names no cluster")
    cluster, inner = match[1].decode("ascii"), match[2]
    if not inner.startswith(b"/"):
        inner = b"/" + inner
    try:
        info = parse(method, inner)
    except BadTarget as error:
        return Asked(cluster, inner, None, error.reason)
    fault = "a token in the URL is refused" if has_access_token(inner) else ""
    kept, tail = is_cacheable(target), is_tail(info)
    return Asked(cluster, inner, info, fault, info.is_write, tail, info.long_running, kept=kept)


@attrs.define(eq=False)
class Caller:
    """Who sends some headers to which cluster, and what follows under one state of the directory."""

    cluster_name: str
    snapshot: Snapshot
    claims: AccessClaims
    agent: Agent | None
    cluster: Cluster | None
    refusal: Refusal | None
    """Why nothing is granted, whatever is asked for; else there are an agent and a cluster."""
    told: Told | None = None
    """What the trail says of them, once it was asked."""
    granted: dict[Asked, Grant] = attrs.field(factory=dict, init=False)
    """What they were granted, if it does not depend on the time."""
    tunnelled: Cluster | None = attrs.field(init=False)
    """The cluster, if its relays are reached by tunnels and nothing is refused whatever is asked for."""

    @tunnelled.default
    def _reached_by_tunnels(self) -> Cluster | None:
        if self.refusal is not None or self.cluster is None or self.cluster.mode is not Mode.TUNNEL:
            return None
        return self.cluster


@attrs.frozen(eq=False)
class Grant:
    """What is granted, to whom and where."""

    info: RequestInfo
    agent: Agent
    cluster: Cluster
    verdict: Verdict


@attrs.frozen(eq=False)
class Told:
    """Who acts, on what and from where, as the trail says it."""

    actor: Actor
    cluster: RecordedCluster
    client: Client


@attrs.define(eq=False)
class Call:
    """A call that is authenticated, understood and granted."""

    head: RequestHead
    asked: Asked
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
        """Whether a second relay may be asked for it while its outcome at the first one is unknown.

        A read as policies have it: no upgrade, and nothing that goes on to a backend.
        """
        return not (self.durable or self.asked.tail)

    @property
    def durable(self) -> bool:
        """Whether its intent has to be on the disk before it moves."""
        return self.asked.durable or self.head.upgrade is not None

    @property
    def long(self) -> bool:
        """Whether it is a watch, a followed log or an upgrade."""
        return self.asked.long_running or self.head.upgrade is not None


@attrs.frozen(eq=False)
class Refusal:
    """Why a call of a known agent is refused, for the agent and for the trail."""

    status: int
    rule: str
    message: str
    kind: Kind = Kind.CALL
    note: str = ""
    """For the trail, where it says it in other words."""
    decision: Decision | None = None
    """For the trail, where the policies decided."""
    details: Mapping[str, object] | None = None
    """For the agent's programs."""


@attrs.define(eq=False)
class Admission:
    """Tells what a request asks for, and whether it may."""

    tokens: AccessTokens
    directory: Directory

    def caller(self, head: RequestHead, asked: Asked, now: float) -> Caller:
        """Who asks, by the request's token; raises TokenError when that is nobody who may act now.

        `now` is in epoch seconds.
        """
        kept = head.fields.note
        snapshot = self.directory.current
        if (
            type(kept) is Caller
            and kept.snapshot is snapshot
            and kept.cluster_name == asked.cluster
            and now < kept.claims.expires_at
        ):
            return kept
        claims = self.tokens.verify(bearer(head), asked.cluster, now)
        decided = decide(snapshot, claims, asked.cluster)
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
        caller = Caller(asked.cluster, snapshot, claims, agent, cluster, refusal)
        head.fields.note = caller
        return caller

    def fault(self, head: RequestHead, asked: Asked, caller: Caller) -> Refusal | None:
        """What is wrong with a request, whatever the policies say; None when that is nothing."""
        if asked.info is None:
            message = f"the request is refused: {asked.fault}"
            return Refusal(400, "malformed", message, Kind.MALFORMED, asked.fault)
        if caller.refusal is not None:
            return caller.refusal
        if asked.fault:
            return Refusal(400, "token-in-url", asked.fault, Kind.MALFORMED)
        if len(asked.target) > TARGET_CHARACTERS_MAX:
            whole_bytes = asked.whole_bytes(head)
            if whole_bytes > TARGET_CHARACTERS_MAX:
                part = "request target" if whole_bytes == len(asked.target) else "request target's path"
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
        self, head: RequestHead, asked: Asked, caller: Caller, client_ip: str, now: float
    ) -> Call | Refusal:
        """The call, when everything is in order."""
        grant = caller.granted.get(asked) or self._grant(head, asked, caller, now)
        if isinstance(grant, Refusal):
            return grant
        return Call(head, asked, grant.info, caller, grant.agent, grant.cluster, client_ip, grant.verdict)

    def _grant(self, head: RequestHead, asked: Asked, caller: Caller, now: float) -> Grant | Refusal:
        fault = self.fault(head, asked, caller)
        if fault is not None:
            return fault
        info, agent, cluster = asked.info, caller.agent, caller.cluster
        assert info is not None, "nothing is refused"
        assert agent is not None, "nothing is refused"
        assert cluster is not None, "nothing is refused"
        if head.fields.upgrade is not None:
            info = info.upgraded()
        bundle = caller.snapshot.bundle
        verdict = judge(bundle, agent, cluster, info, now)
        if not verdict.decision.allowed:
            told = denial(verdict, agent, cluster, info)
            rule = verdict.decision.rule
            return Refusal(403, rule, told.message, decision=verdict.recorded, details=told.details)
        grant = Grant(info, agent, cluster, verdict)
        # What lasts is asked for once on a connection, and would hold this for hours.
        lasts = asked.long_running or head.fields.upgrade is not None
        if asked.kept and not (lasts or bundle.timed):
            if len(caller.granted) >= GRANTS_REMEMBERED_MAX:
                caller.granted.clear()
            caller.granted[asked] = grant
        return grant
