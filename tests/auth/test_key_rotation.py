"""C34: which hub keys a relay trusts, for any sequence of statements."""

from __future__ import annotations

from itertools import pairwise

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth import key_rotation, tokens
from auth.jws import TokenError
from auth.key_rotation import ROTATION_TYPE, TrustedKeys, issue_rotation
from auth.keys import KeySet, SigningKey
from auth.principal import Principal
from auth.signed import sign

HUB = "https://hub.example"
NOW = 1_800_000_000.0
OVERLAP_S = 120.0
KEYS = [SigningKey.generate() for _ in range(6)]
EVIL = SigningKey.generate()


def statement(old: SigningKey, new: SigningKey, *, now: float = NOW, issuer: str = HUB) -> str:
    return issue_rotation(old, issuer=issuer, successor=new.public, now=now, retires_at=now + OVERLAP_S)


def chain(count: int) -> list[str]:
    """Statements an hour apart, from the first key on."""
    return [
        statement(old, new, now=NOW + 3600 * number)
        for number, (old, new) in enumerate(pairwise(KEYS[: count + 1]))
    ]


def trusting(*pins: SigningKey) -> TrustedKeys:
    return TrustedKeys(KeySet(key.public for key in pins), HUB)


def kids(trusted: TrustedKeys, now: float) -> set[str]:
    return {key.kid for key in trusted.at(now)}


def test_only_the_pins_are_trusted_until_one_of_them_says_otherwise() -> None:
    trusted = trusting(KEYS[0])
    assert kids(trusted, NOW) == {KEYS[0].kid}
    assert trusted.learn(statement(KEYS[0], KEYS[1]))
    assert kids(trusted, NOW) == {KEYS[0].kid, KEYS[1].kid}


def test_the_old_key_is_trusted_to_the_end_of_the_overlap_and_not_after_it() -> None:
    trusted = trusting(KEYS[0])
    trusted.learn(statement(KEYS[0], KEYS[1]))
    assert kids(trusted, NOW + OVERLAP_S - 1) == {KEYS[0].kid, KEYS[1].kid}
    assert kids(trusted, NOW + OVERLAP_S) == {KEYS[1].kid}
    # A clock that goes back revives no key.
    assert kids(trusted, NOW) == {KEYS[1].kid}


def test_each_key_of_a_chain_goes_at_its_own_time() -> None:
    trusted = trusting(KEYS[0])
    for text in chain(2):
        trusted.learn(text)
    for now, left in ((NOW, KEYS[:3]), (NOW + OVERLAP_S, KEYS[1:3]), (NOW + 3600 + OVERLAP_S, KEYS[2:3])):
        assert kids(trusted, now) == {key.kid for key in left}


def test_a_token_by_the_old_key_is_good_for_the_overlap() -> None:
    trusted = trusting(KEYS[0])
    trusted.learn(statement(KEYS[0], KEYS[1]))
    principal = Principal(agent_id="a", name="probe", org="acme", teams=("platform",))

    def read(key: SigningKey, at: float) -> None:
        token = tokens.issue_relay(
            key, issuer=HUB, cluster_id="c", principal=principal, session="s", jti="j", now=at
        )
        tokens.verify_relay(token, trusted.at(at), issuer=HUB, cluster_id="c", now=at)

    read(KEYS[0], NOW + OVERLAP_S - 1)
    read(KEYS[1], NOW + OVERLAP_S)
    with pytest.raises(TokenError, match="unknown here"):
        read(KEYS[0], NOW + OVERLAP_S)


@given(st.integers(0, 5), st.data())
def test_from_any_pin_the_chain_leads_to_its_end(pinned: int, data: st.DataObject) -> None:
    # A relay that has just started receives the whole chain; its pin is somewhere in the middle, and some
    # come twice.
    said = chain(5)
    repeats = data.draw(st.integers(0, 5))
    trusted = trusting(KEYS[pinned])
    for text in (*said, *said[:repeats]):
        trusted.learn(text)
    assert kids(trusted, NOW + 10 * 3600) == {KEYS[5].kid}


def test_no_statements_change_nothing() -> None:
    trusted = trusting(KEYS[0])
    for text in ("", "x", "a.b.c", '{"keys":[]}', "a" * 10_000):
        with pytest.raises(TokenError):
            trusted.learn(text)
    assert kids(trusted, NOW + 10 * 3600) == {KEYS[0].kid}


def test_what_another_key_signs_tells_nothing() -> None:
    trusted = trusting(KEYS[0])
    assert not trusted.learn(statement(EVIL, KEYS[1]))
    assert not trusted.learn(statement(EVIL, EVIL))
    assert kids(trusted, NOW) == {KEYS[0].kid}


