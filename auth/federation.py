"""Tokens of other OpenID Connect issuers: a platform identifies its workload, and a rule maps it to an agent.

Issuers are compared as exact strings, trailing slash included. Each key is used under the one algorithm that
its type allows, regardless of the token's header. A rule pins claims to exact values: no wildcards, prefixes
or lists of alternatives. Names (a repository, a namespace, an account) can be released and registered again
by another party. So a rule must pin an id that its platform never reuses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

import attrs
from cryptography.hazmat.primitives.asymmetric import rsa

from auth.jws import Claims, Key, TokenError, header_of, unverified_payload, verified_payload
from auth.keys import KEYS_MAX, KeyFormatError, PublicKey, unbase64

# Platforms issue for minutes, Kubernetes for an hour. A token for days is a long-lived secret.
LIFETIME_MAX_S = 24 * 3600
LEEWAY_S = 5.0
# RSA below 2048 bits is too weak. Above 4096, an unauthenticated peer can cost milliseconds per verification.
RSA_BITS = range(2048, 4097)
CLAIMS_MAX = 16
CLAIM_LENGTH_MAX = 256

IMMUTABLE_CLAIMS = frozenset(
    {
        # GitHub
        "repository_id",
        "repository_owner_id",
        "enterprise_id",
        # GitLab
        "project_id",
        "namespace_id",
        # Kubernetes
        "/kubernetes.io/serviceaccount/uid",
        # Azure: the id of the application's or the user's object
        "oid",
    }
)
# The author of a pull request controls the code that runs for it, and for its reviews. The other claims still
# name the target repository. The event reveals such a run, and so does its ref, regardless of the event.
_PULL_REQUESTS = frozenset(
    {"pull_request", "pull_request_target", "pull_request_review", "pull_request_review_comment"}
)
_PULL_REFS = "refs/pull/"
# These run the default branch's own workflow, but outsiders trigger them: by a comment on a pull request, or
# through the pull request's own run. Such workflows exist to fetch the pull request's contents or artifacts.
_STARTED_BY_STRANGERS = _PULL_REQUESTS | {"issue_comment", "workflow_run"}
_EVENT, _REF = "event_name", "ref"
# GitLab's merge request pipelines, and the child pipelines that they start. Before 18.2.2, if a member runs a
# fork's pipeline in the project, its token has the project's own id, and a ref that the fork's author named.
_SOURCE = "pipeline_source"
_MERGE_REQUESTS = frozenset({"merge_request_event", "parent_pipeline"})

# Allowed header members. Thumbprints are ignored here. Members that name or hold a key, and `crit`, are
# refused.
_HEADER_MEMBERS = frozenset({"alg", "kid", "typ", "x5t", "x5t#S256"})


class RuleError(Exception):
    """Claims that do not make a valid rule; the message says what to pin instead."""


@attrs.frozen
class IssuerKey:
    """A verification key of another issuer, for exactly one algorithm."""

    kid: str
    alg: str
    key: Key = attrs.field(repr=False)


def parse_jwks(data: bytes | str) -> dict[str, IssuerKey]:
    """Read an issuer's key set, by `kid`; raises KeyFormatError if it has no usable key.

    Keys of unsupported types are skipped, since issuers publish several types. If two keys share a `kid`,
    neither is used.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise KeyFormatError("a key set must be a JSON document") from exc
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise KeyFormatError('a key set must be a JSON object with a list "keys"')
    if len(listed) > KEYS_MAX:
        raise KeyFormatError(f"a key set must hold at most {KEYS_MAX} keys, not {len(listed)}")
    keys: dict[str, IssuerKey] = {}
    twice = set()
    for jwk in listed:
        try:
            key = _issuer_key(jwk)
        except KeyFormatError:
            continue
        if key.kid in keys:
            twice.add(key.kid)
        keys[key.kid] = key
    usable = {kid: key for kid, key in keys.items() if kid not in twice}
    if not usable:
        raise KeyFormatError("the key set holds no usable key (RS256, ES256 or EdDSA, each with its own kid)")
    return usable


def issuer_and_kid(token: str) -> tuple[str, str]:
    """Return the issuer and the `kid` that a token names, both unverified; raises TokenError."""
    header, payload = header_of(token), unverified_payload(token)
    if not set(header) <= _HEADER_MEMBERS or header.get("typ", "JWT") != "JWT":
        raise TokenError("the token's header may hold alg, kid, typ JWT and a thumbprint, and nothing else")
    kid, issuer = header.get("kid"), payload.get("iss")
    if not isinstance(kid, str) or not isinstance(issuer, str):
        raise TokenError("the token names no issuer, or no key")
    return issuer, kid


