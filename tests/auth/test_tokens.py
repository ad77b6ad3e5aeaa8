from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from auth import tokens
from auth.assertion import ASSERTION_TYPE, issue_assertion
from auth.jws import TOKEN_LENGTH_MAX, TokenError
from auth.keys import KeySet, PublicKey, SigningKey
from auth.principal import IdentityError, Principal

HUB = "https://hub.example"
NOW = 1_800_000_000.5
CLUSTER_ID = "0193-c1"
KEY = SigningKey.generate()
OTHER_KEY = SigningKey.generate()
KEYS = KeySet([KEY.public, OTHER_KEY.public])
PROBE = Principal(agent_id="0193-a1", name="probe", org="acme", teams=("platform", "sre"))


def access(key: SigningKey = KEY, *, cluster: str = "prod", now: float = NOW) -> str:
    return tokens.issue_access(key, issuer=HUB, principal=PROBE, cluster=cluster, sid="s1", jti="j1", now=now)


def read_access(
    token: str, *, keys: KeySet = KEYS, now: float = NOW, cluster: str = "prod", org: str = "acme"
) -> tokens.AccessClaims:
    return tokens.verify_access(token, keys, issuer=HUB, org=org, cluster=cluster, now=now)


def relay(*, now: float = NOW, cluster_id: str = CLUSTER_ID) -> str:
    return tokens.issue_relay(
        KEY, issuer=HUB, cluster_id=cluster_id, principal=PROBE, session="s1", jti="j2", now=now
    )


def read_relay(token: str, *, now: float = NOW, leeway_s: float = 5.0) -> tokens.RelayClaims:
    return tokens.verify_relay(token, KEYS, issuer=HUB, cluster_id=CLUSTER_ID, now=now, leeway_s=leeway_s)


def hello(key: SigningKey = OTHER_KEY, *, cluster_id: str = CLUSTER_ID, hub_url: str = HUB) -> str:
    return tokens.issue_hello(key, cluster_id=cluster_id, hub_url=hub_url, instance="r-1", jti="j3", now=NOW)


def inquiry(*, cluster_id: str = CLUSTER_ID) -> str:
    return tokens.issue_inquiry(KEY, issuer=HUB, cluster_id=cluster_id, jti="j6", now=NOW)


def read_inquiry(token: str) -> None:
    tokens.verify_inquiry(token, KEYS, issuer=HUB, cluster_id=CLUSTER_ID, now=NOW)


def find_relay_key(kid: str) -> tuple[str, PublicKey] | None:
    return (CLUSTER_ID, OTHER_KEY.public) if kid == OTHER_KEY.kid else None


def read_hello(token: str, *, now: float = NOW) -> tokens.HelloClaims:
    return tokens.verify_hello(token, find_relay_key, hub_url=HUB, now=now)


def assertion(key: SigningKey = OTHER_KEY, *, agent: str = "probe", hub_url: str = HUB) -> str:
    return issue_assertion(key.key, agent=agent, hub_url=hub_url, jti="j4", now=NOW)


def find_agent_key(kid: str) -> tuple[str, PublicKey] | None:
    return ("probe", OTHER_KEY.public) if kid == OTHER_KEY.kid else None


def read_assertion(token: str, *, now: float = NOW, hub_url: str = HUB) -> tokens.AssertionClaims:
    return tokens.verify_assertion(token, find_agent_key, hub_url=hub_url, now=now)


def enrolment(key: SigningKey = OTHER_KEY, *, hub_url: str = HUB) -> str:
    return tokens.issue_enrolment(key, hub_url=hub_url, jti="j5", now=NOW)


def read_enrolment(token: str, *, now: float = NOW) -> tokens.EnrolmentClaims:
    return tokens.verify_enrolment(token, OTHER_KEY.public, hub_url=HUB, now=now)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forge(
    header: object, claims: object, sign: Callable[[bytes], bytes] = KEY.key.sign, *, raw: bool = False
) -> str:
    """Sign any header and claims with our own key: they are the attack."""
    parts = [part if raw and isinstance(part, str) else json.dumps(part) for part in (header, claims)]
    signing_input = ".".join(b64(part.encode()) for part in parts)
    return f"{signing_input}.{b64(sign(signing_input.encode()))}"


HEADER = {"alg": "EdDSA", "typ": "at+jwt", "kid": KEY.kid}
RELAY_HEADER = {**HEADER, "typ": "relay+jwt"}


