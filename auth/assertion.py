"""An agent's assertion, and the signature of all of Hawse's tokens, from few imports.

kubectl waits while its plugin makes an assertion. attrs, PyJWT and cryptography's `serialization` double the
plugin's CPU time, so neither they nor auth.keys and auth.signed are imported here: those two import this
module.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

LIFETIME_S = 60
# The explicit type for a client's assertion in the revision of RFC 7523.
ASSERTION_TYPE = "client-authentication+jwt"

_PEM_BEGIN, _PEM_END = b"-----BEGIN PRIVATE KEY-----\n", b"\n-----END PRIVATE KEY-----\n"
# RFC 8410 section 7: all of an Ed25519 key's PKCS #8 before its 32 bytes.
_PKCS8 = bytes.fromhex("302e020100300506032b657004220420")
_KEY_BYTES = 32


def plain_key(pem: bytes) -> Ed25519PrivateKey | None:
    """Load a key in the form that SigningKey.to_pem writes. None for other texts, which may be keys too."""
    if not pem.startswith(_PEM_BEGIN) or not pem.endswith(_PEM_END):
        return None
    try:
        der = binascii.a2b_base64(pem[len(_PEM_BEGIN) : -len(_PEM_END)], strict_mode=True)
    except binascii.Error:
        return None
    if not der.startswith(_PKCS8) or len(der) != len(_PKCS8) + _KEY_BYTES:
        return None
    return Ed25519PrivateKey.from_private_bytes(der[len(_PKCS8) :])


def ed25519_members(key: Ed25519PublicKey) -> dict[str, str]:
    """Return the members of the key's JWK that its thumbprint covers."""
    return {"crv": "Ed25519", "kty": "OKP", "x": encode(key.public_bytes_raw())}


def thumbprint(members: Mapping[str, str]) -> str:
    """Return the RFC 7638 thumbprint of a key, from those members of its JWK."""
    canonical = json.dumps(members, sort_keys=True, separators=(",", ":"))
    # cryptography is loaded already. hashlib would be another import.
    digest = hashes.Hash(hashes.SHA256())
    digest.update(canonical.encode("ascii"))
    return encode(digest.finalize())


def encode(data: bytes) -> str:
    """Encode as base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def sign(key: Ed25519PrivateKey, kid: str, kind: str, claims: Mapping[str, object]) -> str:
    """Sign claims unchanged under a `typ`, in the compact form (RFC 7515, RFC 8037)."""
    parts = ({"alg": "EdDSA", "typ": kind, "kid": kid}, dict(claims))
    text = ".".join(encode(json.dumps(part, separators=(",", ":")).encode("ascii")) for part in parts)
    return f"{text}.{encode(key.sign(text.encode('ascii')))}"


def sign_for_a_minute(
    key: Ed25519PrivateKey, kid: str, kind: str, now: float, claims: Mapping[str, object]
) -> str:
    """Sign claims that are valid from now on for LIFETIME_S."""
    issued_at = math.floor(now)
    return sign(key, kid, kind, {**claims, "iat": issued_at, "nbf": issued_at, "exp": issued_at + LIFETIME_S})


def issue_assertion(
    key: Ed25519PrivateKey, *, agent: str, hub_url: str, jti: str, now: float, hub_time: str = ""
) -> str:
    """Sign an agent's assertion for its hub (RFC 7523: issuer and subject are the client itself).

    With a `hub_time` from the hub (auth.hubtime), `now` is the time in it.
    """
    claims: dict[str, object] = {"iss": agent, "sub": agent, "aud": origin(hub_url), "jti": jti}
    if hub_time:
        claims["hub_time"] = hub_time
    kid = thumbprint(ed25519_members(key.public_key()))
    return sign_for_a_minute(key, kid, ASSERTION_TYPE, now, claims)


def origin(hub_url: str) -> str:
    """Return the hub's URL as an audience."""
    # Agents omit the default port of https from a hub's URL; its operator may include it.
    return hub_url.removesuffix(":443")