def verify_subject(token: str, key: IssuerKey, *, issuer: str, now: float) -> Claims:
    """Verify a token of another issuer with the key that its `kid` names; raises TokenError.

    The audience and the subject's claims are not checked here; `Rule` checks them.
    """
    header = header_of(token)
    if header.get("kid") != key.kid or header.get("alg") != key.alg:
        raise TokenError(f"the token's algorithm is not {key.alg}, the one of its key")
    claims = verified_payload(token, key.alg, key.key)
    if claims.get("iss") != issuer:
        raise TokenError("the token is from another issuer")
    issued_at, expires_at = _time(claims, "iat"), _time(claims, "exp")
    not_before = _time(claims, "nbf") if "nbf" in claims else issued_at
    if not 0 < expires_at - issued_at <= LIFETIME_MAX_S:
        raise TokenError(
            f"the token's lifetime of {expires_at - issued_at} s is not within {LIFETIME_MAX_S} s"
        )
    ahead = max(issued_at, not_before) - now
    if ahead > LEEWAY_S:
        raise TokenError(f"the token is from {ahead:.0f} s in the future")
    if now - expires_at >= LEEWAY_S:
        raise TokenError(f"the token expired {now - expires_at:.0f} s ago")
    return claims


@attrs.frozen
class Rule:
    """Which tokens are accepted: the required audience, and the exact values of claims."""

    audience: str
    claims: Mapping[str, str]

    def mismatch(self, claims: Claims) -> str | None:
        """The name of the first claim that does not match; None if all match."""
        if not _is_for(claims.get("aud"), self.audience):
            return "aud"
        if _EVENT not in self.claims and _value(claims, _EVENT) in _STARTED_BY_STRANGERS:
            return _EVENT
        if _SOURCE not in self.claims and _value(claims, _SOURCE) in _MERGE_REQUESTS:
            return _SOURCE
        pinned = _REF in self.claims or self.claims.get(_EVENT) in _PULL_REQUESTS
        if not pinned and (_value(claims, _REF) or "").startswith(_PULL_REFS):
            return _REF
        for name, value in self.claims.items():
            if _value(claims, name) != value:
                return name
        return None


def check_rule(audience: str, claims: Mapping[str, str], *, mutable: bool) -> None:
    """Raise RuleError unless the arguments make a valid rule.

    `mutable`: the operator accepts a rule without an id that its platform never reuses.
    """
    if not re.fullmatch(r"[!-~]{1,256}", audience):
        raise RuleError("the audience must be 1 to 256 printable characters without a space")
    if not 1 <= len(claims) <= CLAIMS_MAX:
        raise RuleError(f"a rule pins 1 to {CLAIMS_MAX} claims, not {len(claims)}")
    for name, value in claims.items():
        for text in (name, value):
            if not 1 <= len(text) <= CLAIM_LENGTH_MAX or not text.isprintable():
                raise RuleError(f"claim {name[:80]!a}: 1 to {CLAIM_LENGTH_MAX} printable characters")
        if name in {"iss", "aud", "exp", "iat", "nbf", "jti"}:
            raise RuleError(f"claim {name} is always checked and cannot be pinned")
        if "*" in value or "?" in value:
            raise RuleError(f"claim {name!a}: wildcards are not supported, values are compared exactly")
    if not mutable and IMMUTABLE_CLAIMS.isdisjoint(claims):
        raise RuleError(
            "no pinned claim is an id that its platform never reuses "
            f"({', '.join(sorted(IMMUTABLE_CLAIMS))}): another party could register a released name; "
            "pin such an id, or accept the risk (--allow-mutable-claims)"
        )


def _issuer_key(jwk: object) -> IssuerKey:
    if not isinstance(jwk, Mapping) or jwk.get("kty") != "RSA":
        public = PublicKey.from_jwk(jwk)
        return IssuerKey(public.kid, public.alg, public.key)
    if not {"d", "p", "q", "dp", "dq", "qi", "oth"}.isdisjoint(jwk):
        raise KeyFormatError("a JWK holds a private key where a public one is expected")
    kid = jwk.get("kid")
    if not isinstance(kid, str) or re.fullmatch(r"[A-Za-z0-9._-]{1,128}", kid) is None:
        raise KeyFormatError("a JWK has no valid kid")
    if jwk.get("use", "sig") != "sig" or jwk.get("alg", "RS256") != "RS256":
        raise KeyFormatError(f"JWK {kid} is not for signatures by RS256")
    try:
        modulus, exponent = (int.from_bytes(unbase64(jwk.get(name)), "big") for name in ("n", "e"))
        if modulus.bit_length() not in RSA_BITS or not 3 <= exponent < 2**32:
            raise ValueError(f"an RSA key has {RSA_BITS.start} to {RSA_BITS.stop - 1} bits")
        return IssuerKey(kid, "RS256", rsa.RSAPublicNumbers(exponent, modulus).public_key())
    except ValueError as exc:
        raise KeyFormatError(f"JWK {kid} is not a valid RSA key") from exc


def _is_for(audience: object, expected: str) -> bool:
    # Kubernetes always sends a list. With several audiences, another of them could replay the token to us.
    if isinstance(audience, Sequence) and not isinstance(audience, str):
        return list(audience) == [expected]
    return audience == expected


def _value(claims: Claims, name: str) -> str | None:
    """A claim by its name, or by its JSON Pointer (RFC 6901) if the name begins with a slash."""
    value: object = claims
    for step in name[1:].split("/") if name.startswith("/") else [name]:
        if not isinstance(value, Mapping):
            return None
        value = value.get(step.replace("~1", "/").replace("~0", "~") if name.startswith("/") else step)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return value if isinstance(value, str) else None


def _time(claims: Claims, name: str) -> int:
    value = claims.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise TokenError(f'the token\'s claim "{name}" is missing or not an integer time')
    return value
