"""Hawse's tokens. Each is one signed statement for one reader, valid for at most a minute.

    access      hub → agent → hub     this agent may act on this cluster, or query the hub itself
    relay       hub → relay           act for this agent on your cluster
    inquiry     hub → relay           state which cluster you are in, and how its API server is
    hello       relay → hub           this is the relay of that cluster (private_key_jwt)
    assertion   agent → hub           this is that agent (private_key_jwt)
    enrolment   agent → hub           the sender of this key holds its private half

auth.signed signs and verifies them. `typ`, `iss` and `aud` are compared as whole strings. They differ between
the kinds, so that no kind can be used as another.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from auth.assertion import ASSERTION_TYPE, origin
from auth.impersonation import AGENT_ID_KEY, SESSION_KEY
from auth.jws import Claims, TokenError
from auth.keys import KeySet, PublicKey, SigningKey
from auth.principal import USER_PREFIX, IdentityError, Principal, check_groups, check_user, slug
from auth.signed import (
    DEFAULT_LEEWAY_S,
    check_parties,
    check_times,
    open_owned,
    open_signed,
    sign_for_a_minute,
    text_claim,
    texts_claim,
)

ACCESS_TYPE = "at+jwt"
RELAY_TYPE = "relay+jwt"
INQUIRY_TYPE = "relay-inquiry+jwt"
HELLO_TYPE = "relay-hello+jwt"
ENROLMENT_TYPE = "enrolment+jwt"


@attrs.frozen
class AccessClaims:
    """The claims of a verified access token."""

    principal: Principal
    cluster: str | None
    """None for the hub itself: the list of an agent's clusters."""
    sid: str
    jti: str
    issued_at: int
    expires_at: int


# Compared by identity, as a memo's key: a token is verified once, and its claims are kept.
@attrs.frozen(eq=False)
class RelayClaims:
    """The claims of a verified relay token."""

    user: str
    groups: tuple[str, ...]
    agent_id: str
    session: str
    jti: str
    issued_at: int
    expires_at: int

    @property
    def extra(self) -> dict[str, str]:
        """The extras to impersonate with."""
        return {AGENT_ID_KEY: self.agent_id, SESSION_KEY: self.session}


@attrs.frozen
class HelloClaims:
    """The claims of a verified hello. The verifier keeps `jti` until `expires_at`, and refuses to see it
    twice.
    """

    cluster_id: str
    instance: str
    kid: str
    jti: str
    issued_at: int
    expires_at: int
    hub_time: str = ""
    """Set if the hub gave the time; the verifier checks that it is the time in `issued_at`."""


@attrs.frozen
class AssertionClaims:
    """The claims of a verified assertion. The verifier keeps `jti` until `expires_at`, and refuses to see it
    twice.
    """

    agent: str
    kid: str
    jti: str
    issued_at: int
    expires_at: int
    hub_time: str = ""
    """Set if the hub gave the time; the verifier checks that it is the time in `issued_at`."""


@attrs.frozen
class EnrolmentClaims:
    """The claims of a verified proof; the verifier knows the key."""

    issued_at: int
    hub_time: str = ""
    """Set if the hub gave the time; the verifier checks that it is the time in `issued_at`."""


def hub_audience(org: str) -> str:
    """Return the audience of an access token for the hub itself."""
    return f"urn:hawse:{org}:hub"


def access_audience(org: str, cluster: str) -> str:
    """Return the audience of an access token for a cluster, by its name."""
    return f"urn:hawse:{org}:cluster:{cluster}"


def cluster_audience(cluster_id: str) -> str:
    """Return the audience of a relay token, and the issuer of a hello: the cluster, by its id."""
    return f"urn:hawse:cluster:{cluster_id}"


def issue_access(
    key: SigningKey,
    *,
    issuer: str,
    principal: Principal,
    cluster: str | None,
    sid: str,
    jti: str,
    now: float,
) -> str:
    """Mint an access token for one agent on one cluster, or (None) for the hub itself.

    Raises IdentityError for a bad cluster name.
    """
    return sign_for_a_minute(
        key,
        ACCESS_TYPE,
        now,
        {
            "iss": issuer,
            "aud": _access_audience(principal.org, cluster),
            "sub": principal.user,
            "agent": principal.agent_id,
            "org": principal.org,
            "teams": list(principal.teams),
            "sid": sid,
            "jti": jti,
        },
    )