def access_claims(**changes: object) -> dict[str, object]:
    claims: dict[str, object] = json.loads(base64.urlsafe_b64decode(access().split(".")[1] + "==").decode())
    claims.update(changes)
    return {name: value for name, value in claims.items() if value is not ...}


def relay_claims(**changes: object) -> dict[str, object]:
    claims: dict[str, object] = json.loads(base64.urlsafe_b64decode(relay().split(".")[1] + "==").decode())
    claims.update(changes)
    return {name: value for name, value in claims.items() if value is not ...}


def test_an_access_token_is_read_back() -> None:
    claims = read_access(access())
    assert claims.principal == PROBE
    assert claims.cluster == "prod"
    assert (claims.sid, claims.jti) == ("s1", "j1")
    assert claims.expires_at - claims.issued_at == 60


def test_an_access_token_has_exactly_the_form_that_is_documented() -> None:
    token = access()
    assert jwt.get_unverified_header(token) == HEADER
    assert access_claims() == {
        "iss": HUB,
        "aud": "urn:hawse:acme:cluster:prod",
        "sub": "agent:probe",
        "agent": "0193-a1",
        "org": "acme",
        "teams": ["platform", "sre"],
        "sid": "s1",
        "jti": "j1",
        "iat": 1_800_000_000,
        "nbf": 1_800_000_000,
        "exp": 1_800_000_060,
    }


def test_a_relay_token_is_read_back() -> None:
    claims = read_relay(relay())
    assert claims.user == "agent:probe"
    assert claims.groups == ("acme/platform", "acme/sre")
    assert claims.extra == {"hawse.dev/agent-id": "0193-a1", "hawse.dev/session": "s1"}
    assert claims.expires_at == 1_800_000_060


def test_a_hello_is_read_back_as_the_cluster_that_owns_the_key() -> None:
    claims = read_hello(hello())
    assert (claims.cluster_id, claims.instance, claims.jti) == (CLUSTER_ID, "r-1", "j3")
    assert claims.kid == OTHER_KEY.kid


def test_an_es256_key_verifies_its_own_tokens() -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    key = PublicKey("ec-1", "ES256", private.public_key())
    token = jwt.encode(access_claims(), private, "ES256", headers={"typ": "at+jwt", "kid": "ec-1"})
    assert read_access(token, keys=KeySet([key])).principal == PROBE
    # ... and never under another algorithm's name.
    with pytest.raises(TokenError, match="algorithm"):
        read_access(forge({**HEADER, "kid": "ec-1"}, access_claims()), keys=KeySet([key]))


# C30: the header


def hs256(secret: bytes) -> Callable[[bytes], bytes]:
    return lambda data: hmac.new(secret, data, hashlib.sha256).digest()


PUBLIC_PEM = KEY.key.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)
RSA = rsa.generate_private_key(65537, 2048)


def rs256(data: bytes) -> bytes:
    return jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256).sign(data, RSA)


