"""The tokens of Hawse: one signed statement each, for one reader, for at most a minute.

    access      hub → agent → hub     this agent may act on this cluster, or ask the hub itself
    relay       hub → relay           act for this agent on your cluster
    hello       relay → hub           this is the relay of that cluster (private_key_jwt)
    assertion   agent → hub           this is that agent (private_key_jwt)
    enrolment   agent → hub           whoever sends this key holds its private half

How a token is read. The header must name exactly `alg`, `typ` and `kid`; that leaves no room for `crit`,
`jwk`, `jku`, `x5u`, `b64` or whatever is invented next. The `kid` is looked up in a dictionary of keys that
we hold; the key knows its one algorithm and the header must agree. Only then is the signature checked, by
PyJWT. Claims are then checked here and not by PyJWT, because it takes the time from the system's clock and
turns "exp" into an integer from whatever it finds; `now` is an argument of every function here and a time
must already be an integer. A claim that is required and absent, of another type, or a list where one string
belongs is a refusal, never a default.

`typ`, `iss` and `aud` are compared whole. The kinds differ in them, so that none can stand in
for another.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable

import attrs
import jwt

from auth.impersonation import AGENT_ID_KEY, SESSION_KEY
from auth.jws import Claims as Claims
from auth.jws import TokenError as TokenError
from auth.jws import take_apart, verified_payload
from auth.keys import KeySet, PublicKey, SigningKey
from auth.principal import USER_PREFIX, IdentityError, Principal, check_groups, check_user, slug

LIFETIME_S = 60
# How far ahead of ours the issuer's clock may be.
FUTURE_MAX_S = 5.0
# Between two machines that keep time by themselves (protocol of the relay's hello, direct mode).
DEFAULT_LEEWAY_S = 5.0

ACCESS_TYPE = "at+jwt"
RELAY_TYPE = "relay+jwt"
HELLO_TYPE = "relay-hello+jwt"
# The explicit type that the revision of RFC 7523 gives to a client's assertion.
ASSERTION_TYPE = "client-authentication+jwt"
ENROLMENT_TYPE = "enrolment+jwt"

_HEADER_MEMBERS = {"alg", "typ", "kid"}
_TEXT = re.compile(r"[\x21-\x7e]{1,256}")
_JWS = jwt.PyJWS(algorithms=["EdDSA"])


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


# The hash is kept: the claims are the key of what is made of them once.
@attrs.frozen(cache_hash=True)
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


@attrs.frozen
class AssertionClaims:
    """What a verified assertion states; whoever verified it remembers `jti` until `expires_at`."""

    agent: str
    kid: str
    jti: str
    issued_at: int
    expires_at: int


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
    return _sign(
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
    _match(claims, issuer=issuer, audience=audience)
    issued_at, expires_at = _check_times(claims, now, leeway_s=0.0)
    if _text(claims, "org") != org:
        raise TokenError("the token is for another organisation")
    subject = _text(claims, "sub")
    if not subject.startswith(USER_PREFIX):
        raise TokenError("the token's subject is not an agent")
    try:
        principal = Principal(
            agent_id=_text(claims, "agent"),
            name=subject.removeprefix(USER_PREFIX),
            org=org,
            teams=_texts(claims, "teams"),
        )
    except IdentityError as exc:
        raise TokenError(f"the token's identity is refused: {exc}") from exc
    return AccessClaims(principal, cluster, _text(claims, "sid"), _text(claims, "jti"), issued_at, expires_at)


def issue_relay(
    key: SigningKey, *, issuer: str, cluster_id: str, principal: Principal, session: str, jti: str, now: float
) -> str:
    """Mint a relay token: the hub's word to one cluster's relay that an agent acts."""
    return _sign(
        key,
        RELAY_TYPE,
        now,
        {
            "iss": issuer,
            "aud": cluster_audience(cluster_id),
            "sub": principal.user,
            "groups": list(principal.groups),
            "ext": {AGENT_ID_KEY: principal.agent_id, SESSION_KEY: session},
            "jti": jti,
        },
    )


def verify_relay(
    token: str, keys: KeySet, *, issuer: str, cluster_id: str, now: float, leeway_s: float = DEFAULT_LEEWAY_S
) -> RelayClaims:
    """Verify a relay token at the relay; raises TokenError, also for an identity that must not act.

    `now` is the hub's clock where the relay knows it, else its own.
    """
    claims, _ = open_signed(token, keys.get, RELAY_TYPE)
    if claims.get("aud") != cluster_audience(cluster_id) and claims.get("iss") == issuer:
        # Its own hub's word, and so safe to repeat: a URL or an address leads to the wrong relay.
        raise TokenError(
            f"the token is for {_text(claims, 'aud')}, this relay is of cluster {cluster_id}: "
            "the cluster's relay URL leads to the relay of another"
        )
    _match(claims, issuer=issuer, audience=cluster_audience(cluster_id))
    issued_at, expires_at = _check_times(claims, now, leeway_s=leeway_s)
    extra = claims.get("ext")
    if not isinstance(extra, dict):
        raise TokenError('the token\'s claim "ext" is missing or not an object')
    try:
        user = check_user(_text(claims, "sub"))
        groups = check_groups(_texts(claims, "groups"))
    except IdentityError as exc:
        raise TokenError(f"the token's identity is refused: {exc}") from exc
    return RelayClaims(
        user,
        groups,
        _text(extra, AGENT_ID_KEY),
        _text(extra, SESSION_KEY),
        _text(claims, "jti"),
        issued_at,
        expires_at,
    )


def issue_hello(
    key: SigningKey, *, cluster_id: str, hub_url: str, instance: str, jti: str, now: float
) -> str:
    """Sign a relay's hello to its hub (RFC 7523: issuer and subject are the client itself)."""
    party = cluster_audience(cluster_id)
    claims: dict[str, object] = {"iss": party, "sub": party, "aud": hub_url, "instance": instance, "jti": jti}
    return _sign(key, HELLO_TYPE, now, claims)


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
    claims, kid, owner = _open_owned(token, find_key, HELLO_TYPE)
    # The cluster is the key's owner; what the token says of itself must agree with it.
    if claims.get("iss") != cluster_audience(owner):
        raise TokenError(
            "the relay's key was given to another cluster than the one it says it is of: "
            "its cluster_id and its private_key are not of one enrolment"
        )
    _match(claims, issuer=cluster_audience(owner), audience=hub_url)
    if _text(claims, "sub") != cluster_audience(owner):
        raise TokenError("the token's subject is not its issuer")
    issued_at, expires_at = _check_times(claims, now, leeway_s=leeway_s)
    return HelloClaims(owner, _text(claims, "instance"), kid, _text(claims, "jti"), issued_at, expires_at)