def verify_access(
    token: str, keys: KeySet, *, issuer: str, org: str, cluster: str | None, now: float
) -> AccessClaims:
    """Verify an access token that this hub issued, by its own clock; raises TokenError.

    `cluster` is the required cluster, or None for the hub itself.
    """
    claims, _ = open_signed(token, keys.get, ACCESS_TYPE)
    audience = hub_audience(org) if cluster is None else access_audience(org, cluster)
    check_parties(claims, issuer=issuer, audience=audience)
    issued_at, expires_at = check_times(claims, now, leeway_s=0.0)
    if text_claim(claims, "org") != org:
        raise TokenError("the token is for another organisation")
    subject = text_claim(claims, "sub")
    if not subject.startswith(USER_PREFIX):
        raise TokenError("the token's subject is not an agent")
    try:
        principal = Principal(
            agent_id=text_claim(claims, "agent"),
            name=subject.removeprefix(USER_PREFIX),
            org=org,
            teams=texts_claim(claims, "teams"),
        )
    except IdentityError as exc:
        raise TokenError(f"the token's identity is refused: {exc}") from exc
    return AccessClaims(
        principal, cluster, text_claim(claims, "sid"), text_claim(claims, "jti"), issued_at, expires_at
    )


def issue_relay(
    key: SigningKey,
    *,
    issuer: str,
    cluster_id: str,
    principal: Principal,
    session: str,
    jti: str,
    now: float,
    nonce: str = "",
) -> str:
    """Mint a relay token: it tells one cluster's relay which agent acts.

    With a `nonce` it is valid only in the tunnel session of that nonce. Without one it is valid in no
    session: for direct mode, and for relays that predate nonces.
    """
    claims: dict[str, object] = {
        "iss": issuer,
        "aud": cluster_audience(cluster_id),
        "sub": principal.user,
        "groups": list(principal.groups),
        "ext": {AGENT_ID_KEY: principal.agent_id, SESSION_KEY: session},
        "jti": jti,
    }
    if nonce:
        claims["nonce"] = nonce
    return sign_for_a_minute(key, RELAY_TYPE, now, claims)


def verify_relay(
    token: str,
    keys: KeySet,
    *,
    issuer: str,
    cluster_id: str,
    now: float,
    nonce: str = "",
    leeway_s: float = DEFAULT_LEEWAY_S,
) -> RelayClaims:
    """Verify a relay token at the relay; raises TokenError, also for an identity that must not act.

    In a tunnel, `nonce` is the session's and `now` the hub's clock (auth.hubclock). In direct mode there is
    no nonce, and `now` is the relay's own clock.
    """
    claims, _ = open_signed(token, keys.get, RELAY_TYPE)
    if claims.get("aud") != cluster_audience(cluster_id) and claims.get("iss") == issuer:
        # The relay's own hub signed this text, so it is safe to quote: a URL or an address leads to the wrong
        # relay.
        raise TokenError(
            f"the token is for {text_claim(claims, 'aud')}, this relay is of cluster {cluster_id}: "
            "the cluster's relay URL leads to the relay of another"
        )
    _check_hub(claims, issuer)
    check_parties(claims, issuer=issuer, audience=cluster_audience(cluster_id))
    _check_nonce(claims, nonce)
    issued_at, expires_at = check_times(claims, now, leeway_s=leeway_s)
    extra = claims.get("ext")
    if not isinstance(extra, dict):
        raise TokenError('the token\'s claim "ext" is missing or not an object')
    try:
        user = check_user(text_claim(claims, "sub"))
        groups = check_groups(texts_claim(claims, "groups"))
    except IdentityError as exc:
        raise TokenError(f"the token's identity is refused: {exc}") from exc
    return RelayClaims(
        user,
        groups,
        text_claim(extra, AGENT_ID_KEY),
        text_claim(extra, SESSION_KEY),
        text_claim(claims, "jti"),
        issued_at,
        expires_at,
    )


def _check_hub(claims: Claims, issuer: str) -> None:
    """Raise TokenError if a hub with a trusted key uses another URL than the relay knows.

    The message does not quote that URL: it may belong to another hub with the same key.
    """
    if text_claim(claims, "iss") != issuer:
        raise TokenError(f"the hub's public_url is not {issuer}: set this relay's hub.url to the hub's")


def _check_nonce(claims: Claims, nonce: str) -> None:
    stated = text_claim(claims, "nonce") if "nonce" in claims else ""
    if stated == nonce:
        return
    if not nonce:
        raise TokenError("the token is for a tunnel's session, and this relay is in direct mode")
    if not stated:
        raise TokenError(
            "the token names no session: the hub is older than this relay; upgrade the hub first"
        )
    raise TokenError("the token is for another session")


def issue_inquiry(key: SigningKey, *, issuer: str, cluster_id: str, jti: str, now: float) -> str:
    """Mint an inquiry: the hub asks one cluster's relay about itself, for no agent."""
    return sign_for_a_minute(
        key, INQUIRY_TYPE, now, {"iss": issuer, "aud": cluster_audience(cluster_id), "jti": jti}
    )