@pytest.mark.parametrize(
    ("header", "sign"),
    [
        ({**HEADER, "alg": "none"}, KEY.key.sign),
        ({**HEADER, "alg": "None"}, KEY.key.sign),
        ({**HEADER, "alg": "HS256"}, hs256(PUBLIC_PEM)),
        ({**HEADER, "alg": "HS256"}, hs256(json.dumps(KEY.public.to_jwk()).encode())),
        ({**HEADER, "alg": "RS256"}, rs256),
        ({**HEADER, "alg": "ES256"}, KEY.key.sign),
        ({**HEADER, "alg": "eddsa"}, KEY.key.sign),
        ({**HEADER, "alg": ["EdDSA"]}, KEY.key.sign),
        ({**HEADER, "alg": None}, KEY.key.sign),
        ({**HEADER, "crit": ["exp"], "exp": 1}, KEY.key.sign),
        ({**HEADER, "crit": ["x-unknown"], "x-unknown": 1}, KEY.key.sign),
        ({**HEADER, "crit": []}, KEY.key.sign),
        ({**HEADER, "b64": False, "crit": ["b64"]}, KEY.key.sign),
        ({**HEADER, "jwk": OTHER_KEY.public.to_jwk()}, OTHER_KEY.key.sign),
        ({**HEADER, "jku": "https://evil.example/jwks"}, OTHER_KEY.key.sign),
        # refused for their presence, even under our own signature
        ({**HEADER, "jwk": KEY.public.to_jwk()}, KEY.key.sign),
        ({**HEADER, "jku": f"{HUB}/.well-known/jwks.json"}, KEY.key.sign),
        ({**HEADER, "x5u": "https://evil.example/c"}, OTHER_KEY.key.sign),
        ({**HEADER, "x5c": ["AAAA"]}, OTHER_KEY.key.sign),
        ({**HEADER, "kid": OTHER_KEY.kid}, KEY.key.sign),
        ({**HEADER, "kid": "../../../etc/passwd"}, KEY.key.sign),
        ({**HEADER, "kid": "' UNION SELECT 'x"}, KEY.key.sign),
        ({**HEADER, "kid": "https://evil.example/key"}, KEY.key.sign),
        ({**HEADER, "kid": ""}, KEY.key.sign),
        ({**HEADER, "kid": [KEY.kid]}, KEY.key.sign),
        ({**HEADER, "kid": None}, KEY.key.sign),
        ({**HEADER, "typ": "JWT"}, KEY.key.sign),
        ({**HEADER, "typ": "AT+JWT"}, KEY.key.sign),
        ({**HEADER, "typ": "application/at+jwt"}, KEY.key.sign),
        ({**HEADER, "typ": "relay+jwt"}, KEY.key.sign),
        ({"alg": "EdDSA", "typ": "at+jwt"}, KEY.key.sign),
        ({"alg": "EdDSA", "kid": KEY.kid}, KEY.key.sign),
        ([HEADER], KEY.key.sign),
        ("x", KEY.key.sign),
    ],
)
def test_a_header_that_is_not_exactly_ours_is_refused(header: object, sign: Callable[[bytes], bytes]) -> None:
    token = forge(header, access_claims(), sign)
    with pytest.raises(TokenError) as caught:
        read_access(token)
    assert token not in str(caught.value)
    assert not set(token.split(".")) & set(str(caught.value).split())


def test_a_header_with_two_kids_is_refused() -> None:
    header = f'{{"alg":"EdDSA","typ":"at+jwt","kid":"{OTHER_KEY.kid}","kid":"{KEY.kid}"}}'
    with pytest.raises(TokenError, match="unique members"):
        read_access(forge(header, access_claims(), raw=True))


def test_a_payload_with_two_subjects_is_refused() -> None:
    claims = json.dumps(access_claims())[:-1] + ',"sub":"agent:other"}'
    with pytest.raises(TokenError, match="unique members"):
        read_access(forge(HEADER, claims, raw=True))


@pytest.mark.parametrize(
    "mangle",
    [
        lambda t: "",
        lambda t: t + "=",
        lambda t: t + "\n",
        lambda t: " " + t,
        lambda t: t.rsplit(".", 1)[0] + ".",
        lambda t: t.rsplit(".", 1)[0],
        lambda t: t + ".x",
        lambda t: t[:-8] + "AAAAAAAA",
        lambda t: "Bearer " + t,
        lambda t: "é" + t,
        lambda t: t * 100,
        lambda t: t.replace(".", ".A", 1),
        lambda t: "A" + t,
        lambda t: "null.null.null",
    ],
)
def test_text_that_is_no_token_of_ours_is_refused(mangle: Callable[[str], str]) -> None:
    with pytest.raises(TokenError):
        read_access(mangle(access()))


# C31: issuer, audience and kind


@pytest.mark.parametrize("issuer", [..., "", HUB[:-1], HUB + "/", HUB + ".evil", [HUB], None, HUB.upper(), 7])
def test_another_issuer_is_refused(issuer: object) -> None:
    with pytest.raises(TokenError):
        read_access(forge(HEADER, access_claims(iss=issuer)))
    with pytest.raises(TokenError):
        read_relay(forge(RELAY_HEADER, relay_claims(iss=issuer)))


@pytest.mark.parametrize(
    "audience",
    [
        ...,
        None,
        "",
        "urn:hawse:acme:cluster:stage",
        "urn:hawse:evil:cluster:prod",
        "urn:hawse:acme:cluster:prod2",
        "urn:hawse:acme:cluster:pro",
        ["urn:hawse:acme:cluster:prod"],
        ["urn:hawse:acme:cluster:prod", "x"],
        "urn:hawse:acme:cluster:prod x",
    ],
)
def test_another_audience_is_refused_and_so_is_a_list(audience: object) -> None:
    with pytest.raises(TokenError):
        read_access(forge(HEADER, access_claims(aud=audience)))


