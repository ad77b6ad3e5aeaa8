"""An OpenID Connect issuer over real TLS on loopback, which rotates, hangs and lies as it is told."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
import jwt
import trustme
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.fakes.https import Reply, serve_https
from tests.fakes.jwks import jwk, jwks, new_key

DISCOVERY = "/.well-known/openid-configuration"


@attrs.define(eq=False)
class FakeIssuer:
    """What it publishes and signs; any answer can be replaced by path."""

    url: str
    ca_pem: str
    kid: str = "k1"
    key: rsa.RSAPrivateKey = attrs.Factory(new_key)
    published: dict[str, rsa.RSAPrivateKey] = attrs.field(init=False)
    replies: dict[str, Callable[[], Reply]] = attrs.Factory(dict)
    asked: list[str] = attrs.Factory(list)

    @published.default
    def _publish(self) -> dict[str, rsa.RSAPrivateKey]:
        return {self.kid: self.key}

    def rotate(self, kid: str, *, keep: bool = False) -> None:
        """Sign by a new key from now on."""
        self.kid, self.key = kid, new_key()
        self.published = {**(self.published if keep else {}), kid: self.key}

    def token(self, *, headers: dict[str, object] | None = None, **claims: object) -> str:
        now = int(time.time())
        stated = {"iss": self.url, "sub": "workload", "iat": now, "exp": now + 300, **claims}
        body = {name: value for name, value in stated.items() if value is not ...}
        return jwt.encode(body, self.key, algorithm="RS256", headers={"kid": self.kid, **(headers or {})})

    def jwks(self) -> bytes:
        keys = (jwk(key, kid, use="sig", alg="RS256") for kid, key in self.published.items())
        return jwks(*keys).encode()

    def answer(self, path: str) -> Reply:
        self.asked.append(path)
        if path in self.replies:
            return self.replies[path]()
        if path == "/jwks":
            return 200, {"content-type": "application/json"}, self.jwks()
        if path.endswith(DISCOVERY):
            document = {"issuer": self.url, "jwks_uri": f"{self.url.rstrip('/')}/jwks"}
            return 200, {"content-type": "application/json"}, json.dumps(document).encode()
        return 404, {}, b""


@contextmanager
def running_issuer(host: str = "127.0.0.1", *, slash: bool = False) -> Iterator[FakeIssuer]:
    """Serve an issuer for the block; with `slash` its name ends in one."""
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(host).configure_cert(context)

    end = "/" if slash else ""
    with serve_https(host, context, lambda asked: issuer.answer(asked.path)) as port:
        issuer = FakeIssuer(f"https://{host}:{port}{end}", ca.cert_pem.bytes().decode())
        yield issuer
