"""The parts that all signed tokens share: the compact form, unambiguous JSON, and the signature.

The readers of each kind of token check its header and claims: auth.tokens for Hawse's own, auth.federation
for those of other issuers.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import TypeAlias

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

# A token travels in a header or as a tunnel context (at most 8 KiB). Hawse's are below 1 KiB, others' below
# 4.
TOKEN_LENGTH_MAX = 8192

_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_JWS = {name: jwt.PyJWS(algorithms=[name]) for name in ("EdDSA", "ES256", "RS256")}

Claims: TypeAlias = Mapping[str, object]
Key: TypeAlias = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey


class TokenError(Exception):
    """A token that is not accepted; the message says why and never contains the token.

    `skew_s` is set if the times do not fit: how far the token's clock seems to be ahead of ours. A negative
    value means that it is behind, or that the token is old.
    """

    def __init__(self, reason: str, *, skew_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.skew_s = skew_s


class AudienceError(TokenError):
    """An authentic token for another audience."""


class UnknownKeyError(TokenError):
    """A token that names a key which its verifier does not have."""


def header_of(token: str) -> dict[str, object]:
    """Return the header, unverified; raises TokenError."""
    return _parse_object(_decode_segment(_compact(token)[1]), "header")


def unverified_payload(token: str) -> Claims:
    """Return the payload, unverified, to find the issuer whose keys verify it; raises TokenError."""
    return _parse_object(_decode_segment(_compact(token)[2]), "payload")


def verified_payload(token: str, algorithm: str, key: Key) -> Claims:
    """Return the payload of a token that the key signed by this algorithm; raises TokenError.

    The caller has checked the header, and takes the algorithm from the key.
    """
    try:
        payload = _JWS[algorithm].decode(token, key, algorithms=[algorithm])
    except jwt.InvalidTokenError as exc:
        raise TokenError("the token's signature is not valid") from exc
    return _parse_object(payload, "payload")


def _compact(token: str) -> re.Match[str]:
    if len(token) > TOKEN_LENGTH_MAX:
        raise TokenError(f"the token is longer than {TOKEN_LENGTH_MAX} characters")
    compact = _COMPACT.fullmatch(token)
    if compact is None:
        raise TokenError("not a signed token in compact form")
    return compact


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
    # Readers disagree on which of two members with one name counts: two kids could select two keys.
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members


def _refuse_constant(name: str) -> object:
    raise ValueError(name)
