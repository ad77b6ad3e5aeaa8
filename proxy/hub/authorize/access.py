"""Authenticates a request: from its bearer token to an agent, a cluster and a decision.

Nothing here waits. A verified token is cached for the rest of its life (131 µs become 0.7). Agents, grants
and states are read from the directory's snapshot, so an operator's change takes effect when its command
returns.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256

import attrs

from auth.jws import TokenError
from auth.keys import KeySet
from auth.tokens import AccessClaims, verify_access
from proxy.hub.store.entities import Agent, AgentState, Cluster, Snapshot
from proxy.message.head import RequestHead

# A token lives 60 s. With more busy agents than this, some tokens are verified more than once.
TOKENS_REMEMBERED_MAX = 16_384
# The next step for a client whose token has expired, or that sent something other than a token.
RENEWAL = (
    "kubectl gets a fresh token by itself by what `hawse kubeconfig` wrote, other clients by `hawse connect`"
)


class RevokedError(TokenError):
    """An unexpired token whose credential is revoked: the credential cannot get a fresh one."""


def next_step(error: TokenError, hub_url: str) -> str:
    """The next step for an agent whose token is not accepted."""
    if isinstance(error, RevokedError):
        return f"ask the operator of this hub for another, then run `hawse login --hub {hub_url}` with it"
    return RENEWAL


def why_inactive(agent: Agent) -> str:
    """Why a locked or retired agent is refused, and the next step."""
    if agent.state is AgentState.LOCKED:
        step = f"ask the operator of this hub to unlock it (`hawse admin agent unlock {agent.name}`)"
        return f"agent:{agent.name} is locked: {step}"
    return f"agent:{agent.name} is {agent.state}, for good: ask the operator of this hub for another agent"


class AccessTokens:
    """Verifies access tokens, and caches the results."""

    def __init__(self, keys: Callable[[], KeySet], *, issuer: str, org: str) -> None:
        """`keys` is called for each new token, so that a new signing key is known at once."""
        self._keys = keys
        self._issuer = issuer
        self._org = org
        # By digest, so that no credential stays in memory longer than its request.
        self._verified: OrderedDict[bytes, AccessClaims] = OrderedDict()

    def verify(self, token: bytes, cluster: str, now: float) -> AccessClaims:
        """Return the claims of a token for this cluster; raises TokenError."""
        digest = sha256(token).digest()
        claims = self._verified.get(digest)
        if claims is None or claims.cluster != cluster or now >= claims.expires_at:
            self._verified.pop(digest, None)
            claims = verify_access(
                token.decode("ascii", "replace"),
                self._keys(),
                issuer=self._issuer,
                org=self._org,
                cluster=cluster,
                now=now,
            )
            if len(self._verified) >= TOKENS_REMEMBERED_MAX:
                self._verified.popitem(last=False)
            self._verified[digest] = claims
        return claims


def bearer(head: RequestHead) -> bytes:
    """Return the bearer token of a request; raises TokenError unless there is exactly one."""
    values = head.header_values(b"authorization")
    if not values:
        raise TokenError("no credential: an access token is needed")
    if len(values) > 1:
        raise TokenError("more than one Authorization header")
    scheme, _, token = values[0].partition(b" ")
    if scheme.lower() != b"bearer" or not token:
        raise TokenError("the credential is no bearer token")
    return token.strip()


@attrs.frozen
class Denied:
    """The refusal of an authenticated sender; the message is for the sender."""

    rule: str
    message: str


def decide(snapshot: Snapshot, claims: AccessClaims, name: str) -> tuple[Agent, Cluster] | Denied:
    """Return the agent and its cluster, or a denial. An ungranted cluster looks like one that does not exist.

    Raises RevokedError when the token is still valid, and its credential is revoked.
    """
    agent = snapshot.agents_by_id.get(claims.principal.agent_id)
    if agent is None:
        raise RevokedError("the token is of an agent that this hub does not know")
    if not agent.active or agent.principal is None:
        return Denied(f"agent-{agent.state}", why_inactive(agent))
    if snapshot.credentials.get(claims.sid) != agent.id:
        raise RevokedError(f"the credential of agent:{agent.name} that this token was made from is revoked")
    cluster = snapshot.clusters_by_name.get(name)
    if cluster is None or not snapshot.may_reach(agent, cluster):
        return Denied(
            "not-granted",
            f'cluster "{name}" is not granted to a team of agent:{agent.name} '
            f"({', '.join(agent.teams)}); ask the operator of this hub to grant it",
        )
    return agent, cluster
