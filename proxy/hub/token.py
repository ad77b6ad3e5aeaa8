"""What an agent asks the hub for with its API key: a token for one cluster, and the list of its clusters.

    POST /oauth/token          RFC 6749 section 4.4, form-encoded
        grant_type             client_credentials
        audience               the cluster: its name, or urn:hawse:<org>:cluster:<name>
        resource               or (RFC 8707) its URL, https://hub/clusters/<name>
        client_id              the agent's name; may be left out, since the key names the agent
        client_secret          the API key, unless it comes in `Authorization: Basic` (name:key)
    → {"access_token", "token_type": "Bearer", "expires_in", "issued_token_type"}
      or {"error", "error_description"}

    GET /v1/clusters           Authorization: Basic (name:key) or Bearer (key)
    → {"agent", "org", "teams", "clusters": [{"name", "labels", "mode", "url"}]}

    GET /.well-known/jwks.json

No sockets, no clock of its own and no waiting: the request's parts in, an answer out, one audit event for
each token and each refusal. A stranger learns nothing from a refusal: a wrong key, a revoked one, and the
right key of a locked or retired agent are one answer, and so are a cluster that is not granted and one
that does not exist. The audit event says which it was.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import math
import os
import uuid
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote_plus

import attrs

from audit.ids import uuid7
from audit.record import Actor, ActorType, Client, Decision, Event, Kind, Phase, Request, Response, text, utc
from audit.record import Cluster as AuditCluster
from auth.apikey import ApiKeyError, parse
from auth.apikey import hash as hash_key
from auth.principal import IdentityError
from auth.tokens import LIFETIME_S, access_audience, issue_access
from proxy.head import Headers
from proxy.hub.datadir import SigningKeys
from proxy.hub.directory import Agent, ApiKey, Cluster, Directory

TOKEN_PATH = "/oauth/token"  # noqa: S105 - a path
CLUSTERS_PATH = "/v1/clusters"
# An access token request has some 300 bytes; RFC 8693 assertions, some day, a few thousand.
FORM_BYTES_MAX = 16 * 1024
_FIELDS_MAX = 32
ACCESS_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a name

_JSON = (b"content-type", b"application/json")
# RFC 6749 section 5.1: "The authorization server MUST include the HTTP "Cache-Control" response header
# field with a value of "no-store"", and Pragma likewise.
_NO_STORE = ((b"cache-control", b"no-store"), (b"pragma", b"no-cache"))
_JWKS_HEADERS = ((b"content-type", b"application/jwk-set+json"), (b"cache-control", b"public, max-age=300"))


class Answer(NamedTuple):
    """An HTTP answer; whoever sends it adds the framing."""

    status: int
    headers: Headers
    body: bytes


@attrs.frozen
class _Refusal(Exception):
    """What the client is told (`error`, `description`) and what only the audit trail says (`note`)."""

    status: int
    error: str
    description: str
    note: str
    kind: Kind = Kind.AUTH_FAILED
    agent: Agent | None = None
    key: ApiKey | None = None


class TokenEndpoint:
    """Answers agents; made once, when the hub starts."""

    def __init__(
        self,
        *,
        directory: Directory,
        keys: Callable[[], SigningKeys],
        pepper: bytes,
        issuer: str,
        record: Callable[[Event], None],
        clock: Callable[[], float],
    ) -> None:
        """`keys` is asked each time, so that a rotated key signs at once; `record` must not wait."""
        self._directory = directory
        self._keys = keys
        self._pepper = pepper
        self._issuer = issuer
        self._record = record
        self._clock = clock

    def answer(self, form: bytes, headers: Headers, client_ip: str) -> Answer:
        """Answer `POST /oauth/token`."""
        now = self._clock()
        cluster: Cluster | None = None
        try:
            fields = _parse_form(form, headers)
            credential = _credential(fields, headers)
            if "grant_type" not in fields:
                raise _malformed("invalid_request", "grant_type is missing")
            if fields["grant_type"] != "client_credentials":
                raise _malformed("unsupported_grant_type", "grant_type must be client_credentials")
            wanted = self._wanted_cluster(fields)
            agent, key = self._authenticate(credential)
            cluster = self._directory.current.clusters_by_name.get(wanted)
            if cluster is None or not self._directory.current.may_reach(agent, cluster):
                raise _Refusal(
                    400,
                    "invalid_target",
                    "this agent may reach no such cluster; `GET /v1/clusters` lists those that it may",
                    "the cluster does not exist"
                    if cluster is None
                    else "the cluster is not granted to its teams",
                    agent=agent,
                    key=key,
                )
            body, jti = self._issue(agent, key, cluster, now)
        except _Refusal as refusal:
            return self._refuse(refusal, "POST", TOKEN_PATH, headers, client_ip, now, cluster)
        self._directory.note_agent_used(agent, key, now)
        self._record(
            self._event(
                Kind.TOKEN_ISSUED,
                _actor(agent, key, jti),
                _client(headers, client_ip),
                Request("POST", TOKEN_PATH),
                200,
                now,
                cluster=cluster,
                effect="allow",
            )
        )
        return Answer(200, (_JSON, *_NO_STORE), _dump(body))

    def clusters(self, headers: Headers, client_ip: str) -> Answer:
        """Answer `GET /v1/clusters`: what the agent may reach, and at which URL."""
        now = self._clock()
        try:
            credential = _basic(headers) or _bearer(headers)
            if credential is None:
                raise _unknown("no credential")
            agent, key = self._authenticate(credential)
        except _Refusal as refusal:
            return self._refuse(refusal, "GET", CLUSTERS_PATH, headers, client_ip, now, None)
        self._directory.note_agent_used(agent, key, now)
        current = self._directory.current
        body = {
            "agent": agent.name,
            "org": current.org,
            "teams": list(agent.teams),
            "clusters": [
                {
                    "name": cluster.name,
                    "labels": dict(cluster.labels),
                    "mode": str(cluster.mode),
                    "url": f"{self._issuer}/clusters/{cluster.name}",
                }
                for cluster in current.clusters_of(agent)
            ],
        }
        return Answer(200, (_JSON, *_NO_STORE), _dump(body))

    def jwks(self) -> Answer:
        """Answer `GET /.well-known/jwks.json`."""
        return Answer(200, _JWKS_HEADERS, self._keys().public.to_jwks().encode("ascii"))

    def _authenticate(self, credential: _Credential | None) -> tuple[Agent, ApiKey]:
        if credential is None:
            raise _unknown("no credential")
        try:
            digest = hash_key(parse(credential.secret), self._pepper)
        except ApiKeyError:
            raise _unknown("not an API key") from None  # the cause may not be shown beside the secret
        # The dictionary is keyed by an HMAC under a secret: what a probe's timing tells of it, the
        # sender cannot turn into a key. Equality is still decided in constant time.
        found = self._directory.current.api_keys_by_hash.get(digest)
        if found is None:
            raise _unknown("the API key is unknown or revoked")
        agent, key = found
        if credential.name and not hmac.compare_digest(credential.name.encode(), agent.name.encode()):
            raise _unknown("the API key belongs to another agent", agent, key)
        if not agent.active:
            raise _unknown(f"the agent is {agent.state}", agent, key)
        return agent, key

    def _wanted_cluster(self, fields: dict[str, str]) -> str:
        prefix, urn = f"{self._issuer}/clusters/", access_audience(self._directory.current.org, "")
        names = set()
        if "audience" in fields:
            names.add(fields["audience"].removeprefix(urn))
        if "resource" in fields:
            if not fields["resource"].startswith(prefix):
                raise _malformed("invalid_target", f"resource must be {prefix}<name>")
            names.add(fields["resource"].removeprefix(prefix).removesuffix("/"))
        if len(names) != 1:
            raise _malformed("invalid_target", "name one cluster, by audience=<name> or resource=<its URL>")
        return names.pop()

    def _issue(
        self, agent: Agent, key: ApiKey, cluster: Cluster, now: float
    ) -> tuple[dict[str, object], str]:
        assert agent.principal is not None  # it is active
        jti = str(uuid.uuid4())
        try:
            token = issue_access(
                self._keys().active,
                issuer=self._issuer,
                principal=agent.principal,
                cluster=cluster.name,
                # The session is the credential: what is minted from one key is cut off together.
                sid=key.id,
                jti=jti,
                now=now,
            )
        except IdentityError as error:
            raise _Refusal(400, "invalid_target", str(error), str(error), agent=agent, key=key) from error
        return {
            "access_token": token,
            "token_type": "Bearer",
            # The token counts from the last whole second, and so must whoever caches it.
            "expires_in": math.floor(math.floor(now) + LIFETIME_S - now),
            "issued_token_type": ACCESS_TOKEN_TYPE,
        }, jti

    def _refuse(
        self,
        refusal: _Refusal,
        method: str,
        path: str,
        headers: Headers,
        client_ip: str,
        now: float,
        cluster: Cluster | None,
    ) -> Answer:
        actor = (
            _actor(refusal.agent, refusal.key) if refusal.agent is not None else Actor(ActorType.ANONYMOUS)
        )
        self._record(
            self._event(
                refusal.kind,
                actor,
                _client(headers, client_ip),
                Request(method, path),
                refusal.status,
                now,
                cluster=cluster,
                effect="deny" if refusal.kind is Kind.AUTH_FAILED else "",
                note=refusal.note,
            )
        )
        extra: Headers = ()
        if refusal.status == 401:
            extra = ((b"www-authenticate", b'Basic realm="hawse", charset="UTF-8"'),)
        body = {"error": refusal.error, "error_description": refusal.description}
        return Answer(refusal.status, (_JSON, *_NO_STORE, *extra), _dump(body))

    def _event(
        self,
        kind: Kind,
        actor: Actor,
        client: Client,
        request: Request,
        status: int,
        now: float,
        *,
        cluster: Cluster | None = None,
        effect: str = "",
        note: str = "",
    ) -> Event:
        return Event(
            eid=uuid7(int(now * 1000), os.urandom(10)),
            kind=kind,
            phase=Phase.COMPLETE,
            ts=utc(now),
            org=self._directory.current.org,
            actor=actor,
            client=client,
            cluster=AuditCluster(cluster.id, cluster.name) if cluster is not None else None,
            req=request,
            decision=Decision(effect) if effect else None,
            resp=Response(status),
            note=note,
        )


@attrs.frozen
class _Credential:
    """An agent's name, empty when only the key was sent, and the secret it showed."""

    name: str
    secret: str = attrs.field(repr=False)


