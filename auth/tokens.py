"""The tokens of Hawse: one signed statement each, for one reader, for at most a minute.

    access   hub → agent → hub     this agent may act on this cluster
    relay    hub → relay           act for this agent on your cluster
    hello    relay → hub           this is the relay of that cluster (private_key_jwt)

How a token is read. The header must name exactly `alg`, `typ` and `kid`; that leaves no room for `crit`,
`jwk`, `jku`, `x5u`, `b64` or whatever is invented next. The `kid` is looked up in a dictionary of keys that
we hold; the key knows its one algorithm and the header must agree. Only then is the signature checked, by
PyJWT. Claims are then checked here and not by PyJWT, because it takes the time from the system's clock and
turns "exp" into an integer from whatever it finds; `now` is an argument of every function here and a time
must already be an integer. A claim that is required and absent, of another type, or a list where one string
belongs is a refusal, never a default.

`typ`, `iss` and `aud` are compared whole. The three kinds differ in all of them, so that none can stand in
for another.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

import attrs
import jwt

from auth.impersonation import AGENT_ID_KEY, SESSION_KEY
from auth.keys import KeySet, PublicKey, SigningKey
from auth.principal import USER_PREFIX, IdentityError, Principal, check_groups, check_user, slug

LIFETIME_S = 60
# How far ahead of ours the issuer's clock may be.
FUTURE_MAX_S = 5.0
# Between two machines that keep time by themselves (protocol of the relay's hello, direct mode).
DEFAULT_LEEWAY_S = 5.0
# A token travels in a header or as a tunnel context (at most 8 KiB); ours are below 1 KiB.
TOKEN_LENGTH_MAX = 8192

ACCESS_TYPE = "at+jwt"
RELAY_TYPE = "relay+jwt"
HELLO_TYPE = "relay-hello+jwt"

_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_HEADER_MEMBERS = {"alg", "typ", "kid"}
_TEXT = re.compile(r"[\x21-\x7e]{1,256}")
_JWS = {"EdDSA": jwt.PyJWS(algorithms=["EdDSA"]), "ES256": jwt.PyJWS(algorithms=["ES256"])}

Claims: TypeAlias = Mapping[str, object]


class TokenError(Exception):
    """A token that is not accepted; the message says why and never holds the token.

    `skew_s` is set when the times do not fit: how far the token's clock seems to be ahead of ours (negative:
    behind, or the token is simply old).
    """

    def __init__(self, reason: str, *, skew_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.skew_s = skew_s


@attrs.frozen
class AccessClaims:
    """What a verified access token states."""

    principal: Principal
    cluster: str
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


def access_audience(org: str, cluster: str) -> str:
    """Return the audience of an access token for a cluster, by its name."""
    return f"urn:hawse:{org}:cluster:{cluster}"


def cluster_audience(cluster_id: str) -> str:
    """Return the audience of a relay token, and the issuer of a hello: the cluster, by its id."""
    return f"urn:hawse:cluster:{cluster_id}"


def issue_access(
    key: SigningKey, *, issuer: str, principal: Principal, cluster: str, sid: str, jti: str, now: float
) -> str:
    """Mint an access token for one agent on one cluster; raises IdentityError for a bad cluster name."""
    slug("cluster name", cluster)
    return _sign(
        key,
        ACCESS_TYPE,
        now,
        {
            "iss": issuer,
            "aud": access_audience(principal.org, cluster),
            "sub": principal.user,
            "agent": principal.agent_id,
            "org": principal.org,
            "teams": list(principal.teams),
            "sid": sid,
            "jti": jti,
        },
    )


def verify_access(
    token: str, keys: KeySet, *, issuer: str, org: str, cluster: str, now: float
) -> AccessClaims:
    """Verify an access token that this hub issued, by its own clock; raises TokenError."""
    claims, _ = open_signed(token, keys.get, ACCESS_TYPE)
    _match(claims, issuer=issuer, audience=access_audience(org, cluster))
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
    owner = ""

    def find(kid: str) -> PublicKey | None:
        nonlocal owner
        found = find_key(kid)
        if found is None:
            return None
        owner, key = found
        return key

    claims, kid = open_signed(token, find, HELLO_TYPE)
    # The cluster is the key's owner; what the token says of itself must agree with it.
    _match(claims, issuer=cluster_audience(owner), audience=hub_url)
    if _text(claims, "sub") != cluster_audience(owner):
        raise TokenError("the token's subject is not its issuer")
    issued_at, expires_at = _check_times(claims, now, leeway_s=leeway_s)
    return HelloClaims(owner, _text(claims, "instance"), kid, _text(claims, "jti"), issued_at, expires_at)


def sign(key: SigningKey, kind: str, claims: Claims) -> str:
    """Sign claims as they are, under a `typ`: for what is no token with a lifetime."""
    data = json.dumps(dict(claims), separators=(",", ":")).encode("utf-8")
    return _JWS["EdDSA"].encode(data, key.key, algorithm="EdDSA", headers={"typ": kind, "kid": key.kid})


def _sign(key: SigningKey, kind: str, now: float, claims: dict[str, object]) -> str:
    issued_at = math.floor(now)
    return sign(key, kind, {**claims, "iat": issued_at, "nbf": issued_at, "exp": issued_at + LIFETIME_S})


def open_signed(token: str, find: Callable[[str], PublicKey | None], kind: str) -> tuple[Claims, str]:
    """Check form, header and signature; return the claims, unchecked but authentic, and the `kid`.

    Raises TokenError.
    """
    if len(token) > TOKEN_LENGTH_MAX:
        raise TokenError(f"the token is longer than {TOKEN_LENGTH_MAX} characters")
    compact = _COMPACT.fullmatch(token)
    if compact is None:
        raise TokenError("not a signed token in compact form")
    header = _parse_object(_decode_segment(compact.group(1)), "header")
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
    try:
        payload = _JWS[key.alg].decode(token, key.key, algorithms=[key.alg])
    except jwt.InvalidTokenError as exc:
        raise TokenError("the token's signature is not valid") from exc
    return _parse_object(payload, "payload"), kid


def _decode_segment(segment: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    except ValueError as exc:
        raise TokenError("not a signed token in compact form") from exc


def _parse_object(data: bytes, part: str) -> dict[str, object]:
    try:
        value = json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise TokenError(f"the token's {part} is not valid JSON with unique members") from exc
    if not isinstance(value, dict):
        raise TokenError(f"the token's {part} is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # Of two members with one name each reader picks its own: two kids could be two keys.
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members


def _refuse_constant(name: str) -> object:
    raise ValueError(name)


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
