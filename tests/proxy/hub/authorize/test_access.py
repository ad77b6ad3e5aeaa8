from __future__ import annotations

import pytest

from auth.jws import TokenError
from auth.keys import KeySet, SigningKey
from auth.principal import Principal
from auth.tokens import issue_access
from proxy.hub.authorize import access
from proxy.hub.authorize.access import AccessTokens, bearer
from proxy.message.head import RequestHead

ISSUER = "https://hub.example"
ANN = Principal("agent-1", "ann", "acme", ("sre",))
NOW = 1_800_000_000.0


def token(key: SigningKey, cluster: str = "prod", now: float = NOW) -> bytes:
    return issue_access(
        key, issuer=ISSUER, principal=ANN, cluster=cluster, sid="s", jti="j", now=now
    ).encode()


@pytest.fixture
def key() -> SigningKey:
    return SigningKey.generate()


def verifier(key: SigningKey) -> AccessTokens:
    return AccessTokens(lambda: KeySet([key.public]), issuer=ISSUER, org="acme")


def test_a_remembered_token_expires_all_the_same(key: SigningKey) -> None:
    tokens, text = verifier(key), token(key)
    assert tokens.verify(text, "prod", NOW).principal == ANN
    assert tokens.verify(text, "prod", NOW + 59).principal == ANN
    with pytest.raises(TokenError, match="expired"):
        tokens.verify(text, "prod", NOW + 60)


def test_a_remembered_token_is_for_its_cluster_alone(key: SigningKey) -> None:
    tokens, text = verifier(key), token(key)
    tokens.verify(text, "prod", NOW)
    with pytest.raises(TokenError, match="audience"):
        tokens.verify(text, "stage", NOW)
    assert tokens.verify(text, "prod", NOW).cluster == "prod"


def test_a_forged_token_is_not_remembered_as_good(key: SigningKey) -> None:
    tokens = verifier(key)
    forged = token(SigningKey.generate())
    for _ in range(2):
        with pytest.raises(TokenError, match="unknown here"):
            tokens.verify(forged, "prod", NOW)


def test_the_memory_of_tokens_is_bounded(key: SigningKey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "TOKENS_REMEMBERED_MAX", 4)
    tokens = verifier(key)
    for number in range(20):
        tokens.verify(token(key, now=NOW + number), "prod", NOW + 20)
    assert len(tokens._verified) == 4


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ((), "no credential"),
        (((b"authorization", b"Basic eDp5"),), "no bearer"),
        (((b"authorization", b"Bearer "),), "no bearer"),
        (((b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")), "more than one"),
    ],
)
def test_exactly_one_bearer_token_is_a_credential(
    headers: tuple[tuple[bytes, bytes], ...], message: str
) -> None:
    with pytest.raises(TokenError, match=message):
        bearer(RequestHead.of(b"GET", b"/", headers))


def test_the_bearer_scheme_is_case_insensitive() -> None:
    assert bearer(RequestHead.of(b"GET", b"/", ((b"authorization", b"bearer abc"),))) == b"abc"