def _parse_form(form: bytes, headers: Headers) -> dict[str, str]:
    """Read the form strictly: RFC 6749 section 3.2, parameters "MUST NOT be included more than once"."""
    types = _values(headers, b"content-type")
    if len(types) != 1 or types[0].partition(b";")[0].strip().lower() != b"application/x-www-form-urlencoded":
        raise _malformed("invalid_request", "the body must be application/x-www-form-urlencoded")
    if len(form) > FORM_BYTES_MAX:
        raise _malformed("invalid_request", f"the body exceeds {FORM_BYTES_MAX} bytes")
    try:
        pairs = parse_qsl(
            form.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=_FIELDS_MAX,
        )
    except ValueError:
        raise _malformed("invalid_request", "the body is not a form") from None  # it may hold a secret
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise _malformed("invalid_request", "a parameter is given more than once")
    # RFC 6749 section 3.2: "Parameters sent without a value MUST be treated as if they were omitted".
    return {name: value for name, value in fields.items() if value}


def _credential(fields: dict[str, str], headers: Headers) -> _Credential | None:
    """RFC 6749 section 2.3: "The client MUST NOT use more than one authentication method in each request"."""
    basic = _basic(headers)
    if basic is None:
        secret = fields.get("client_secret")
        return None if secret is None else _Credential(fields.get("client_id", ""), secret)
    if "client_secret" in fields:
        raise _malformed("invalid_request", "the API key is given twice, in Authorization and in the form")
    if fields.get("client_id", basic.name) != basic.name:
        raise _malformed("invalid_request", "client_id and Authorization name two agents")
    return basic