@pytest.mark.parametrize("audience", [..., "urn:hawse:cluster:other", ["urn:hawse:cluster:0193-c1"]])
def test_a_relay_token_for_another_cluster_is_refused(audience: object) -> None:
    with pytest.raises(TokenError):
        read_relay(forge(RELAY_HEADER, relay_claims(aud=audience)))


def test_no_kind_of_token_stands_in_for_another() -> None:
    for read, own in (
        (read_access, access()),
        (read_relay, relay()),
        (read_hello, hello()),
        (read_assertion, assertion()),
        (read_enrolment, enrolment()),
        (read_inquiry, inquiry()),
    ):
        for token in (access(), relay(), hello(), hello(KEY), assertion(), enrolment(), inquiry()):
            if token == own:
                read(token)
            else:
                with pytest.raises(TokenError):
                    read(token)


def test_an_inquiry_is_for_one_cluster_and_a_minute() -> None:
    with pytest.raises(TokenError, match="audience"):
        read_inquiry(inquiry(cluster_id="other"))
    with pytest.raises(TokenError, match="expired"):
        tokens.verify_inquiry(inquiry(), KEYS, issuer=HUB, cluster_id=CLUSTER_ID, now=NOW + 120)
    with pytest.raises(TokenError):
        tokens.verify_inquiry(inquiry(), KEYS, issuer="https://other", cluster_id=CLUSTER_ID, now=NOW)


def test_a_token_for_another_organisation_or_cluster_is_refused() -> None:
    with pytest.raises(TokenError, match="audience"):
        read_access(access(), org="evil")
    with pytest.raises(TokenError, match="audience"):
        read_access(access(), cluster="stage")
    with pytest.raises(TokenError, match="organisation"):
        read_access(forge(HEADER, access_claims(org="evil")))


def test_a_hello_speaks_for_no_cluster_but_the_owner_of_its_key() -> None:
    with pytest.raises(TokenError, match="is of another cluster than its cluster_id"):
        read_hello(hello(cluster_id="0193-c2"))
    with pytest.raises(TokenError, match="audience"):
        read_hello(hello(hub_url="https://other.example"))
    with pytest.raises(TokenError, match="unknown here"):
        read_hello(hello(KEY))
    party = tokens.cluster_audience(CLUSTER_ID)
    claims = access_claims(iss=party, sub=party, aud=HUB, instance="r-1")
    header = {**HEADER, "typ": tokens.HELLO_TYPE, "kid": OTHER_KEY.kid}
    read_hello(forge(header, claims, OTHER_KEY.key.sign))
    for subject in (..., tokens.cluster_audience("0193-c2"), CLUSTER_ID, [party]):
        changed = {name: value for name, value in {**claims, "sub": subject}.items() if value is not ...}
        with pytest.raises(TokenError, match="sub"):
            read_hello(forge(header, changed, OTHER_KEY.key.sign))


# C04, C05: the identity


@pytest.mark.parametrize(
    "subject",
    [..., "", " ", None, 7, [], "agent:", "probe", "system:admin", "agent:a b", "agent:a\n", "agent:ſystem"],
)
def test_a_subject_that_is_no_agent_is_refused(subject: object) -> None:
    with pytest.raises(TokenError):
        read_access(forge(HEADER, access_claims(sub=subject)))
    with pytest.raises(TokenError):
        read_relay(forge(RELAY_HEADER, relay_claims(sub=subject)))


@pytest.mark.parametrize(
    "groups", [..., None, [], "acme/platform", ["system:masters"], ["acme/a,b"], [7], [""], {"acme/a": 1}]
)
def test_groups_that_are_not_ours_are_refused(groups: object) -> None:
    with pytest.raises(TokenError):
        read_relay(forge(RELAY_HEADER, relay_claims(groups=groups)))
    with pytest.raises(TokenError):
        read_access(forge(HEADER, access_claims(teams=groups)))


@pytest.mark.parametrize("ext", [..., None, [], {}, {"hawse.dev/agent-id": ""}, {"hawse.dev/agent-id": "a"}])
def test_a_relay_token_needs_its_extras(ext: object) -> None:
    with pytest.raises(TokenError):
        read_relay(forge(RELAY_HEADER, relay_claims(ext=ext)))


@pytest.mark.parametrize("name", ["agent", "sid", "jti", "org"])
def test_every_claim_is_required(name: str) -> None:
    for value in (..., None, "", 7, ["x"], "a\nb"):
        with pytest.raises(TokenError):
            read_access(forge(HEADER, access_claims(**{name: value})))


