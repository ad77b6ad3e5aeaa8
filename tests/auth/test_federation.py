from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from auth.federation import (
    LIFETIME_MAX_S,
    Rule,
    RuleError,
    check_rule,
    issuer_and_kid,
    parse_jwks,
    verify_subject,
)
from auth.jws import TokenError
from auth.keys import KeyFormatError, SigningKey
from tests.fakes.jwks import KEY, jwk, jwks, number

ISSUER = "https://token.actions.githubusercontent.com"
HUB = "https://hub.example"
NOW = 1_800_000_000.5


KEYS = parse_jwks(jwks(jwk(use="sig", alg="RS256")))
CLAIMS: dict[str, object] = {
    "iss": ISSUER,
    "sub": "repo:acme/app:ref:refs/heads/main",
    "aud": HUB,
    "iat": int(NOW),
    "exp": int(NOW) + 300,
    "repository": "acme/app",
    "repository_id": "4242",
    "repository_owner_id": "77",
    "ref": "refs/heads/main",
    "event_name": "push",
}
RULE = Rule(HUB, {"repository_id": "4242", "ref": "refs/heads/main"})


def token(
    claims: dict[str, object] | None = None,
    *,
    key: rsa.RSAPrivateKey = KEY,
    headers: dict[str, object] | None = None,
    **changes: object,
) -> str:
    body = {name: value for name, value in {**(claims or CLAIMS), **changes}.items() if value is not ...}
    return jwt.encode(body, key, algorithm="RS256", headers={"kid": "k1", **(headers or {})})


def read(text: str, *, now: float = NOW) -> dict[str, object]:
    issuer, kid = issuer_and_kid(text)
    assert issuer == ISSUER
    return dict(verify_subject(text, KEYS[kid], issuer=ISSUER, now=now))


def test_a_token_of_an_issuer_is_read_back() -> None:
    claims = read(token())
    assert claims == CLAIMS
    assert RULE.mismatch(claims) is None
    # The headers of GitHub, GitLab and Kubernetes.
    for headers in ({"typ": "JWT", "x5t": "abc"}, {"typ": "JWT"}, {"typ": None}):
        assert read(token(headers=headers)) == CLAIMS


def forged(header: object, payload: object, sign: Callable[[bytes], bytes] | None = None) -> str:
    parts = ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in (header, payload)
    )
    signature = (sign or (lambda data: KEY.sign(data, padding.PKCS1v15(), SHA256())))(parts.encode())
    return f"{parts}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def test_c30_no_header_chooses_how_a_token_is_verified() -> None:
    pem = KEY.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    good = {"alg": "RS256", "kid": "k1"}
    assert read(forged(good, CLAIMS)) == CLAIMS
    own = SigningKey.generate()
    bad = [
        forged({**good, "alg": "none"}, CLAIMS, lambda _: b""),
        forged({**good, "alg": "HS256"}, CLAIMS, lambda data: hmac.digest(pem, data, hashlib.sha256)),
        forged({**good, "alg": "PS256"}, CLAIMS),
        forged({**good, "alg": "RS512"}, CLAIMS),
        forged({**good, "alg": "EdDSA"}, CLAIMS, own.key.sign),
        forged(good, CLAIMS, own.key.sign),
        forged({**good, "jwk": own.public.to_jwk()}, CLAIMS),
        forged({**good, "jku": "https://evil.example/jwks"}, CLAIMS),
        forged({**good, "x5u": "https://evil.example/cert"}, CLAIMS),
        forged({**good, "x5c": ["AAAA"]}, CLAIMS),
        forged({**good, "crit": ["b64"], "b64": False}, CLAIMS),
        forged({**good, "typ": "at+jwt"}, CLAIMS),
        forged({**good, "kid": ["k1"]}, CLAIMS),
        forged({"alg": "RS256"}, CLAIMS),
        forged(good, {**CLAIMS, "iss": [ISSUER]}),
        forged(good, {k: v for k, v in CLAIMS.items() if k != "iss"}),
        token(key=rsa.generate_private_key(65537, 2048)),
        token() + "x",
        "x.y.z",
        "x" * 9000,
    ]
    for each in bad:
        with pytest.raises(TokenError):
            read(each)


@pytest.mark.parametrize("issuer", [ISSUER + "/", ISSUER.upper(), ISSUER[:-1], ISSUER + ".evil.example"])
def test_c36_an_issuer_is_compared_whole_to_the_last_slash(issuer: str) -> None:
    text = token(iss=issuer)
    assert issuer_and_kid(text)[0] == issuer != ISSUER
    with pytest.raises(TokenError, match="another issuer"):
        verify_subject(text, KEYS["k1"], issuer=ISSUER, now=NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": ...},
        {"iat": ...},
        {"exp": "1800000300"},
        {"exp": 1.8e9},
        {"exp": True},
        {"exp": int(NOW) - 10, "iat": int(NOW) - 100},
        {"exp": int(NOW) + LIFETIME_MAX_S + 1},
        {"exp": int(NOW)},
        {"iat": int(NOW) + 10, "exp": int(NOW) + 100},
        {"nbf": int(NOW) + 10},
        {"nbf": None},
        {"nbf": True},
    ],
)
def test_times_that_are_missing_wrong_or_too_far_apart_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(TokenError):
        read(token(**changes))