def verify_inquiry(
    token: str, keys: KeySet, *, issuer: str, cluster_id: str, now: float, leeway_s: float = DEFAULT_LEEWAY_S
) -> None:
    """Verify an inquiry at the relay; raises TokenError. Replays are harmless: they get the same answer."""
    claims, _ = open_signed(token, keys.get, INQUIRY_TYPE)
    _check_hub(claims, issuer)
    check_parties(claims, issuer=issuer, audience=cluster_audience(cluster_id))
    check_times(claims, now, leeway_s=leeway_s)


def issue_hello(
    key: SigningKey,
    *,
    cluster_id: str,
    hub_url: str,
    instance: str,
    jti: str,
    now: float,
    hub_time: str = "",
) -> str:
    """Sign a relay's hello to its hub (RFC 7523: issuer and subject are the client itself).

    With a `hub_time` from the hub (auth.hubtime), `now` is the time in it.
    """
    party = cluster_audience(cluster_id)
    claims: dict[str, object] = {"iss": party, "sub": party, "aud": hub_url, "instance": instance, "jti": jti}
    if hub_time:
        claims["hub_time"] = hub_time
    return sign_for_a_minute(key, HELLO_TYPE, now, claims)


def verify_hello(
    token: str,
    find_key: Callable[[str], tuple[str, PublicKey] | None],
    *,
    hub_url: str,
    now: float,
    leeway_s: float = DEFAULT_LEEWAY_S,
) -> HelloClaims:
    """Verify a relay's hello at the hub; raises TokenError, with `skew_s` if the relay's clock is off.

    `find_key` maps a `kid` to the cluster id that the key belongs to and the key. The caller refuses a
    repeated `jti`.
    """
    claims, kid, owner = open_owned(token, find_key, HELLO_TYPE)
    # The key's owner determines the cluster; the token's own claims must agree with it.
    if claims.get("iss") != cluster_audience(owner):
        raise TokenError(
            "the relay's key is of another cluster than its cluster_id: apply both as one run of "
            "`hawse admin cluster key NAME` prints them"
        )
    check_parties(claims, issuer=cluster_audience(owner), audience=hub_url)
    if text_claim(claims, "sub") != cluster_audience(owner):
        raise TokenError("the token's subject is not its issuer")
    issued_at, expires_at = check_times(claims, now, leeway_s=leeway_s)
    return HelloClaims(
        owner,
        text_claim(claims, "instance"),
        kid,
        text_claim(claims, "jti"),
        issued_at,
        expires_at,
        _hub_time(claims),
    )


def verify_assertion(
    token: str,
    find_key: Callable[[str], tuple[str, PublicKey] | None],
    *,
    hub_url: str,
    now: float,
    leeway_s: float = DEFAULT_LEEWAY_S,
) -> AssertionClaims:
    """Verify an agent's assertion at the hub; raises TokenError, with `skew_s` if the agent's clock is off.

    `find_key` maps a `kid` to the name of the agent that the key belongs to and the key. The caller refuses a
    repeated `jti`.
    """
    claims, kid, owner = open_owned(token, find_key, ASSERTION_TYPE)
    # The key's owner determines the agent; the token's own claims must agree with it.
    check_parties(claims, issuer=owner, audience=origin(hub_url))
    if text_claim(claims, "sub") != owner:
        raise TokenError("the token's subject is not its issuer")
    issued_at, expires_at = check_times(claims, now, leeway_s=leeway_s)
    return AssertionClaims(owner, kid, text_claim(claims, "jti"), issued_at, expires_at, _hub_time(claims))


def issue_enrolment(key: SigningKey, *, hub_url: str, jti: str, now: float, hub_time: str = "") -> str:
    """Sign the proof that the sender of a key holds its private half.

    With a `hub_time` from the hub (auth.hubtime), `now` is the time in it.
    """
    claims: dict[str, object] = {"iss": key.kid, "sub": key.kid, "aud": origin(hub_url), "jti": jti}
    if hub_time:
        claims["hub_time"] = hub_time
    return sign_for_a_minute(key, ENROLMENT_TYPE, now, claims)


def verify_enrolment(
    token: str, key: PublicKey, *, hub_url: str, now: float, leeway_s: float = DEFAULT_LEEWAY_S
) -> EnrolmentClaims:
    """Verify that a key's holder wants it registered at this hub; raises TokenError.

    The enrolment code that comes with the proof is good once, which prevents a second use.
    """
    claims, _ = open_signed(token, lambda kid: key if kid == key.kid else None, ENROLMENT_TYPE)
    check_parties(claims, issuer=key.kid, audience=origin(hub_url))
    issued_at, _ = check_times(claims, now, leeway_s=leeway_s)
    return EnrolmentClaims(issued_at, _hub_time(claims))


def _hub_time(claims: Claims) -> str:
    return text_claim(claims, "hub_time") if "hub_time" in claims else ""


def _access_audience(org: str, cluster: str | None) -> str:
    if cluster is None:
        return hub_audience(org)
    slug("cluster name", cluster)
    return access_audience(org, cluster)
