"""Keys that sign and verify tokens: each has one fixed algorithm and is looked up by its `kid`.

Signing uses Ed25519 only. Verification also accepts ES256 keys, for a relay or an agent whose hardware-backed
key does not support Ed25519. A key is never used under another algorithm, regardless of the token's header.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping

import attrs
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from auth.assertion import ed25519_members, encode, plain_key, thumbprint

# Many more than the overlap of a rotation needs; a larger document is not one of ours.
KEYS_MAX = 64
_KID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


class KeyFormatError(Exception):
    """A key or key set that cannot be used; the message never contains key material."""


@attrs.frozen(eq=False)
class PublicKey:
    """A verification key with its `kid`, for exactly one algorithm."""

    kid: str
    alg: str
    key: ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey = attrs.field(repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and self.to_jwk() == other.to_jwk()

    def __hash__(self) -> int:
        return hash((self.kid, self.alg))

    @classmethod
    def from_jwk(cls, jwk: object) -> PublicKey:
        """Load one public JWK; raises KeyFormatError, also if it holds a private key."""
        if not isinstance(jwk, Mapping):
            raise KeyFormatError("a JWK must be a JSON object")
        if not _PRIVATE_MEMBERS.isdisjoint(jwk):
            raise KeyFormatError("a JWK holds a private or symmetric key where a public one is expected")
        if jwk.get("use", "sig") != "sig":
            raise KeyFormatError("a JWK is not for signatures")
        kid = jwk.get("kid")
        if not isinstance(kid, str) or _KID.fullmatch(kid) is None:
            raise KeyFormatError("a JWK has no valid kid")
        kind = (jwk.get("kty"), jwk.get("crv"))
        try:
            if kind == ("OKP", "Ed25519") and jwk.get("alg", "EdDSA") == "EdDSA":
                return cls(kid, "EdDSA", ed25519.Ed25519PublicKey.from_public_bytes(unbase64(jwk.get("x"))))
            if kind == ("EC", "P-256") and jwk.get("alg", "ES256") == "ES256":
                point = b"\x04" + _coordinate(jwk.get("x")) + _coordinate(jwk.get("y"))
                return cls(kid, "ES256", ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point))
        except (ValueError, UnsupportedAlgorithm) as exc:
            raise KeyFormatError(f"JWK {kid} is not a valid public key") from exc
        raise KeyFormatError(f"JWK {kid} is neither an Ed25519 key for EdDSA nor a P-256 key for ES256")

    @property
    def thumbprint(self) -> str:
        """The key's RFC 7638 thumbprint. It is also the `kid`, unless the key was given another one."""
        return thumbprint(self._members())

    def to_jwk(self) -> dict[str, str]:
        """Return the key as a public JWK."""
        return {**self._members(), "alg": self.alg, "kid": self.kid, "use": "sig"}

    def _members(self) -> dict[str, str]:
        if isinstance(self.key, ed25519.Ed25519PublicKey):
            return ed25519_members(self.key)
        numbers = self.key.public_numbers()
        return {
            "crv": "P-256",
            "kty": "EC",
            "x": encode(numbers.x.to_bytes(32, "big")),
            "y": encode(numbers.y.to_bytes(32, "big")),
        }


@attrs.frozen(eq=False)
class SigningKey:
    """An Ed25519 key that signs tokens; its repr shows only the `kid`."""

    kid: str
    key: ed25519.Ed25519PrivateKey = attrs.field(repr=False)

    @classmethod
    def generate(cls) -> SigningKey:
        """Make a new key from the system's generator."""
        return cls._wrap(ed25519.Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes) -> SigningKey:
        """Load an unencrypted PKCS #8 key; raises KeyFormatError."""
        plain = plain_key(pem)
        if plain is not None:
            return cls._wrap(plain)
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
            # Do not repeat the cause's text: it may quote the input.
            raise KeyFormatError("not an unencrypted private key in PEM (PKCS #8)") from exc
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise KeyFormatError("the private key is not Ed25519")
        return cls._wrap(key)

    def to_pem(self) -> bytes:
        """Return the key as unencrypted PKCS #8; the caller protects the file by its mode."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def public(self) -> PublicKey:
        """The key that verifies this one's signatures."""
        return PublicKey(self.kid, "EdDSA", self.key.public_key())

    @classmethod
    def _wrap(cls, key: ed25519.Ed25519PrivateKey) -> SigningKey:
        # The thumbprint serves as the kid, so no names need to be agreed on.
        return cls(thumbprint(ed25519_members(key.public_key())), key)


class KeySet:
    """Public keys by `kid`, in a dictionary: a `kid` is compared and never interpreted."""

    def __init__(self, keys: Iterable[PublicKey]) -> None:
        self._keys: dict[str, PublicKey] = {}
        for key in keys:
            if key.kid in self._keys:
                raise KeyFormatError(f"two keys have the kid {key.kid}")
            self._keys[key.kid] = key
        if not 1 <= len(self._keys) <= KEYS_MAX:
            raise KeyFormatError(f"a key set must hold 1 to {KEYS_MAX} keys, not {len(self._keys)}")

    def get(self, kid: str) -> PublicKey | None:
        """Return the key with exactly this `kid`."""
        return self._keys.get(kid)

    def __iter__(self) -> Iterator[PublicKey]:
        return iter(self._keys.values())

    @classmethod
    def from_jwks(cls, text: str | bytes) -> KeySet:
        """Load a JSON Web Key Set (RFC 7517); raises KeyFormatError unless every key in it can be used."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise KeyFormatError("a key set must be a JSON document") from exc
        keys = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(keys, list):
            raise KeyFormatError('a key set must be a JSON object with a list "keys"')
        return cls(PublicKey.from_jwk(jwk) for jwk in keys)

    def to_jwks(self) -> str:
        """Return the set as a JSON Web Key Set."""
        return json.dumps({"keys": [key.to_jwk() for key in self]}, separators=(",", ":"))


def unbase64(text: object) -> bytes:
    """Decode base64url without padding; raises ValueError for anything else."""
    if not isinstance(text, str) or re.fullmatch(r"[A-Za-z0-9_-]+", text) is None:
        raise ValueError("not base64url")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _coordinate(text: object) -> bytes:
    data = unbase64(text)
    if len(data) != 32:
        raise ValueError("a P-256 coordinate has 32 bytes")
    return data
