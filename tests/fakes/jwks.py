"""Keys of a foreign issuer as JSON Web Keys."""

from __future__ import annotations

import base64
import json

from cryptography.hazmat.primitives.asymmetric import rsa


def new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


KEY = new_key()


def number(value: int) -> str:
    return (
        base64.urlsafe_b64encode(value.to_bytes((value.bit_length() + 7) // 8, "big")).rstrip(b"=").decode()
    )


def jwk(key: rsa.RSAPrivateKey = KEY, kid: str = "k1", **members: object) -> dict[str, object]:
    numbers = key.public_key().public_numbers()
    return {"kty": "RSA", "kid": kid, "n": number(numbers.n), "e": number(numbers.e), **members}


def jwks(*keys: object) -> str:
    return json.dumps({"keys": list(keys)})
