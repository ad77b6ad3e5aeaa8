"""The tokens of Hawse: one signed statement each, for one reader, for at most a minute.

    access      hub → agent → hub     this agent may act on this cluster, or ask the hub itself
    relay       hub → relay           act for this agent on your cluster
    inquiry     hub → relay           state which cluster you are in, and how its API server is
    hello       relay → hub           this is the relay of that cluster (private_key_jwt)
    assertion   agent → hub           this is that agent (private_key_jwt)
    enrolment   agent → hub           whoever sends this key holds its private half

How each is signed and read back is in auth.signed. `typ`, `iss` and `aud` are compared whole. The kinds
differ in them, so that none can stand in for another.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

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
# The explicit type that the revision of RFC 7523 gives to a client's assertion.
ASSERTION_TYPE = "client-authentication+jwt"
ENROLMENT_TYPE = "enrolment+jwt"


@attrs.frozen
class AccessClaims:
    """What a verified access token states."""

    principal: Principal
    cluster: str | None
    """None for the hub itself: the list of an agent's clusters."""
    sid: str
    jti: str
    issued_at: int
    expires_at: int


# By themselves the key of what is made of them once: those of a token are verified once, and kept.
@attrs.frozen(eq=False)
class RelayClaims:
    """What a verified relay token states."""

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
    """What a verified hello states; whoever verified it remembers `jti` until `expires_at`."""

    cluster_id: str
    instance: str
    kid: str
    jti: str
    issued_at: int
    expires_at: int
    hub_time: str = ""
    """Of a time that the hub told; whoever verified the claims checks that it is the one of `issued_at`."""


@attrs.frozen
class AssertionClaims:
    """What a verified assertion states; whoever verified it remembers `jti` until `expires_at`."""

    agent: str
    kid: str
    jti: str
    issued_at: int
    expires_at: int
    hub_time: str = ""
    """Of a time that the hub told; whoever verified the claims checks that it is the one of `issued_at`."""


@attrs.frozen
class EnrolmentClaims:
    """What a verified proof states of itself; the key is known to whoever verified it."""

    issued_at: int
    hub_time: str = ""
    """Of a time that the hub told; whoever verified the claims checks that it is the one of `issued_at`."""


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
    """Mint an access token for one agent on one cluster, or (None) for asking the hub itself.

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

    `cluster` is the one that it must be for, None for the hub itself.
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

    With a `nonce` it is good in the tunnel session of that nonce alone, and without one in none: in direct
    mode, and for relays from before nonces.
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
        # Its own hub's word, and so safe to repeat: a URL or an address leads to the wrong relay.
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
    """Raise TokenError where a hub whose key is trusted goes by another name than the relay knows.

    That name is not repeated: it may be of another hub with the same key.
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
            "the token names no session: the hub is older than this relay: upgrade the hub first"
        )
    raise TokenError("the token is for another session than this one")


def issue_inquiry(key: SigningKey, *, issuer: str, cluster_id: str, jti: str, now: float) -> str:
    """Mint an inquiry: the hub asks one cluster's relay about itself, for no agent."""
    return sign_for_a_minute(
        key, INQUIRY_TYPE, now, {"iss": issuer, "aud": cluster_audience(cluster_id), "jti": jti}
    )


def verify_inquiry(
    token: str, keys: KeySet, *, issuer: str, cluster_id: str, now: float, leeway_s: float = DEFAULT_LEEWAY_S
) -> None:
    """Verify an inquiry at the relay; raises TokenError. It may come again: it only has the relay answer."""
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

    With the `hub_time` that the hub has told (auth.hubtime), `now` is the time in that.
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
    """Verify a relay's hello at the hub; raises TokenError, with `skew_s` when the relay's clock is off.

    `find_key` maps a `kid` to the cluster id that the key belongs to and the key. The caller refuses a `jti`
    that it has seen before.
    """
    claims, kid, owner = open_owned(token, find_key, HELLO_TYPE)
    # The cluster is the key's owner; what the token says of itself must agree with it.
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


def issue_assertion(
    key: SigningKey, *, agent: str, hub_url: str, jti: str, now: float, hub_time: str = ""
) -> str:
    """Sign an agent's assertion for its hub (RFC 7523: issuer and subject are the client itself).

    With the `hub_time` that the hub has told (auth.hubtime), `now` is the time in that.
    """
    claims: dict[str, object] = {"iss": agent, "sub": agent, "aud": _origin(hub_url), "jti": jti}
    if hub_time:
        claims["hub_time"] = hub_time
    return sign_for_a_minute(key, ASSERTION_TYPE, now, claims)


def verify_assertion(
    token: str,
    find_key: Callable[[str], tuple[str, PublicKey] | None],
    *,
    hub_url: str,
    now: float,
    leeway_s: float = DEFAULT_LEEWAY_S,
) -> AssertionClaims:
    """Verify an agent's assertion at the hub; raises TokenError, with `skew_s` when the agent's clock is off.

    `find_key` maps a `kid` to the name of the agent that the key belongs to and the key. The caller refuses a
    `jti` that it has seen before.
    """
    claims, kid, owner = open_owned(token, find_key, ASSERTION_TYPE)
    # The agent is the key's owner; what the token says of itself must agree with it.
    check_parties(claims, issuer=owner, audience=_origin(hub_url))
    if text_claim(claims, "sub") != owner:
        raise TokenError("the token's subject is not its issuer")
    issued_at, expires_at = check_times(claims, now, leeway_s=leeway_s)
    return AssertionClaims(owner, kid, text_claim(claims, "jti"), issued_at, expires_at, _hub_time(claims))


def issue_enrolment(key: SigningKey, *, hub_url: str, jti: str, now: float, hub_time: str = "") -> str:
    """Sign the proof that whoever registers a key holds its private half.

    With the `hub_time` that the hub has told (auth.hubtime), `now` is the time in that.
    """
    claims: dict[str, object] = {"iss": key.kid, "sub": key.kid, "aud": _origin(hub_url), "jti": jti}
    if hub_time:
        claims["hub_time"] = hub_time
    return sign_for_a_minute(key, ENROLMENT_TYPE, now, claims)


def verify_enrolment(
    token: str, key: PublicKey, *, hub_url: str, now: float, leeway_s: float = DEFAULT_LEEWAY_S
) -> EnrolmentClaims:
    """Verify that a key's holder wants it registered at this hub; raises TokenError.

    A second use is stopped by the code that comes with it, which is good once.
    """
    claims, _ = open_signed(token, lambda kid: key if kid == key.kid else None, ENROLMENT_TYPE)
    check_parties(claims, issuer=key.kid, audience=_origin(hub_url))
    issued_at, _ = check_times(claims, now, leeway_s=leeway_s)
    return EnrolmentClaims(issued_at, _hub_time(claims))


def _hub_time(claims: Claims) -> str:
    return text_claim(claims, "hub_time") if "hub_time" in claims else ""


def _origin(hub_url: str) -> str:
    # Agents write a hub's URL without the port that https has anyway, its operator perhaps with it.
    return hub_url.removesuffix(":443")


def _access_audience(org: str, cluster: str | None) -> str:
    if cluster is None:
        return hub_audience(org)
    slug("cluster name", cluster)
    return access_audience(org, cluster)
