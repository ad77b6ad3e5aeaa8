"""What an attacker sends: ambiguous requests, and tokens that a hub's own key was made to sign.

The tokens are written by hand and not by our own code, which refuses to make most of them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

BAD_PATHS = [
    "/api/v1/namespaces/dev/../kube-system/secrets",
    "/api/v1/namespaces/dev/%2e%2e/kube-system/secrets",
    "/api/v1/namespaces/dev/%2E%2e/kube-system/secrets",
    "/api/v1/namespaces/dev/%252e%252e/kube-system/secrets",
    "/api/v1//namespaces/dev/secrets",
    "/api/v1/./namespaces",
    "/api/v1/namespaces;x=y/dev",
    "/api/v1/namespaces\\dev",
    "/api/v1/namespaces%5cdev",
    "/api/v1/namespaces%00",
    "/api/v1/namespaces%0d%0aX:y",
    "/api/v1/namespaces/dev/pods%2Fp%2Fexec",
    "/api/v1/namespaces/%c0%ae%c0%ae/secrets",
    "/api/v1/namespaces/%zz",
    "/api/v1/namespaces#fragment",
]


def ambiguous(good: bytes) -> dict[str, bytes]:
    """Requests of which two readers could make two different things, from a good POST's head without body."""
    method, _, rest = good.partition(b" ")
    assert method == b"POST"
    target, _, _ = rest.partition(b" ")
    good = good.removesuffix(b"\r\n")
    lines = good.split(b"\r\n")
    return {
        "length and chunked": good + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "two lengths": good + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        "a signed length": good + b"Content-Length: +2\r\n\r\n{}",
        "an underscored length": good + b"Content-Length: 0_2\r\n\r\n{}",
        "a length in other digits": good + "Content-Length: ٢\r\n\r\n{}".encode(),
        "a list of lengths": good + b"Content-Length: 2, 2\r\n\r\n{}",
        "an unknown coding": good + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "two codings": good + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "a blank before the colon": good + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "a folded header": good + b"X-A: b\r\n c\r\n\r\n",
        "a bare LF": good.replace(b"\r\n", b"\n") + b"\n",
        "a bare CR": good + b"X-A: b\rX-B: c\r\n\r\n",
        "a NUL": good + b"X-A: b\0c\r\n\r\n",
        "two hosts": good + b"Host: elsewhere\r\n\r\n",
        "no host": b"\r\n".join(line for line in lines if line[:5].lower() != b"host:") + b"\r\n",
        "an absolute target": good.replace(target, b"http://elsewhere" + target, 1) + b"\r\n",
        "a target without slash": good.replace(target, target[1:], 1) + b"\r\n",
        "an asterisk": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        "an authority": b"CONNECT 127.0.0.1:6443 HTTP/1.1\r\nHost: x\r\n\r\n",
    }


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@attrs.frozen
class Forger:
    """An attacker with a real signing key."""

    kid: str
    key: ed25519.Ed25519PrivateKey
    typ: str
    claims: Mapping[str, object]
    """Of a token that is in order, but for its times."""

    @classmethod
    def from_pem(cls, file: Path, typ: str, claims: Mapping[str, object], *, kid: str) -> Forger:
        key = serialization.load_pem_private_key(file.read_bytes(), None)
        assert isinstance(key, ed25519.Ed25519PrivateKey)
        return cls(kid, key, typ, claims)

    def token(
        self,
        *,
        age_s: float = 0,
        lives_s: int = 60,
        header: Mapping[str, object] | None = None,
        sign: Callable[[bytes], bytes] | None = None,
        **claims: object,
    ) -> str:
        """A token with other claims and header members; `...` leaves one out."""
        issued_at = int(time.time() - age_s)
        times = {"iat": issued_at, "nbf": issued_at, "exp": issued_at + lives_s}
        members = {"alg": "EdDSA", "typ": self.typ, "kid": self.kid, **(header or {})}
        parts = [
            encoded(json.dumps({k: v for k, v in part.items() if v is not ...}).encode())
            for part in (members, {**self.claims, **times, **claims})
        ]
        return self.seal(*parts, sign=sign)

    def seal(self, header: str, payload: str, *, sign: Callable[[bytes], bytes] | None = None) -> str:
        signed = f"{header}.{payload}"
        return f"{signed}.{encoded((sign or self.key.sign)(signed.encode()))}"

    def public_pem(self) -> bytes:
        return self.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def public_jwk(self) -> dict[str, str]:
        raw = self.key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return {"kty": "OKP", "crv": "Ed25519", "x": encoded(raw)}

    def bad_forms(self) -> dict[str, Callable[[], str]]:
        """C30, C32: tokens that are invalid regardless of their claims."""

        def hs256(secret: bytes) -> Callable[[bytes], bytes]:
            return lambda data: hmac.digest(secret, data, hashlib.sha256)

        def es256(data: bytes) -> bytes:
            return ec.generate_private_key(ec.SECP256R1()).sign(data, ec.ECDSA(hashes.SHA256()))[:64]

        other = ed25519.Ed25519PrivateKey.generate()
        own_jwk = {"kty": "OKP", "crv": "Ed25519", "x": encoded(other.public_key().public_bytes_raw())}
        jwk_secret = json.dumps(self.public_jwk()).encode()

        def two(member: str, part: int) -> str:
            parts = [base64.urlsafe_b64decode(each + "==") for each in self.token().split(".")[:2]]
            parts[part] = parts[part][:-1] + b", " + member.encode() + b"}"
            return self.seal(*(encoded(each) for each in parts))

        def another_payload() -> str:
            header, _, signature = self.token().split(".")
            return f"{header}.{self.token(jti='another').split('.')[1]}.{signature}"

        return {
            "nothing at all": lambda: "x",
            "three dots": lambda: "a.b.c",
            "alg none": lambda: self.token(header={"alg": "none"}, sign=lambda _: b""),
            "alg none, signed": lambda: self.token(header={"alg": "none"}),
            "HS256 with the public PEM": lambda: self.token(
                header={"alg": "HS256"}, sign=hs256(self.public_pem())
            ),
            "HS256 with the public JWK": lambda: self.token(header={"alg": "HS256"}, sign=hs256(jwk_secret)),
            "HS256 with the raw public key": lambda: self.token(
                header={"alg": "HS256"}, sign=hs256(self.key.public_key().public_bytes_raw())
            ),
            "ES256 under an EdDSA kid": lambda: self.token(header={"alg": "ES256"}, sign=es256),
            "another key under our kid": lambda: self.token(sign=other.sign),
            "an embedded key": lambda: self.token(header={"jwk": own_jwk}, sign=other.sign),
            "an embedded key, signed by ours": lambda: self.token(header={"jwk": own_jwk}),
            "jku": lambda: self.token(header={"jku": "https://127.0.0.1:1/jwks"}),
            "x5u": lambda: self.token(header={"x5u": "https://127.0.0.1:1/x5u"}),
            "an unknown crit": lambda: self.token(header={"crit": ["b64"], "b64": False}),
            "no kid": lambda: self.token(header={"kid": ...}),
            "kid of nobody": lambda: self.token(header={"kid": "nobody"}),
            "kid as a path": lambda: self.token(header={"kid": f"../keys/{self.kid}.pem"}),
            "kid as SQL": lambda: self.token(header={"kid": f"{self.kid}' OR '1'='1"}),
            "kid as a list": lambda: self.token(header={"kid": [self.kid]}),
            "two kids": lambda: two(f'"kid": "{self.kid}"', 0),
            "two subjects": lambda: two('"sub": "agent:probe"', 1),
            "typ JWT": lambda: self.token(header={"typ": "JWT"}),
            "no typ": lambda: self.token(header={"typ": ...}),
            "a changed payload": another_payload,
            "no signature": lambda: self.token().rpartition(".")[0] + ".",
            "old": lambda: self.token(age_s=90),
            "of the future": lambda: self.token(age_s=-90),
            "no exp": lambda: self.token(exp=...),
            "exp as a string": lambda: self.token(exp=str(int(time.time()) + 30)),
            "exp as a float": lambda: self.token(exp=time.time() + 30.5),
            "exp beyond all": lambda: self.token(exp=10**30),
            "an hour": lambda: self.token(exp=int(time.time()) + 3600),
            "61 seconds": lambda: self.token(lives_s=61),
            "issued after it expired": lambda: self.token(exp=int(time.time()) - 1, iat=int(time.time())),
            "no iat": lambda: self.token(iat=...),
            "nbf of the future": lambda: self.token(nbf=int(time.time()) + 30),
            "another issuer": lambda: self.token(iss="https://evil.example"),
            "an issuer that begins like ours": lambda: self.token(iss=f"{self.claims['iss']}.evil.example"),
            "a part of our issuer": lambda: self.token(iss=str(self.claims["iss"])[:-1]),
            "a list of issuers": lambda: self.token(iss=[self.claims["iss"]]),
            "no issuer": lambda: self.token(iss=...),
            "a list of audiences with ours": lambda: self.token(aud=[self.claims["aud"]]),
            "another audience": lambda: self.token(
                aud="urn:hawse:cluster:00000000-0000-0000-0000-000000000000"
            ),
            "no audience": lambda: self.token(aud=...),
        }

    def bad_users(self) -> dict[str, Callable[[], str]]:
        """C04, C05: subjects that must never act."""
        subjects: dict[str, object] = {
            "no subject": ...,
            "an empty subject": "",
            "a blank subject": " ",
            "a tab": "\t",
            "null": None,
            "a list": ["agent:probe"],
            "an agent without a name": "agent:",
            "a name of nothing but blanks": "agent: ",
            "system:admin": "system:admin",
            "a service account": "system:serviceaccount:hawse:relay",
            "a node": "system:node:n1",
            "oidc": "oidc:probe",
            "no prefix": "probe",
            "an agent of the system": "agent:system",
            "an agent that is system:masters": "agent:system:masters",
            "a long s": "agent:\u017fystem",
            "full width": "agent:\uff53ystem",
            "upper case": "agent:Probe",
            "a line break": "agent:probe\n",
            "a second header": "agent:probe\r\nImpersonate-Group: system:masters",
            "a NUL": "agent:probe\0",
        }
        return {what: (lambda sub=sub: self.token(sub=sub)) for what, sub in subjects.items()}  # type: ignore[misc]

    def bad_groups(self, name: str, groups: Callable[[str], object]) -> dict[str, Callable[[], str]]:
        """C05, C06: the claim `name` with groups, or teams, that must never be sent."""
        hostile: dict[str, object] = {
            "no groups": ...,
            "an empty list": [],
            "a string": groups("platform"),
            "an empty group": [groups("")],
            "a comma": [groups("platform,system:masters")],
            "a line break": [groups("platform\r\nImpersonate-Group: system:masters")],
            "a newline at the end": [groups("platform\n")],
            "a blank": [groups("plat form")],
            "system:masters": ["system:masters"],
            "system:authenticated among others": [groups("platform"), "system:authenticated"],
            "a look-alike": [groups("\u017fystem")],
            "a number": [1],
            "one twice": [groups("platform"), groups("platform")],
            "more than there are": [groups(f"t{number}") for number in range(65)],
        }
        return {
            what: (lambda value=value: self.token(**{name: value}))  # type: ignore[misc]
            for what, value in hostile.items()
        }