def _basic(headers: Headers) -> _Credential | None:
    """Read `Authorization: Basic`; both halves are form-encoded (RFC 6749 section 2.3.1)."""
    value = _authorization(headers, b"basic")
    if value is None:
        return None
    try:
        name, separator, secret = base64.b64decode(value, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        separator = ""
    if not separator:
        raise _malformed("invalid_request", "Authorization: Basic must hold name:key in base64")
    return _Credential(unquote_plus(name), unquote_plus(secret))


def _bearer(headers: Headers) -> _Credential | None:
    value = _authorization(headers, b"bearer")
    return None if value is None else _Credential("", value.decode("latin-1"))


def _authorization(headers: Headers, scheme: bytes) -> bytes | None:
    values = _values(headers, b"authorization")
    if len(values) > 1:
        raise _malformed("invalid_request", "Authorization is given more than once")
    if not values:
        return None
    found, _, value = values[0].partition(b" ")
    return value.strip() if found.lower() == scheme else None


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for found, value in headers if found == name]


def _unknown(note: str, agent: Agent | None = None, key: ApiKey | None = None) -> _Refusal:
    return _Refusal(
        401,
        "invalid_client",
        "the API key is not accepted; ask the hub's operator, then run `hawse login` again",
        note,
        agent=agent,
        key=key,
    )


def _malformed(error: str, description: str) -> _Refusal:
    return _Refusal(400, error, description, description, Kind.MALFORMED)


def _actor(agent: Agent, key: ApiKey | None, jti: str = "") -> Actor:
    return Actor(
        ActorType.AGENT,
        agent.name,
        agent.id,
        agent.owner,
        agent.teams,
        f"api-key:{key.id}" if key is not None else "",
        jti,
    )


def _client(headers: Headers, client_ip: str) -> Client:
    return Client(client_ip, text(b", ".join(_values(headers, b"user-agent"))))


def _dump(body: Mapping[str, object]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode("ascii") + b"\n"