def issue_assertion(key: SigningKey, *, agent: str, hub_url: str, jti: str, now: float) -> str:
    """Sign an agent's assertion for its hub (RFC 7523: issuer and subject are the client itself)."""
    claims: dict[str, object] = {"iss": agent, "sub": agent, "aud": _origin(hub_url), "jti": jti}
    return _sign(key, ASSERTION_TYPE, now, claims)


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
    claims, kid, owner = _open_owned(token, find_key, ASSERTION_TYPE)
    # The agent is the key's owner; what the token says of itself must agree with it.
    _match(claims, issuer=owner, audience=_origin(hub_url))
    if _text(claims, "sub") != owner:
        raise TokenError("the token's subject is not its issuer")
    issued_at, expires_at = _check_times(claims, now, leeway_s=leeway_s)
    return AssertionClaims(owner, kid, _text(claims, "jti"), issued_at, expires_at)


def issue_enrolment(key: SigningKey, *, hub_url: str, jti: str, now: float) -> str:
    """Sign the proof that whoever registers a key holds its private half."""
    claims: dict[str, object] = {"iss": key.kid, "sub": key.kid, "aud": _origin(hub_url), "jti": jti}
    return _sign(key, ENROLMENT_TYPE, now, claims)


def verify_enrolment(
    token: str, key: PublicKey, *, hub_url: str, now: float, leeway_s: float = DEFAULT_LEEWAY_S
) -> None:
    """Verify that a key's holder wants it registered at this hub; raises TokenError.

    A second use is stopped by the code that comes with it, which is good once.
    """
    claims, _ = open_signed(token, lambda kid: key if kid == key.kid else None, ENROLMENT_TYPE)
    _match(claims, issuer=key.kid, audience=_origin(hub_url))
    _check_times(claims, now, leeway_s=leeway_s)