def test_no_token_is_minted_for_a_cluster_name_that_is_no_slug() -> None:
    with pytest.raises(IdentityError):
        access(cluster="prod:evil")


# C32: time


@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
@pytest.mark.parametrize("value", [..., None, "1800000030", 1_800_000_030.5, 1e300, True, -1, 2**70, [], {}])
def test_a_time_must_be_an_integer(name: str, value: object) -> None:
    with pytest.raises(TokenError):
        read_access(forge(HEADER, access_claims(**{name: value})))
    with pytest.raises(TokenError):
        read_relay(forge(RELAY_HEADER, relay_claims(**{name: value})))


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "[" * 5000])
def test_json_that_not_everybody_reads_is_refused_wherever_it_stands(text: str) -> None:
    claims = json.dumps(access_claims(more="@")).replace('"@"', text)
    for header, payload in ((json.dumps(HEADER), claims), (text, json.dumps(access_claims()))):
        with pytest.raises(TokenError, match="valid JSON"):
            read_access(forge(header, payload, raw=True))


def test_what_a_token_says_is_not_read_before_its_signature_is_checked() -> None:
    for payload in ("[" * 5000, "x", "[]"):
        with pytest.raises(TokenError, match="signature is not valid"):
            read_access(forge(HEADER, payload, OTHER_KEY.key.sign, raw=True))


def test_a_token_may_have_so_many_characters_and_no_more() -> None:
    filled = [forge(HEADER, access_claims(more="x" * size)) for size in range(5735, 5750)]
    # No base64 text has a length of one more.
    assert {TOKEN_LENGTH_MAX, TOKEN_LENGTH_MAX + 2} <= set(map(len, filled))
    for token in filled:
        if len(token) <= TOKEN_LENGTH_MAX:
            assert read_access(token).principal == PROBE
        else:
            with pytest.raises(TokenError, match="longer than 8192"):
                read_access(token)


@pytest.mark.parametrize("text", ["1e400", "NaN", "Infinity", "9" * 5000])
def test_a_time_that_is_no_number_to_anyone_is_refused(text: str) -> None:
    claims = json.dumps(access_claims(exp="@")).replace('"@"', text)
    with pytest.raises(TokenError):
        read_access(forge(HEADER, claims, raw=True))


@pytest.mark.parametrize("lifetime", [61, 3600, 0, -1])
def test_a_lifetime_over_a_minute_is_refused(lifetime: int) -> None:
    claims = access_claims(iat=int(NOW), exp=int(NOW) + lifetime)
    with pytest.raises(TokenError, match="lifetime"):
        read_access(forge(HEADER, claims))


def test_the_hub_gives_its_own_tokens_no_leeway_at_the_end() -> None:
    read_access(access(), now=1_800_000_059.9)
    with pytest.raises(TokenError, match="expired 0 s ago"):
        read_access(access(), now=1_800_000_060.0)


def test_the_hub_allows_its_own_tokens_five_seconds_of_a_clock_that_was_set_back() -> None:
    read_access(access(), now=1_799_999_995.0)
    with pytest.raises(TokenError, match="future"):
        read_access(access(), now=1_799_999_994.9)


@pytest.mark.parametrize(
    ("read", "token"),
    [(read_hello, hello()), (read_assertion, assertion()), (read_enrolment, enrolment())],
)
def test_whoever_has_a_clock_of_its_own_is_allowed_five_seconds_either_way(
    read: Callable[..., object], token: str
) -> None:
    for now in (1_799_999_995.0, 1_800_000_064.9):
        read(token, now=now)
    for now in (1_799_999_994.9, 1_800_000_065.0):
        with pytest.raises(TokenError):
            read(token, now=now)


def test_the_relay_allows_five_seconds_either_way() -> None:
    token = relay(now=1_800_000_000)
    for now in (1_799_999_995.0, 1_800_000_000.0, 1_800_000_064.9):
        read_relay(token, now=now)
    for now in (1_799_999_994.9, 1_800_000_065.0):
        with pytest.raises(TokenError):
            read_relay(token, now=now)


