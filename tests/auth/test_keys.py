from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from auth.keys import KEYS_MAX, KeyFormatError, KeySet, PublicKey, SigningKey, unbase64


def ec_jwk(curve: ec.EllipticCurve | None = None) -> dict[str, str]:
    public = ec.generate_private_key(curve or ec.SECP256R1()).public_key()
    return PublicKey("ec-1", "ES256", public).to_jwk()


def test_a_signing_key_survives_pem_and_keeps_its_kid() -> None:
    key = SigningKey.generate()
    again = SigningKey.from_pem(key.to_pem())
    assert again.kid == key.kid
    assert again.public == key.public
    assert SigningKey.generate().kid != key.kid


def test_the_kid_is_the_rfc_7638_thumbprint() -> None:
    # RFC 8037, appendix A.2 and A.3
    jwk = {"kty": "OKP", "crv": "Ed25519", "kid": "x", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    assert PublicKey.from_jwk(jwk).thumbprint == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_a_jwk_says_for_what_its_key_is_good() -> None:
    key = SigningKey.generate().public
    assert {**key.to_jwk(), "x": ""} == {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": "",
        "kid": key.kid,
        "alg": "EdDSA",
        "use": "sig",
    }
    jwk = ec_jwk()
    assert PublicKey.from_jwk(jwk).to_jwk() == jwk
    assert (jwk["kty"], jwk["crv"], jwk["alg"], jwk["use"]) == ("EC", "P-256", "ES256", "sig")
    assert key != key.to_jwk()


@pytest.mark.parametrize("kid", ["a", "A-Z_0.9", "k" * 128])
def test_a_kid_is_a_word(kid: str) -> None:
    assert PublicKey.from_jwk({**GOOD, "kid": kid}).kid == kid


def test_a_repr_shows_no_key_material() -> None:
    key = SigningKey.generate()
    assert repr(key) == f"SigningKey(kid='{key.kid}')"


def test_a_key_set_survives_jwks_with_both_algorithms() -> None:
    keys = KeySet([SigningKey.generate().public, PublicKey.from_jwk(ec_jwk())])
    again = KeySet.from_jwks(keys.to_jwks())
    assert list(again) == list(keys)
    assert {key.alg for key in again} == {"EdDSA", "ES256"}
    assert again.get("ec-1") is not None
    assert again.get("EC-1") is None
    assert "d" not in json.loads(keys.to_jwks())["keys"][0]


def shifted(jwk: dict[str, str]) -> dict[str, str]:
    """The same point with the last byte of x as the first of y."""
    x, y = unbase64(jwk["x"]), unbase64(jwk["y"])
    split = {"x": x[:-1], "y": x[-1:] + y}
    return {
        **jwk,
        **{name: base64.urlsafe_b64encode(half).decode().rstrip("=") for name, half in split.items()},
    }


GOOD = SigningKey.generate().public.to_jwk()


@pytest.mark.parametrize(
    "jwk",
    [
        None,
        [],
        {},
        {**GOOD, "kid": None},
        {**GOOD, "kid": ["a"]},
        {**GOOD, "kid": "../../etc/passwd"},
        {**GOOD, "kid": "' OR 1=1"},
        {**GOOD, "kid": ""},
        {**GOOD, "kid": "a\n"},
        {**GOOD, "kid": "k" * 129},
        {**GOOD, "alg": "HS256"},
        {**GOOD, "alg": "none"},
        {**GOOD, "alg": "ES256"},
        {**GOOD, "use": "enc"},
        {**GOOD, "x": GOOD["x"][:-4]},
        {**GOOD, "x": 7},
        {**GOOD, "x": GOOD["x"] + "="},
        {**GOOD, "x": GOOD["x"] + "!"},
        *({**GOOD, name: "AAAA"} for name in ("d", "p", "q", "dp", "dq", "qi", "oth", "k")),
        {**GOOD, "crv": "X25519"},
        {"kty": "oct", "kid": "a", "k": "AAAA", "alg": "HS256"},
        {"kty": "RSA", "kid": "a", "n": "AQAB", "e": "AQAB", "alg": "RS256"},
        {**ec_jwk(), "y": "AAAA"},
        shifted(ec_jwk()),
        {**ec_jwk(), "alg": "EdDSA"},
        {**ec_jwk(), "crv": "P-384"},
        {**ec_jwk(), "x": ec_jwk()["x"]},  # not a point of the curve
    ],
)
def test_a_jwk_that_is_not_exactly_a_public_key_of_ours_is_refused(jwk: object) -> None:
    with pytest.raises(KeyFormatError):
        PublicKey.from_jwk(jwk)


def test_base64_has_one_form_and_no_padding() -> None:
    for size in range(1, 40):
        data = bytes(range(255 - size, 255))
        text = base64.urlsafe_b64encode(data).decode()
        assert unbase64(text.rstrip("=")) == data
    for bad in ("", "AA==", "AA\n", "A A", "+/", "AAAAA", "\u00c5", None, b"AA"):
        with pytest.raises(ValueError):
            unbase64(bad)


def test_a_key_set_has_so_many_keys() -> None:
    key = SigningKey.generate().public.key
    keys = [PublicKey(str(number), "EdDSA", key) for number in range(KEYS_MAX + 1)]
    assert list(KeySet(keys[:-1])) == keys[:-1]
    with pytest.raises(KeyFormatError, match=f"must hold 1 to {KEYS_MAX} keys, not {KEYS_MAX + 1}"):
        KeySet(keys)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"keys":{}}', '{"keys":[]}', "[" * 100_000])
def test_a_key_set_must_hold_keys(text: str) -> None:
    with pytest.raises(KeyFormatError):
        KeySet.from_jwks(text)


def test_two_keys_of_one_kid_are_refused() -> None:
    key = SigningKey.generate().public
    with pytest.raises(KeyFormatError, match="two keys have the kid"):
        KeySet([key, key])


def test_a_pem_that_is_not_ed25519_is_refused() -> None:
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(KeyFormatError, match="not Ed25519"):
        SigningKey.from_pem(pem)
    with pytest.raises(KeyFormatError, match="not an unencrypted private key"):
        SigningKey.from_pem(b"-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----\n")
    encrypted = SigningKey.generate().key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    with pytest.raises(KeyFormatError, match="not an unencrypted private key"):
        SigningKey.from_pem(encrypted)
