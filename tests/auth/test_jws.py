"""Signatures: PyJWT is the judge of what is valid, for each algorithm and for mutated signatures."""

from __future__ import annotations

import base64
import json
from typing import Final

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given
from hypothesis import strategies as st

from auth.jws import TokenError, verified_payload

CLAIMS: Final = {"sub": "ann"}
P256: Final = ec.generate_private_key(ec.SECP256R1())
KEYS: Final = {
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    "ES256": P256,
    "RS256": rsa.generate_private_key(65537, 2048),
}
TOKENS: Final = {name: jwt.encode(CLAIMS, key, name) for name, key in KEYS.items()}


def decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def with_signature(token: str, signature: bytes) -> str:
    return f"{token.rpartition('.')[0]}.{encode(signature)}"


def accepted(token: str, algorithm: str) -> bool:
    """Whether our reader accepts a token, which has to be what PyJWT says."""
    public = KEYS[algorithm].public_key()
    try:
        ours = verified_payload(token, algorithm, public) == CLAIMS
    except TokenError:
        ours = False
    try:
        judged = json.loads(jwt.PyJWS([algorithm]).decode(token, public, [algorithm])) == CLAIMS
    except jwt.InvalidTokenError:
        judged = False
    assert ours is judged
    return ours


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_token_of_another_library_is_accepted(algorithm: str) -> None:
    assert accepted(TOKENS[algorithm], algorithm)


@given(algorithm=st.sampled_from(sorted(KEYS)), data=st.data())
def test_a_mutated_signature_is_refused(algorithm: str, data: st.DataObject) -> None:
    signature = decode(TOKENS[algorithm].rpartition(".")[2])
    position = data.draw(st.integers(0, len(signature) - 1))
    mutated = data.draw(
        st.sampled_from(
            [
                signature[:position],
                signature[:position] + bytes([signature[position] ^ 1]) + signature[position + 1 :],
                signature + b"\0" * (position + 1),
                signature[position:],
            ]
        )
    )
    # Without a signature, a token is not in compact form.
    if mutated and mutated != signature:
        assert not accepted(with_signature(TOKENS[algorithm], mutated), algorithm)


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_changed_payload_is_refused(algorithm: str) -> None:
    header, _, signature = TOKENS[algorithm].split(".")
    assert not accepted(f"{header}.{encode(b'{}')}.{signature}", algorithm)


def test_an_es256_signature_in_der_is_refused() -> None:
    head = TOKENS["ES256"].rpartition(".")[0]
    der = P256.sign(head.encode(), ec.ECDSA(SHA256()))
    assert not accepted(with_signature(TOKENS["ES256"], der), "ES256")


@pytest.mark.parametrize("zeros", [bytes(64), bytes(63) + b"\1", b"\xff" * 64])
def test_an_es256_signature_outside_the_group_is_refused(zeros: bytes) -> None:
    assert not accepted(with_signature(TOKENS["ES256"], zeros), "ES256")


@pytest.mark.parametrize("algorithm", [*KEYS, "none", "HS256"])
@pytest.mark.parametrize("kind", KEYS)
def test_a_key_signs_by_its_own_algorithm_only(algorithm: str, kind: str) -> None:
    if algorithm != kind:
        with pytest.raises(TokenError):
            verified_payload(TOKENS[kind], algorithm, KEYS[kind].public_key())


def test_a_key_of_another_curve_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    head = TOKENS["ES256"].rpartition(".")[0]
    r, s = decode_dss_signature(key.sign(head.encode(), ec.ECDSA(SHA256())))
    signature = (r % 2**256).to_bytes(32) + (s % 2**256).to_bytes(32)
    with pytest.raises(TokenError):
        verified_payload(with_signature(TOKENS["ES256"], signature), "ES256", key.public_key())