@pytest.mark.parametrize("name", ["iat", "nbf"])
def test_a_token_from_the_future_is_refused(name: str) -> None:
    claims = access_claims(iat=int(NOW) - 10, nbf=int(NOW) - 10, exp=int(NOW) + 40)
    claims[name] = int(NOW) + 7
    with pytest.raises(TokenError, match="6 s in the future"):
        read_access(forge(HEADER, claims))


def test_a_refusal_for_skew_names_the_skew() -> None:
    with pytest.raises(TokenError, match="90 s in the future by its verifier's clock") as ahead:
        read_relay(relay(), now=1_800_000_000 - 90.0)
    assert ahead.value.skew_s == 90.0
    with pytest.raises(TokenError, match="expired 90 s ago by its verifier's clock") as behind:
        read_relay(relay(), now=1_800_000_060 + 90.0)
    assert behind.value.skew_s == -150.0


def test_the_relay_takes_the_time_that_it_is_given() -> None:
    # A tunnel-mode relay whose own clock is 90 s off passes the hub's time.
    read_relay(relay(), now=NOW, leeway_s=0.0)


@given(
    st.text(max_size=300) | st.from_regex(r"[A-Za-z0-9_-]{1,80}\.[A-Za-z0-9_-]{1,80}\.[A-Za-z0-9_-]{1,80}")
)
def test_only_a_token_error_ever_escapes(text: str) -> None:
    for read in (read_access, read_relay, read_hello, read_assertion, read_enrolment):
        with pytest.raises(TokenError):
            read(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(relay_claims())), JSON)
def test_a_token_with_any_one_claim_replaced_is_refused_or_says_the_same(name: str, value: object) -> None:
    try:
        claims = read_relay(forge(RELAY_HEADER, relay_claims(**{name: value})))
    except TokenError:
        return
    assert claims.user == "agent:probe" or name == "sub"
    assert claims.groups == ("acme/platform", "acme/sre") or name == "groups"
    assert claims.groups


def test_an_assertion_is_read_back_as_the_agent_that_owns_the_key() -> None:
    claims = read_assertion(assertion())
    assert (claims.agent, claims.kid, claims.jti) == ("probe", OTHER_KEY.kid, "j4")
    assert claims.expires_at - claims.issued_at == 60


def test_an_assertion_speaks_for_no_agent_but_the_owner_of_its_key_and_to_its_hub_alone() -> None:
    header = {**HEADER, "typ": ASSERTION_TYPE, "kid": OTHER_KEY.kid}
    claims: dict[str, object] = {"iss": "probe", "sub": "probe", "aud": HUB, "jti": "j"}
    claims |= {"iat": int(NOW), "nbf": int(NOW), "exp": int(NOW) + 60}
    assert read_assertion(forge(header, claims, OTHER_KEY.key.sign)).agent == "probe"
    for changes in (
        {"iss": "other"},
        {"sub": "other"},
        {"iss": "other", "sub": "other"},
        {"aud": HUB + "/"},
        {"aud": HUB + "/oauth/token"},
        {"aud": [HUB]},
        {"aud": [HUB, "https://other.example"]},
        {"aud": "https://other.example"},
        {"exp": int(NOW) + 61},
    ):
        with pytest.raises(TokenError):
            read_assertion(forge(header, {**claims, **changes}, OTHER_KEY.key.sign))
    with pytest.raises(TokenError, match="unknown here"):
        read_assertion(assertion(KEY))


def test_a_hub_is_the_same_with_the_port_that_https_has_anyway() -> None:
    for signed, read in ((HUB, HUB + ":443"), (HUB + ":443", HUB)):
        read_assertion(assertion(hub_url=signed), hub_url=read)
    with pytest.raises(TokenError):
        read_assertion(assertion(hub_url=HUB + ":8443"))
    read_enrolment(enrolment(hub_url=HUB + ":443"))


def test_an_assertion_of_a_clock_that_is_off_names_the_skew() -> None:
    for now in (NOW - 90, NOW + 150):
        with pytest.raises(TokenError, match="clocks differ") as refused:
            read_assertion(assertion(), now=now)
        assert refused.value.skew_s is not None


