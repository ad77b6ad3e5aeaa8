"""What all signed tokens have in common: the compact form, JSON that has one reading, and the signature.

What a header or a claim must say is the business of whoever reads that kind of token (auth.tokens for ours,
auth.federation for those of other issuers).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import TypeAlias

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

# A token travels in a header or as a tunnel context (at most 8 KiB); ours are below 1 KiB, others' below 4.
TOKEN_LENGTH_MAX = 8192

_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_JWS = {name: jwt.PyJWS(algorithms=[name]) for name in ("EdDSA", "ES256", "RS256")}

Claims: TypeAlias = Mapping[str, object]
Key: TypeAlias = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey


class TokenError(Exception):
    """A token that is not accepted; the message says why and never holds the token.

    `skew_s` is set when the times do not fit: how far the token's clock seems to be ahead of ours (negative:
    behind, or the token is simply old).
    """

    def __init__(self, reason: str, *, skew_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.skew_s = skew_s


class AudienceError(TokenError):
    """A token that is authentic, and for another audience."""


class UnknownKeyError(TokenError):
    """A token that names a key which its verifier does not have."""


def header_of(token: str) -> dict[str, object]:
    """Return the header, which is not authentic yet; raises TokenError."""
    return _parse_object(_decode_segment(_compact(token)[1]), "header")


def said_payload(token: str) -> Claims:
    """Return the payload unproved, for a token that says itself whose keys prove it; raises TokenError."""
    return _parse_object(_decode_segment(_compact(token)[2]), "payload")


def verified_payload(token: str, algorithm: str, key: Key) -> Claims:
    """Return the payload of a token that the key signed by that algorithm; raises TokenError.

    Whoever calls has read the header before, and takes the algorithm from the key.
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
    # Of two members with one name each reader picks its own: two kids could be two keys.
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members


def _refuse_constant(name: str) -> object:
    raise ValueError(name)
