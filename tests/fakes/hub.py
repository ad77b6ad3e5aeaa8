"""A hub's token and cluster endpoints over real TLS, for the agent's commands as processes of their own."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

import attrs
import trustme

from auth.hubtime import hub_time
from auth.jws import TokenError
from auth.keys import PublicKey
from auth.tokens import verify_assertion, verify_enrolment
from tests.fakes.https import Asked, Reply, serve_https

AGENT = "robot"
PEPPER = b"p" * 32


@attrs.define(eq=False)
class FakeHub:
    """Answers as a hub does; every answer can be replaced, delayed or left out."""

    url: str
    ca_pem: str
    api_key: str
    clusters: list[str] = attrs.Factory(lambda: ["prod", "dev"])
    cluster_hosts: str | None = None
    expires_in: int = 59
    delay_s: float = 0.0
    reply: Callable[[Asked], Reply] | None = None
    ahead_s: float = 0.0
    """How far its clock is ahead of the machine's."""
    code: str = ""
    keys: list[PublicKey] = attrs.Factory(list)
    jtis: list[str] = attrs.Factory(list)
    hub_times: list[str] = attrs.Factory(list)
    """What the proofs and assertions that it took say they are dated by."""
    asked: list[Asked] = attrs.Factory(list)

    @property
    def token_calls(self) -> int:
        return sum(each.path == "/oauth/token" for each in self.asked)

    def answer(self, asked: Asked) -> Reply:
        self.asked.append(asked)
        time.sleep(self.delay_s)
        if self.reply is not None:
            return self.reply(asked)
        if asked.path == "/v1/clusters":
            if asked.headers.get("authorization") not in (f"Bearer {self.api_key}", "Bearer token-for-hub"):
                return self.refusal(401, "the API key is not accepted")
            clusters = [{"name": name} for name in self.clusters]
            hosts = {} if self.cluster_hosts is None else {"cluster_hosts": self.cluster_hosts}
            return self.json(200, {"agent": AGENT, "org": "acme", "clusters": clusters, **hosts})
        if asked.path == "/v1/enrol" and asked.form.get("code") == self.code:
            key = PublicKey.from_jwk(json.loads(asked.form["jwk"]))
            try:
                claims = verify_enrolment(asked.form["proof"], key, hub_url=self.url, now=self.now())
            except TokenError as error:
                return self.refusal(400, f"proof: {error.reason}", **self.right_time(error))
            if claims.hub_time not in {"", hub_time(PEPPER, claims.issued_at)}:
                return self.refusal(400, "the time was not told here")
            if self.keys not in ([], [key]):
                return self.refusal(401, "the code is not accepted")
            self.hub_times.append(claims.hub_time)
            self.keys = [key]
            return self.json(201, {"agent": AGENT, "org": "acme", "key_id": "k-1", "kid": key.kid})
        if asked.path == "/oauth/token" and "client_assertion" in asked.form:
            return self._answer_assertion(asked.form)
        if asked.path == "/oauth/token" and asked.form.get("client_secret") == self.api_key:
            token = f"token-{self.token_calls}-{asked.form['audience']}"
            return self.json(
                200, {"access_token": token, "token_type": "Bearer", "expires_in": self.expires_in}
            )
        return self.refusal(401, "the API key is not accepted")

    def _answer_assertion(self, form: dict[str, str]) -> Reply:
        by_kid = {key.kid: (AGENT, key) for key in self.keys}
        try:
            claims = verify_assertion(form["client_assertion"], by_kid.get, hub_url=self.url, now=self.now())
        except TokenError as error:
            return self.refusal(401, error.reason, **self.right_time(error))
        if claims.hub_time not in {"", hub_time(PEPPER, claims.issued_at)}:
            return self.refusal(401, "the time was not told here")
        if claims.jti in self.jtis:
            return self.refusal(401, "the assertion was used before")
        self.jtis.append(claims.jti)
        self.hub_times.append(claims.hub_time)
        cluster = form.get("audience")
        token = "token-for-hub" if cluster is None else f"token-{self.token_calls}-{cluster}"
        return self.json(200, {"access_token": token, "expires_in": self.expires_in})

    def now(self) -> float:
        return time.time() + self.ahead_s

    def right_time(self, error: TokenError) -> dict[str, str]:
        return {} if error.skew_s is None else {"hub_time": hub_time(PEPPER, self.now())}

    @staticmethod
    def json(status: int, document: object) -> Reply:
        return status, {"content-type": "application/json"}, json.dumps(document).encode()

    @classmethod
    def refusal(cls, status: int, description: str, **more: str) -> Reply:
        return cls.json(status, {"error": "invalid_client", "error_description": description, **more})


@contextmanager
def fake_hub(
    api_key: str,
    host: str = "127.0.0.1",
    *,
    name: str = "",
    ends: datetime | None = None,
    ca: trustme.CA | None = None,
) -> Iterator[FakeHub]:
    """Serve a FakeHub on loopback for the block; with a `name`, it goes by that.

    `ends` is when its certificate does; it is of a CA of its own if none is given.
    """
    ca = ca or trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(name or host, not_after=ends).configure_cert(context)

    with serve_https(host, context, lambda asked: hub.answer(asked)) as port:
        hub = FakeHub(f"https://{name or host}:{port}", ca.cert_pem.bytes().decode(), api_key)
        yield hub