def test_an_assertion_says_by_what_it_is_dated() -> None:
    told = f"{int(NOW)}.{'0' * 64}"
    key, parties = OTHER_KEY, {"agent": "probe", "hub_url": HUB, "jti": "j4"}
    assert read_assertion(issue_assertion(key.key, **parties, now=NOW, hub_time=told)).hub_time == told
    assert read_assertion(assertion()).hub_time == ""
    header = {**HEADER, "typ": ASSERTION_TYPE, "kid": key.kid}
    claims: dict[str, object] = {"iss": "probe", "sub": "probe", "aud": HUB, "jti": "j"}
    claims |= {"iat": int(NOW), "nbf": int(NOW), "exp": int(NOW) + 60}
    # An unreadable hub time is not treated as absent.
    for hub_time in (None, "", 1, [told], "x" * 257, "é"):
        with pytest.raises(TokenError, match="hub_time"):
            read_assertion(forge(header, {**claims, "hub_time": hub_time}, key.key.sign))


def test_a_hello_says_by_what_it_is_dated() -> None:
    told = f"{int(NOW)}.{'0' * 64}"
    parties = {"cluster_id": CLUSTER_ID, "hub_url": HUB, "instance": "r-1", "jti": "j3"}
    assert read_hello(tokens.issue_hello(OTHER_KEY, **parties, now=NOW, hub_time=told)).hub_time == told
    assert read_hello(hello()).hub_time == ""
    header = {**HEADER, "typ": tokens.HELLO_TYPE, "kid": OTHER_KEY.kid}
    party = tokens.cluster_audience(CLUSTER_ID)
    claims: dict[str, object] = {"iss": party, "sub": party, "aud": HUB, "instance": "r-1", "jti": "j"}
    claims |= {"iat": int(NOW), "nbf": int(NOW), "exp": int(NOW) + 60}
    assert read_hello(forge(header, claims, OTHER_KEY.key.sign)).hub_time == ""
    for hub_time in (None, "", 1, [told], "x" * 257, "é"):
        with pytest.raises(TokenError, match="hub_time"):
            read_hello(forge(header, {**claims, "hub_time": hub_time}, OTHER_KEY.key.sign))


def test_an_enrolment_says_by_what_it_is_dated() -> None:
    told = f"{int(NOW)}.{'0' * 64}"
    key = OTHER_KEY
    proof = tokens.issue_enrolment(key, hub_url=HUB, jti="j5", now=NOW, hub_time=told)
    assert read_enrolment(proof) == tokens.EnrolmentClaims(int(NOW), told)
    assert read_enrolment(enrolment()) == tokens.EnrolmentClaims(int(NOW), "")
    header = {**HEADER, "typ": tokens.ENROLMENT_TYPE, "kid": key.kid}
    claims: dict[str, object] = {"iss": key.kid, "sub": key.kid, "aud": HUB, "jti": "j"}
    claims |= {"iat": int(NOW), "nbf": int(NOW), "exp": int(NOW) + 60}
    assert read_enrolment(forge(header, claims, key.key.sign)).hub_time == ""
    for hub_time in (None, "", 1, [told], "x" * 257, "é"):
        with pytest.raises(TokenError, match="hub_time"):
            read_enrolment(forge(header, {**claims, "hub_time": hub_time}, key.key.sign))


def test_a_key_is_registered_by_its_holder_alone() -> None:
    read_enrolment(enrolment())
    with pytest.raises(TokenError):
        read_enrolment(enrolment(KEY))
    with pytest.raises(TokenError):
        read_enrolment(enrolment(hub_url="https://other.example"))


def test_a_token_for_the_hub_itself_is_for_no_cluster() -> None:
    token = tokens.issue_access(KEY, issuer=HUB, principal=PROBE, cluster=None, sid="s1", jti="j1", now=NOW)
    claims = tokens.verify_access(token, KEYS, issuer=HUB, org="acme", cluster=None, now=NOW)
    assert (claims.cluster, claims.principal) == (None, PROBE)
    with pytest.raises(TokenError, match="audience"):
        read_access(token)
    for cluster in ("hub", "prod"):
        with pytest.raises(TokenError, match="audience"):
            tokens.verify_access(access(cluster=cluster), KEYS, issuer=HUB, org="acme", cluster=None, now=NOW)


def test_a_token_that_went_to_the_wrong_relay_says_so() -> None:
    with pytest.raises(TokenError, match=r"for urn:hawse:cluster:0193-c2, this relay is of cluster 0193-c1"):
        read_relay(relay(cluster_id="0193-c2"))
    # Another hub's URL is not quoted.
    with pytest.raises(TokenError, match=r"the hub's public_url is not https:\S+: set this") as refused:
        read_relay(forge(RELAY_HEADER, relay_claims(iss="https://evil.example", aud="urn:hawse:cluster:x")))
    assert "evil" not in refused.value.reason
