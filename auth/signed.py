"""Signing and verification, common to all of Hawse's own tokens.

The header must contain exactly `alg`, `typ` and `kid`. That excludes `crit`, `jwk`, `jku`, `x5u`, `b64` and
future members. The `kid` is looked up among the keys that we hold. The key determines its one algorithm, and
the header must agree. Only then does PyJWT check the signature.

Claims are checked here and not by PyJWT: it takes the time from the system's clock, and converts "exp" to an
integer from any type. Here `now` is an argument of every function, and a time must be an integer already. A
required claim that is absent or of another type is an error, never a default, and so is a list for a string.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable

import jwt

from auth.jws import AudienceError, Claims, TokenError, UnknownKeyError, header_of, verified_payload
from auth.keys import PublicKey, SigningKey

LIFETIME_S = 60
# How far the issuer's clock may be ahead of ours.
FUTURE_MAX_S = 5.0
# Between two machines that keep their own time (the relay's hello, direct mode).
DEFAULT_LEEWAY_S = 5.0

_HEADER_MEMBERS = {"alg", "typ", "kid"}
_TEXT = re.compile(r"[\x21-\x7e]{1,256}")
_JWS = jwt.PyJWS(algorithms=["EdDSA"])


def open_owned(
    token: str, find_key: Callable[[str], tuple[str, PublicKey] | None], kind: str
) -> tuple[Claims, str, str]:
    """Like `open_signed`, for keys with owners; also returns the key's owner."""
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
    """Sign claims unchanged under a `typ`, for statements without a lifetime."""
    data = json.dumps(dict(claims), separators=(",", ":")).encode("utf-8")
    return _JWS.encode(data, key.key, algorithm="EdDSA", headers={"typ": kind, "kid": key.kid})


def sign_for_a_minute(key: SigningKey, kind: str, now: float, claims: dict[str, object]) -> str:
    """Sign claims that are valid from now on for LIFETIME_S."""
    issued_at = math.floor(now)
    return sign(key, kind, {**claims, "iat": issued_at, "nbf": issued_at, "exp": issued_at + LIFETIME_S})


def open_signed(token: str, find: Callable[[str], PublicKey | None], kind: str) -> tuple[Claims, str]:
    """Check form, header and signature; return the claims, authentic but unchecked, and the `kid`.

    Raises TokenError.
    """
    header = header_of(token)
    if set(header) != _HEADER_MEMBERS:
        raise TokenError("the token's header must have alg, typ and kid and nothing else")
    kid = header["kid"]
    if not isinstance(kid, str):
        raise TokenError("the token's kid is not a string")
    key = find(kid)
    if key is None:
        raise UnknownKeyError("the token is signed with a key that is unknown here")
    if header["alg"] != key.alg:
        raise TokenError(f"the token's algorithm is not {key.alg}, the one of its key")
    if header["typ"] != kind:
        raise TokenError(f"the token's typ is not {kind}")
    return verified_payload(token, key.alg, key.key), kid


def check_parties(claims: Claims, *, issuer: str, audience: str) -> None:
    """Compare issuer and audience as whole strings; raises TokenError."""
    if text_claim(claims, "iss") != issuer:
        raise TokenError("the token is from another issuer")
    if text_claim(claims, "aud") != audience:
        raise AudienceError(f"the token is for another audience than {audience}")


def check_times(claims: Claims, now: float, *, leeway_s: float) -> tuple[int, int]:
    """Check that the claims are valid now, and return when they were issued and when they expire; raises
    TokenError.
    """
    issued_at, not_before, expires_at = (time_claim(claims, name) for name in ("iat", "nbf", "exp"))
    if not 0 < expires_at - issued_at <= LIFETIME_S:
        raise TokenError(f"the token's lifetime of {expires_at - issued_at} s is not within {LIFETIME_S} s")
    ahead = max(issued_at, not_before) - now
    if ahead > max(leeway_s, FUTURE_MAX_S):
        raise TokenError(
            f"the token is from {ahead:.0f} s in the future by its verifier's clock: "
            f"the clocks differ, allowed are {max(leeway_s, FUTURE_MAX_S):.0f} s",
            skew_s=ahead,
        )
    late = now - expires_at
    if late >= leeway_s:
        raise TokenError(
            f"the token expired {late:.0f} s ago by its verifier's clock (allowed are {leeway_s:.0f} s): "
            "it is old, or the clocks differ",
            skew_s=issued_at - now,
        )
    return issued_at, expires_at


def time_claim(claims: Claims, name: str) -> int:
    """A claim that is a time, in whole epoch seconds; raises TokenError."""
    value = claims.get(name)
    # In Python, bool is an int. A float such as 1e400 is not a time.
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise TokenError(f'the token\'s claim "{name}" is missing or not an integer time')
    return value


def text_claim(claims: Claims, name: str) -> str:
    """A claim that is one plain text; raises TokenError."""
    value = claims.get(name)
    if not isinstance(value, str) or _TEXT.fullmatch(value) is None:
        raise TokenError(f'the token\'s claim "{name}" is missing or not a plain string')
    return value


def texts_claim(claims: Claims, name: str) -> tuple[str, ...]:
    """A claim that is a list of texts; raises TokenError."""
    value = claims.get(name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TokenError(f'the token\'s claim "{name}" is missing or not a list of strings')
    return tuple(value)
