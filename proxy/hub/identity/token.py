"""Issues access tokens to agents, and lists an agent's clusters.

    POST /oauth/token            RFC 6749 section 4.4, form-encoded
        grant_type               client_credentials
        audience                 the cluster: its name, or urn:hawse:<org>:cluster:<name>;
                                 or the hub itself, urn:hawse:<org>:hub
        resource                 or (RFC 8707) its URL, https://hub/clusters/<name>; or https://hub
        client_id                the agent's name; optional, since the credential names the agent
      and one of
        client_secret            an API key, unless it is in `Authorization: Basic` (name:key)
        client_assertion         a JWT signed by the agent's registered key (RFC 7523), with
        client_assertion_type    urn:ietf:params:oauth:client-assertion-type:jwt-bearer
      or, by RFC 8693, with grant_type urn:ietf:params:oauth:grant-type:token-exchange
        subject_token            a JWT of an issuer that a federation rule names, with
        subject_token_type       urn:ietf:params:oauth:token-type:jwt (or :id_token)
        client_id                the agent's name, needed only when several agents match the token
    → {"access_token", "token_type": "Bearer", "expires_in", "issued_token_type"}
      or {"error", "error_description"}, and "hub_time" when the times in an assertion are wrong: the agent
      signs another one that is dated by the hub's time and repeats it as a claim (auth.hubtime)

    GET /v1/clusters             Authorization: Basic (name:key), or Bearer (key, or a token for the hub)
    → {"agent", "org", "teams", "hub", "credential", "now",
       "clusters": [{"name", "labels", "mode", "url", "state", "may"}]}
      hub: its URL; credential: the id of the credential used; now: epoch seconds; state:
      proxy.hub.relays.cluster_state; may: a summary of the policies (auth.policy.extent)

    GET /.well-known/jwks.json

This module has no sockets and no clock, and waits only for another issuer's keys and the replay store. It
maps a request to an answer, with one audit event for each token and each refusal.

An unauthenticated sender learns nothing from a refusal. Unknown and revoked keys get the same answer; so do
the keys of a retired agent, which are all revoked. A cluster that is not granted and one that does not exist
get the same answer too. The audit event has the reason. Only the holder of a valid key learns that its agent
is locked.
"""

from __future__ import annotations

import hmac
import math
import time
import uuid
from collections.abc import Callable

from audit.record import Event, Kind
from auth.apikey import PREFIX, ApiKeyError, parse
from auth.apikey import hash as hash_key
from auth.assertion import LIFETIME_S
from auth.hubtime import hub_time, is_hub_time
from auth.jws import AudienceError, TokenError
from auth.policy.extent import extent
from auth.policy.match import Scope
from auth.principal import IdentityError
from auth.tokens import access_audience, hub_audience, issue_access, verify_access
from auth.tokens import verify_assertion as verify
from proxy.hub.home.sections.limits import LimitsConfig
from proxy.hub.identity.events import AgentEvents, Sender, agent_actor
from proxy.hub.identity.federation import Federated
from proxy.hub.identity.issuers import IssuerKeys
from proxy.hub.identity.oauth import (
    ACCESS_TOKEN_TYPE,
    Answer,
    Assertion,
    Refusal,
    Secret,
    Subject,
    answer_json,
    basic_in,
    bearer_in,
    calls_itself,
    malformed,
    parse_form,
    refuse_inactive,
    refuse_unauthenticated,
    refuse_unconfirmed,
    shown_in,
)
from proxy.hub.identity.replay import ReplayCache, ReplayedError
from proxy.hub.identity.replay_store import ReplayStore, ReplayStoreUnavailableError
from proxy.hub.store.directory import Directory
from proxy.hub.store.entities import Agent, Cluster, Credential
from proxy.hub.store.secrets.signing_keys import SigningKeys
from proxy.message.head import Headers
from proxy.process.plural import counted
from tunnel.net.ratelimit import TokenBucket

TOKEN_PATH = "/oauth/token"  # noqa: S105 - a path
CLUSTERS_PATH = "/v1/clusters"
# An assertion lives 60 s. An agent sends one per minute and cluster; its replicas may share a key.
ASSERTIONS_REMEMBERED_MAX = 100_000
ASSERTIONS_OF_AN_AGENT_MAX = 2_000
# The size of a burst, in seconds of the rate, for a fleet that starts.
TOKENS_BURST_S = 60.0

_JWKS_HEADERS = ((b"content-type", b"application/jwk-set+json"), (b"cache-control", b"public, max-age=300"))


