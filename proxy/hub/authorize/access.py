"""Who is asking, and may they: from a request's bearer token to an agent, its cluster and a decision.

Nothing here waits: a token that was verified is remembered for the rest of its life (131 µs become 0.7), and
agents, grants and states come from the directory's snapshot, so that what an operator changed counts from
the moment that the command returned.
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

# A token lives 60 s; this many agents may be busy within a minute before one is verified twice.
TOKENS_REMEMBERED_MAX = 16_384
# What a client that kept its token for too long, or took another thing for one, does next.
RENEWAL = (
    "kubectl gets a fresh token by itself by what `hawse kubeconfig` wrote, other clients by `hawse connect`"
)


class RevokedError(TokenError):
    """A token in its lifetime whose credential is not good any more: a fresh one is not to be had by it."""


def next_step(error: TokenError, hub_url: str) -> str:
    """What an agent does about a token that is not accepted."""
    if isinstance(error, RevokedError):
        return f"ask the operator of this hub for another, then run `hawse login --hub {hub_url}` with it"
    return RENEWAL


def why_inactive(agent: Agent) -> str:
    """Why an agent that is locked or retired is refused, and what to do about it."""
    if agent.state is AgentState.LOCKED:
        step = f"ask the operator of this hub to unlock it (`hawse admin agent unlock {agent.name}`)"
        return f"agent:{agent.name} is locked: {step}"
    return f"agent:{agent.name} is {agent.state}, for good: ask the operator of this hub for another agent"


class AccessTokens:
    """Verifies access tokens, each once in its life."""

    def __init__(self, keys: Callable[[], KeySet], *, issuer: str, org: str) -> None:
        """`keys` is asked for each token, so that a key that signs since a moment ago is known."""
        self._keys = keys
        self._issuer = issuer
        self._org = org
        # By digest, so that no credential lies about in memory longer than its request.
        self._verified: OrderedDict[bytes, AccessClaims] = OrderedDict()

    def verify(self, token: bytes, cluster: str, now: float) -> AccessClaims:
        """The claims of a token for this cluster; raises TokenError."""
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
    """The one bearer token of a request; raises TokenError when there is none, or several."""
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
    """A request that is refused although its sender is known; the message is for the sender."""

    rule: str
    message: str


def decide(snapshot: Snapshot, claims: AccessClaims, name: str) -> tuple[Agent, Cluster] | Denied:
    """Who acts on what, or why not. A cluster that is not granted and one that is not there look alike.

    Raises RevokedError when a token that is still valid was made from a credential that is revoked.
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