def test_a_forged_signature_under_a_pinned_kid_is_refused() -> None:
    trusted = trusting(KEYS[0])
    forged = jwt.encode(
        {"iss": HUB, "jwk": EVIL.public.to_jwk(), "iat": int(NOW), "retires": int(NOW)},
        EVIL.key,
        algorithm="EdDSA",
        headers={"typ": ROTATION_TYPE, "kid": KEYS[0].kid},
    )
    with pytest.raises(TokenError, match="signature"):
        trusted.learn(forged)
    head, _, signature = statement(KEYS[0], KEYS[1]).split(".")
    with pytest.raises(TokenError, match="signature"):
        trusted.learn(f"{head}.{forged.split('.')[1]}.{signature}")
    assert kids(trusted, NOW) == {KEYS[0].kid}


@pytest.mark.parametrize("kind", ["relay+jwt", "at+jwt", "JWT", "relay-hello+jwt"])
def test_no_token_is_a_statement_and_no_statement_a_token(kind: str) -> None:
    claims = {"iss": HUB, "jwk": EVIL.public.to_jwk(), "iat": int(NOW), "retires": int(NOW)}
    with pytest.raises(TokenError, match="typ"):
        trusting(KEYS[0]).learn(sign(KEYS[0], kind, claims))
    with pytest.raises(TokenError, match="typ"):
        tokens.verify_relay(
            statement(KEYS[0], KEYS[1]), KeySet([KEYS[0].public]), issuer=HUB, cluster_id="c", now=NOW
        )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"iss": "https://hub.example/"}, "another issuer"),
        ({"iss": None}, "another issuer"),
        ({"retires": "1"}, "retires"),
        ({"retires": True}, "retires"),
        ({"retires": -1}, "retires"),
        ({"retires": 1e400}, "JSON"),
        ({"jwk": None}, "cannot be used"),
        ({"jwk": {"kty": "oct", "k": "AAAA", "kid": "x"}}, "cannot be used"),
        ({"jwk": {**KEYS[1].public.to_jwk(), "kid": KEYS[0].kid}}, "is not new"),
    ],
)
def test_a_statement_that_a_pinned_key_signs_must_still_be_one(
    change: dict[str, object], reason: str
) -> None:
    claims = {"iss": HUB, "jwk": KEYS[1].public.to_jwk(), "iat": int(NOW), "retires": int(NOW), **change}
    trusted = trusting(KEYS[0])
    with pytest.raises(TokenError, match=reason):
        trusted.learn(sign(KEYS[0], ROTATION_TYPE, claims))
    assert kids(trusted, NOW) == {KEYS[0].kid}


def test_a_stolen_old_key_cannot_name_another_successor() -> None:
    trusted = trusting(KEYS[0])
    for text in chain(2):
        trusted.learn(text)
    with pytest.raises(TokenError, match="in other hands"):
        trusted.learn(statement(KEYS[0], EVIL))
    with pytest.raises(TokenError, match="in other hands"):
        trusted.learn(statement(KEYS[1], EVIL))
    assert kids(trusted, NOW + 10 * 3600) == {KEYS[2].kid}


def test_no_circle_leaves_a_relay_without_keys() -> None:
    trusted = trusting(KEYS[0])
    with pytest.raises(TokenError, match="is not new"):
        trusted.learn(statement(KEYS[0], KEYS[0]))
    for text in chain(2):
        trusted.learn(text)
    with pytest.raises(TokenError, match="is not new"):
        trusted.learn(statement(KEYS[2], KEYS[0]))
    assert kids(trusted, NOW + 10 * 3600) == {KEYS[2].kid}


def test_one_kid_is_one_key_also_where_several_are_pinned() -> None:
    trusted = trusting(KEYS[0], KEYS[1])
    posing = {**EVIL.public.to_jwk(), "kid": KEYS[1].kid}
    claims = {"iss": HUB, "jwk": posing, "iat": int(NOW), "retires": int(NOW)}
    with pytest.raises(TokenError, match="is not new"):
        trusted.learn(sign(KEYS[0], ROTATION_TYPE, claims))
    assert set(trusted.at(NOW)) == {KEYS[0].public, KEYS[1].public}
    # That same key may still become the successor.
    assert trusted.learn(statement(KEYS[0], KEYS[1]))
    assert set(trusted.at(NOW + OVERLAP_S)) == {KEYS[1].public}


def test_a_hub_that_signs_without_end_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_rotation, "LEARNED_MAX", 3)
    trusted = trusting(KEYS[0])
    said = chain(4)
    for text in said[:3]:
        trusted.learn(text)
    with pytest.raises(TokenError, match="more than 3 changes"):
        trusted.learn(said[3])
    # Known statements are repeated at every connect.
    assert not trusted.learn(said[0])


def test_more_unretired_keys_than_a_set_holds_leave_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_rotation, "KEYS_MAX", 2)
    trusted = trusting(KEYS[0])
    for old, new in pairwise(KEYS):
        trusted.learn(issue_rotation(old, issuer=HUB, successor=new.public, now=NOW, retires_at=NOW + 10**9))
    assert kids(trusted, NOW) == {KEYS[4].kid, KEYS[5].kid}