def _origin(hub_url: str) -> str:
    # Agents write a hub's URL without the port that https has anyway, its operator perhaps with it.
    return hub_url.removesuffix(":443")


def _access_audience(org: str, cluster: str | None) -> str:
    if cluster is None:
        return hub_audience(org)
    slug("cluster name", cluster)
    return access_audience(org, cluster)


def _open_owned(
    token: str, find_key: Callable[[str], tuple[str, PublicKey] | None], kind: str
) -> tuple[Claims, str, str]:
    """See `open_signed`; for keys that have owners, whose is the third that is returned."""
    owner = ""

    def find(kid: str) -> PublicKey | None:
        nonlocal owner
        found = find_key(kid)
        if found is None:
            return None
        owner, key = found
        return key

    claims, kid = open_signed(token, find, kind)
    return claims, kid, owner


def sign(key: SigningKey, kind: str, claims: Claims) -> str:
    """Sign claims as they are, under a `typ`: for what is no token with a lifetime."""
    data = json.dumps(dict(claims), separators=(",", ":")).encode("utf-8")
    return _JWS.encode(data, key.key, algorithm="EdDSA", headers={"typ": kind, "kid": key.kid})


def _sign(key: SigningKey, kind: str, now: float, claims: dict[str, object]) -> str:
    issued_at = math.floor(now)
    return sign(key, kind, {**claims, "iat": issued_at, "nbf": issued_at, "exp": issued_at + LIFETIME_S})


def open_signed(token: str, find: Callable[[str], PublicKey | None], kind: str) -> tuple[Claims, str]:
    """Check form, header and signature; return the claims, unchecked but authentic, and the `kid`.

    Raises TokenError.
    """
    header, _ = take_apart(token)
    if set(header) != _HEADER_MEMBERS:
        raise TokenError("the token's header must have alg, typ and kid and nothing else")
    kid = header["kid"]
    if not isinstance(kid, str):
        raise TokenError("the token's kid is not a string")
    key = find(kid)
    if key is None:
        raise TokenError("the token is signed by a key that is not known here")
    if header["alg"] != key.alg:
        raise TokenError(f"the token's algorithm is not {key.alg}, the one of its key")
    if header["typ"] != kind:
        raise TokenError(f"the token's typ is not {kind}")
    return verified_payload(token, key.alg, key.key), kid


def _match(claims: Claims, *, issuer: str, audience: str) -> None:
    if _text(claims, "iss") != issuer:
        raise TokenError("the token is from another issuer")
    if _text(claims, "aud") != audience:
        raise TokenError("the token is for another audience")


def _check_times(claims: Claims, now: float, *, leeway_s: float) -> tuple[int, int]:
    issued_at, not_before, expires_at = (_time(claims, name) for name in ("iat", "nbf", "exp"))
    if not 0 < expires_at - issued_at <= LIFETIME_S:
        raise TokenError(f"the token's lifetime of {expires_at - issued_at} s is not within {LIFETIME_S} s")
    ahead = max(issued_at, not_before) - now
    if ahead > max(leeway_s, FUTURE_MAX_S):
        raise TokenError(
            f"the token is from {ahead:.0f} s in the future by this machine's clock: "
            f"the clocks differ, allowed are {max(leeway_s, FUTURE_MAX_S):.0f} s",
            skew_s=ahead,
        )
    late = now - expires_at
    if late >= leeway_s:
        raise TokenError(
            f"the token expired {late:.0f} s ago by this machine's clock (allowed are {leeway_s:.0f} s): "
            "it is old, or the clocks differ",
            skew_s=issued_at - now,
        )
    return issued_at, expires_at


def _time(claims: Claims, name: str) -> int:
    value = claims.get(name)
    # bool is an int to Python; a float such as 1e400 is no time.
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise TokenError(f'the token\'s claim "{name}" is missing or not an integer time')
    return value


def _text(claims: Claims, name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or _TEXT.fullmatch(value) is None:
        raise TokenError(f'the token\'s claim "{name}" is missing or not a plain string')
    return value


def _texts(claims: Claims, name: str) -> tuple[str, ...]:
    value = claims.get(name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TokenError(f'the token\'s claim "{name}" is missing or not a list of strings')
    return tuple(value)