def test_a_clock_may_be_off_by_five_seconds_and_a_token_may_last_a_day() -> None:
    at = int(NOW)
    for good, bad in (
        ({"iat": at + 5}, {"iat": at + 6}),
        ({"nbf": at + 5}, {"nbf": at + 6}),
        ({"iat": at - 60, "exp": at - 4}, {"iat": at - 60, "exp": at - 5}),
        ({"exp": at + LIFETIME_MAX_S}, {"exp": at + LIFETIME_MAX_S + 1}),
    ):
        read(token(**good))
        with pytest.raises(TokenError):
            read(token(**bad))
    read(token(), now=at + 304.9)
    with pytest.raises(TokenError, match="expired 5 s ago"):
        read(token(), now=at + 305)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        # The same name, registered by another party after it was released.
        ({"repository_id": "9999"}, "repository_id"),
        # A fork has its own id. A run for its pull request in our repository has our id.
        ({"event_name": "pull_request"}, "event_name"),
        ({"event_name": "pull_request_target"}, "event_name"),
        ({"event_name": "pull_request_review"}, "event_name"),
        ({"event_name": "pull_request_review_comment"}, "event_name"),
        # Both run our own workflow, but an outsider triggers it and may make it fetch the outsider's code.
        ({"event_name": "issue_comment"}, "event_name"),
        ({"event_name": "workflow_run"}, "event_name"),
        ({"ref": "refs/heads/mainline"}, "ref"),
        ({"ref": "refs/heads/"}, "ref"),
        ({"ref": ["refs/heads/main"]}, "ref"),
        ({"ref": ...}, "ref"),
        ({"repository_id": 4242.0}, "repository_id"),
        ({"aud": "https://hub.example/"}, "aud"),
        ({"aud": "https://other.example"}, "aud"),
        ({"aud": [HUB, "https://other.example"]}, "aud"),
        ({"aud": []}, "aud"),
        ({"aud": ...}, "aud"),
        ({"aud": {"x": HUB}}, "aud"),
    ],
)
def test_c36_what_a_rule_does_not_say_exactly_is_refused(changes: dict[str, object], fault: str) -> None:
    assert RULE.mismatch(read(token(**changes))) == fault


def test_a_rule_takes_one_audience_alone_or_in_a_list_and_numbers_as_they_are_written() -> None:
    assert RULE.mismatch(read(token(aud=[HUB]))) is None
    assert RULE.mismatch(read(token(repository_id=4242))) is None
    assert (
        Rule(HUB, {"repository_id": "4242", "event_name": "pull_request"}).mismatch(
            read(token(event_name="pull_request"))
        )
        is None
    )
    assert Rule(HUB, {"protected": "true"}).mismatch(read(token(protected=True))) is None
    assert Rule(HUB, {"protected": "1"}).mismatch(read(token(protected=True))) == "protected"
    assert Rule(HUB, {"protected": "true"}).mismatch(read(token(protected=False))) == "protected"
    assert Rule(HUB, {"protected": "false"}).mismatch(read(token(protected=False))) is None


@pytest.mark.parametrize("value", [..., None, 4.5, ["a"], {"a": "b"}])
def test_what_is_neither_text_nor_a_whole_number_is_no_value_that_a_rule_can_name(value: object) -> None:
    claims = read(token(environment=value))
    assert Rule(HUB, {"environment": str(claims.get("environment"))}).mismatch(claims) == "environment"


@pytest.mark.parametrize("event", ["issue_comment", "workflow_run"])
def test_what_a_stranger_can_start_is_taken_where_the_rule_names_it(event: str) -> None:
    named = Rule(HUB, {"repository_id": "4242", "event_name": event})
    assert named.mismatch(read(token(event_name=event))) is None
    # Neither runs from a pull request's ref, so pinning them does not permit one.
    assert named.mismatch(read(token(event_name=event, ref="refs/pull/7/merge"))) == "ref"


@pytest.mark.parametrize("event", ["push", "schedule", "issues", "discussion_comment", "merge_group"])
def test_other_events_are_taken_as_the_documentation_says(event: str) -> None:
    assert Rule(HUB, {"repository_id": "4242"}).mismatch(read(token(event_name=event))) is None


@pytest.mark.parametrize(
    ("source", "fault"),
    [("merge_request_event", "pipeline_source"), ("parent_pipeline", "pipeline_source"), ("push", None)],
)
def test_c36_what_runs_from_a_merge_request_is_refused_whatever_its_branch_is_called(
    source: str, fault: str | None
) -> None:
    told = read(token(ref="main", project_id="7", pipeline_source=source, event_name=...))
    pinned = {"project_id": "7", "ref": "main"}
    assert Rule(HUB, pinned).mismatch(told) == fault
    assert Rule(HUB, {**pinned, "pipeline_source": source}).mismatch(told) is None