class TokenEndpoint:
    """Answers agents; one instance per hub."""

    def __init__(
        self,
        *,
        directory: Directory,
        keys: Callable[[], SigningKeys],
        pepper: bytes,
        issuer: str,
        record: Callable[[Event], None],
        clock: Callable[[], float],
        replays: ReplayStore,
        limits: LimitsConfig,
        recording: Callable[[], bool],
        cluster_hosts: str | None = None,
        audit_debt: Callable[[str, str], str] = lambda agent_id, name: "",
        state_of: Callable[[Cluster], str],
        issuers: IssuerKeys | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`keys` is called for each token, so that a rotated key signs at once; `record` must not block.

        `recording` returns whether audit events reach the disk; no token is issued while they do not.
        `audit_debt` returns why an agent, by its id and name, may add no audit events; "" if it may.
        `state_of` returns whether a cluster can be reached (proxy.hub.relays.cluster_state).
        """
        self._recording = recording
        self._directory = directory
        self._keys = keys
        self._pepper = pepper
        self._issuer = issuer
        self._events = AgentEvents(directory, record, clock)
        self._clock = clock
        self._monotonic = monotonic
        self._federation = Federated(directory, issuers or IssuerKeys(), clock)
        self._replays = ReplayCache(
            "assertion", ASSERTIONS_REMEMBERED_MAX, ASSERTIONS_OF_AN_AGENT_MAX, replays
        )
        self._limits = limits
        self._cluster_hosts = cluster_hosts
        self._audit_debt = audit_debt
        self._state_of = state_of
        # By agent id, for each agent that requested a token since the start. Bounded by the enrolled agents.
        self._given: dict[str, TokenBucket] = {}

    async def answer(self, form: bytes, headers: Headers, client_ip: str) -> Answer:
        """Answer `POST /oauth/token`; may wait for another issuer's keys, and for the replay store."""
        now = self._clock()
        sender = Sender("POST", TOKEN_PATH, headers, client_ip)
        cluster: Cluster | None = None
        try:
            self._refuse_unconfirmed()
            fields = parse_form(form, headers)
            shown = shown_in(fields, headers)
            wanted = self._wanted_cluster(fields)
            agent, credential = await self._authenticate(shown, now)
            if not self._recording():
                description = "the audit trail cannot be written, so no token is issued: try again later"
                raise Refusal(
                    503,
                    "temporarily_unavailable",
                    description,
                    description,
                    agent=agent,
                    credential=credential,
                )
            # The wait may have been long.
            self._refuse_unconfirmed(agent, credential)
            now = self._clock()
            self._count(agent, credential)
            if wanted is not None:
                cluster = self._directory.current.clusters_by_name.get(wanted)
                self._check_reach(agent, credential, cluster)
            body, jti = self._issue(agent, credential, cluster, now)
        except Refusal as refusal:
            self._events.refused(refusal, sender, cluster)
            return refusal.answer(self._issuer)
        self._directory.used.note_agent(agent, credential, now)
        actor = agent_actor(agent, credential.label, jti)
        self._events.record(
            self._events.make(
                Kind.TOKEN_ISSUED, sender, actor=actor, status=200, cluster=cluster, effect="allow"
            )
        )
        return answer_json(200, body)

    def clusters(self, headers: Headers, client_ip: str) -> Answer:
        """Answer `GET /v1/clusters`: the clusters that the agent may reach, with their URLs."""
        now = self._clock()
        try:
            self._refuse_unconfirmed()
            agent, credential_id = self._known(headers, now)
        except Refusal as refusal:
            self._events.refused(refusal, Sender("GET", CLUSTERS_PATH, headers, client_ip))
            return refusal.answer(self._issuer)
        current = self._directory.current
        body: dict[str, object] = {
            "agent": agent.name,
            "org": current.org,
            "teams": list(agent.teams),
            "hub": self._issuer,
            "credential": credential_id,
            "now": round(now, 3),
            "clusters": self._reach(agent),
        }
        if self._cluster_hosts is not None:
            body["cluster_hosts"] = self._cluster_hosts
        return answer_json(200, body)

    def _reach(self, agent: Agent) -> list[dict[str, object]]:
        """The clusters that an agent may reach, each with its state."""
        current = self._directory.current
        # Most of thousands of clusters share a few sets of rules, so the summaries are cached.
        words: dict[Scope, str] = {}
        rows: list[dict[str, object]] = []
        for cluster in current.clusters_of(agent):
            scope = current.bundle.scope_of(agent, cluster)
            if scope not in words:
                words[scope] = extent(ready.rule for ready in scope.rules)
            rows.append(
                {
                    "name": cluster.name,
                    "labels": dict(cluster.labels),
                    "mode": str(cluster.mode),
                    "url": f"{self._issuer}/clusters/{cluster.name}",
                    "state": self._state_of(cluster),
                    "may": words[scope],
                }
            )
        return rows

    def jwks(self) -> Answer:
        """Answer `GET /.well-known/jwks.json`."""
        return Answer(200, _JWKS_HEADERS, self._keys().public.to_jwks().encode("ascii"))

    def _refuse_unconfirmed(self, agent: Agent | None = None, credential: Credential | None = None) -> None:
        """Refuse while nothing may be decided by the snapshot; raises Refusal."""
        if why := self._directory.refusal():
            raise refuse_unconfirmed(why, agent, credential)

    def _known(self, headers: Headers, now: float) -> tuple[Agent, str]:
        """Return the agent of a request for the hub itself, and its credential's id; raises Refusal."""
        basic, bearer = basic_in(headers), bearer_in(headers)
        if bearer is not None and not bearer.startswith(PREFIX):
            return self._bearer_of_token(bearer, now)
        shown = basic if bearer is None else Secret("", bearer)
        if shown is None:
            raise refuse_unauthenticated("no credential")
        agent, key = self._owner_of_secret(shown)
        self._directory.used.note_agent(agent, key, now)
        return agent, key.id

    def _bearer_of_token(self, token: str, now: float) -> tuple[Agent, str]:
        current = self._directory.current
        try:
            claims = verify_access(
                token, self._keys().public, issuer=self._issuer, org=current.org, cluster=None, now=now
            )
        except TokenError as error:
            raise refuse_unauthenticated(error.reason) from None
        agent = current.agents_by_id.get(claims.principal.agent_id)
        if agent is None:
            raise refuse_unauthenticated("the agent is not known")
        if not agent.active:
            raise refuse_inactive(agent)
        if current.credentials.get(claims.sid) != agent.id:
            raise refuse_unauthenticated("the credential that this token was made from is revoked", agent)
        return agent, claims.sid

    async def _authenticate(
        self, shown: Secret | Assertion | Subject | None, now: float
    ) -> tuple[Agent, Credential]:
        match shown:
            case None:
                raise refuse_unauthenticated("no credential")
            case Subject():
                return await self._federation.authenticate(shown)
            case Secret():
                return self._owner_of_secret(shown)
            case Assertion():
                return await self._owner_of_assertion(shown, now)

    def _owner_of_secret(self, shown: Secret) -> tuple[Agent, Credential]:
        try:
            digest = hash_key(parse(shown.secret), self._pepper)
        except ApiKeyError:
            raise refuse_unauthenticated("not an API key") from None  # the cause may quote the secret
        # The dictionary is keyed by an HMAC under a secret. Lookup timing reveals parts of a digest, which
        # cannot be turned into a key. Digests are still compared in constant time.
        found = self._directory.current.api_keys_by_hash.get(digest)
        if found is None:
            raise refuse_unauthenticated("the API key is unknown or revoked")
        _check_owner(shown.name, *found)
        return found

    async def _owner_of_assertion(self, shown: Assertion, now: float) -> tuple[Agent, Credential]:
        current = self._directory.current
        try:
            claims = verify(shown.token, current.find_agent_key, hub_url=self._issuer, now=now)
        except TokenError as error:
            note = f"assertion: {error.reason}"
            if error.skew_s is None and not isinstance(error, AudienceError):
                raise refuse_unauthenticated(note) from None
            # Only the holder of a registered key can have signed this time and audience, so the message may
            # name the wrong one.
            if isinstance(error, AudienceError):
                step = f"ask its operator for a code, then run `hawse login --hub {self._issuer} --code`"
                raise refuse_unauthenticated(
                    note, description=f"{calls_itself(self._issuer)}: {step}"
                ) from None
            description = f"the credential is not accepted: {error.reason}"
            raise refuse_unauthenticated(
                note, description=description, hub_time=hub_time(self._pepper, now)
            ) from None
        if claims.hub_time and not is_hub_time(claims.hub_time, self._pepper, claims.issued_at):
            raise refuse_unauthenticated("assertion: it repeats a hub_time that this hub has not issued")
        agent, key = current.agent_keys_by_kid[claims.kid]
        _check_owner(shown.name, agent, key)
        try:
            await self._replays.use(agent.id, claims.jti, claims.expires_at, now)
        except ReplayedError as error:
            description = f"the credential is not accepted: {error}"
            raise refuse_unauthenticated(str(error), agent, key, description=description) from error
        except ReplayStoreUnavailableError as error:
            raise Refusal(
                503, "temporarily_unavailable", str(error), str(error), agent=agent, credential=key
            ) from error
        # The key may have been revoked, or the agent locked, during the write to the replay store.
        found = self._directory.current.agent_keys_by_kid.get(claims.kid)
        if found is None or found[0].id != agent.id:
            raise refuse_unauthenticated("the key is revoked", agent, key)
        _check_owner(shown.name, *found)
        return found

    def _wanted_cluster(self, fields: dict[str, str]) -> str | None:
        """The name of the requested cluster; None for the hub itself."""
        org = self._directory.current.org
        prefix, urn = f"{self._issuer}/clusters/", access_audience(org, "")
        names: set[str | None] = set()
        if "audience" in fields:
            audience = fields["audience"]
            names.add(None if audience == hub_audience(org) else audience.removeprefix(urn))
        if "resource" in fields:
            resource = fields["resource"].removesuffix("/")
            if resource != self._issuer and not resource.startswith(prefix):
                step = f"run `hawse login --hub {self._issuer}`, or name a cluster by {prefix}<name>"
                raise malformed("invalid_target", f"{calls_itself(self._issuer)}: {step}")
            names.add(None if resource == self._issuer else resource.removeprefix(prefix))
        if len(names) != 1:
            raise malformed("invalid_target", "name one cluster, by audience=<name> or resource=<its URL>")
        return names.pop()

    def _count(self, agent: Agent, credential: Credential) -> None:
        """Count a token against the agent's limits, its audit event included; raises Refusal."""
        if debt := self._audit_debt(agent.id, agent.name):
            raise Refusal(429, "slow_down", debt, debt, agent=agent, credential=credential)
        limit = self._limits.of(agent.name).tokens_per_minute
        if not limit:
            return
        at = self._monotonic()
        given = self._given.get(agent.id)
        if given is None:
            given = self._given[agent.id] = TokenBucket(limit / 60, max(1.0, limit / 60 * TOKENS_BURST_S), at)
        if given.left(at) < 1:
            description = (
                f"agent:{agent.name} asks for more than {counted(limit, 'token')} a minute "
                f"(limits.tokens_per_minute): each is good for {LIFETIME_S:.0f} s, "
                "so keep it, or ask the hub's operator for more"
            )
            raise Refusal(429, "slow_down", description, description, agent=agent, credential=credential)
        given.take(1)

    def _check_reach(self, agent: Agent, credential: Credential, cluster: Cluster | None) -> None:
        if cluster is None:
            note = "the cluster does not exist"
        elif not self._directory.current.may_reach(agent, cluster):
            note = "the cluster is not granted to its teams"
        else:
            return
        description = (
            "this agent may reach no such cluster: ask the hub's operator to grant it; "
            "`GET /v1/clusters` lists those that it may"
        )
        raise Refusal(400, "invalid_target", description, note, agent=agent, credential=credential)

    def _issue(
        self, agent: Agent, credential: Credential, cluster: Cluster | None, now: float
    ) -> tuple[dict[str, object], str]:
        assert agent.principal is not None  # it is active
        jti = str(uuid.uuid4())
        try:
            token = issue_access(
                self._keys().active,
                issuer=self._issuer,
                principal=agent.principal,
                cluster=None if cluster is None else cluster.name,
                # The session is the credential: revoking a key ends everything that was issued from it.
                sid=credential.id,
                jti=jti,
                now=now,
            )
        except IdentityError as error:
            description = str(error)
            raise Refusal(
                400, "invalid_target", description, description, agent=agent, credential=credential
            ) from error
        return {
            "access_token": token,
            "token_type": "Bearer",
            # The token's lifetime starts at the last whole second, so a client's cached copy must expire by
            # that too.
            "expires_in": math.floor(math.floor(now) + LIFETIME_S - now),
            "issued_token_type": ACCESS_TOKEN_TYPE,
        }, jti


def _check_owner(named: str, agent: Agent, credential: Credential) -> None:
    """Refuse if the request names another agent than the credential's, or if the agent is not active."""
    if named and not hmac.compare_digest(named.encode(), agent.name.encode()):
        raise refuse_unauthenticated("the credential belongs to another agent", agent, credential)
    if not agent.active:
        raise refuse_inactive(agent, credential)