@pytest.mark.parametrize("ref", ["refs/pull/7/merge", "refs/pull/7/head"])
def test_c36_what_runs_from_a_pull_request_is_refused_whatever_event_runs_it(ref: str) -> None:
    told = read(token(ref=ref, event_name="workflow_dispatch"))
    assert Rule(HUB, {"repository_id": "4242"}).mismatch(told) == "ref"
    assert Rule(HUB, {"repository_id": "4242", "event_name": "workflow_dispatch"}).mismatch(told) == "ref"
    assert Rule(HUB, {"repository_id": "4242", "ref": ref}).mismatch(told) is None
    review = read(token(ref=ref, event_name="pull_request_review"))
    assert Rule(HUB, {"repository_id": "4242", "event_name": "pull_request_review"}).mismatch(review) is None
    # On other platforms a ref may have any type, or be absent.
    assert Rule(HUB, {"repository_id": "4242"}).mismatch(read(token(ref=...))) is None
    assert Rule(HUB, {"repository_id": "4242"}).mismatch(read(token(ref=["refs/pull/7/merge"]))) is None


def test_a_claim_inside_another_is_named_by_its_pointer() -> None:
    kubernetes = {
        "namespace": "ci",
        "serviceaccount": {"name": "builder", "uid": "u-1"},
        "a/b": "c",
        "~": "d",
    }
    claims = read(token(**{"kubernetes.io": kubernetes}))
    for name, value in (
        ("/kubernetes.io/serviceaccount/uid", "u-1"),
        ("/kubernetes.io/namespace", "ci"),
        ("/kubernetes.io/a~1b", "c"),
        ("/kubernetes.io/~0", "d"),
        ("/repository_id", "4242"),
    ):
        assert Rule(HUB, {name: value}).mismatch(claims) is None
    for name in ("/kubernetes.io/serviceaccount", "/kubernetes.io/none/uid", "/sub/x", "kubernetes.io", "/"):
        assert Rule(HUB, {name: "u-1"}).mismatch(claims) == name


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({}, "1 to 16 claims"),
        ({"repository": "acme/app"}, "never reuses"),
        ({"sub": "repo:acme/app:ref:refs/heads/main"}, "never reuses"),
        ({"/kubernetes.io/serviceaccount/name": "builder"}, "never reuses"),
        ({"repository_id": "4242", "ref": "refs/heads/*"}, "wildcards are not supported"),
        ({"repository_id": "?"}, "wildcards are not supported"),
        ({"repository_id": ""}, "printable"),
        ({"repository_id": "4\n2"}, "printable"),
        ({"": "x"}, "printable"),
        ({"repository_id": "4242", "aud": "x"}, "cannot be pinned"),
        ({"repository_id": "4" * 257}, "printable"),
        ({"repository_id": "1", "c" * 257: "x"}, "printable"),
        ({f"c{n}": "x" for n in range(17)}, "1 to 16 claims"),
    ],
)
def test_claims_that_make_no_rule_are_refused(claims: dict[str, str], words: str) -> None:
    with pytest.raises(RuleError, match=words):
        check_rule(HUB, claims, mutable=False)


def test_claims_that_another_may_come_to_have_must_be_meant() -> None:
    check_rule(HUB, {"repository": "acme/app"}, mutable=True)
    for name in (
        "repository_id",
        "repository_owner_id",
        "enterprise_id",
        "project_id",
        "namespace_id",
        "/kubernetes.io/serviceaccount/uid",
        "oid",
    ):
        check_rule(HUB, {name: "1" * 256, "c" * 256: "y"}, mutable=False)
    for audience in ("", "a b", "a\n", "x" * 257):
        with pytest.raises(RuleError, match="audience"):
            check_rule(audience, {"repository_id": "1"}, mutable=False)


def test_a_key_set_gives_what_can_be_used_and_passes_over_the_rest() -> None:
    ed25519 = SigningKey.generate().public.to_jwk()
    keys = parse_jwks(
        jwks(
            jwk(kid="rsa", x5c=["AAAA"], x5t="abc"),
            ed25519,
            jwk(kid="enc", use="enc"),
            jwk(kid="pss", alg="PS256"),
            jwk(kid="private", d="AAAA"),
            jwk(rsa.generate_private_key(65537, 1024), kid="weak"),
            jwk(kid="one", e=number(1)),
            jwk(kid="dear", e=number(2**32 + 1)),
            jwk(kid="twice"),
            jwk(kid="twice"),
            {"kty": "oct", "k": "AAAA", "kid": "oct"},
            {"kty": "EC", "crv": "P-521", "kid": "p521"},
            jwk(kid="a b"),
            {"kty": "RSA"},
            1,
        )
    )
    assert {kid: key.alg for kid, key in keys.items()} == {"rsa": "RS256", ed25519["kid"]: "EdDSA"}
    for nothing in ("", "[]", "{}", '{"keys": {}}', jwks(), jwks(1), "[" * 5000, jwks(*[jwk()] * 65)):
        with pytest.raises(KeyFormatError):
            parse_jwks(nothing)
