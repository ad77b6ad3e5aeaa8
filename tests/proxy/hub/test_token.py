from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlencode

import attrs
import pytest

from audit.record import ActorType, Event, Kind, encode
from auth.apikey import hash as hash_key
from auth.apikey import new_api_key
from auth.keys import KeySet, SigningKey
from auth.tokens import TokenError, verify_access
from proxy.hub.datadir import SigningKeys
from proxy.hub.directory import Directory, open_directory
from proxy.hub.store import Store
from proxy.hub.token import FORM_BYTES_MAX, Answer, TokenEndpoint

ISSUER = "https://hub.example"
PEPPER = b"p" * 32
NOW = 1_800_000_000.5
KEY, OTHER_KEY, LOCKED_KEY, RETIRED_KEY, REVOKED_KEY = (new_api_key(bytes([n]) * 32) for n in range(5))
FORM = (b"content-type", b"application/x-www-form-urlencoded")


@attrs.define
class Bench:
    directory: Directory
    endpoint: TokenEndpoint
    signing: SigningKeys
    events: list[Event]

    def ask(
        self, *headers: tuple[bytes, bytes], raw: bytes | None = None, **fields: str
    ) -> tuple[int, dict[str, object]]:
        form = raw if raw is not None else urlencode(fields).encode()
        return self.read(self.endpoint.answer(form, (FORM, *headers), "192.0.2.1"))

    def read(self, answer: Answer) -> tuple[int, dict[str, object]]:
        assert dict(answer.headers)[b"cache-control"] == b"no-store"
        assert dict(answer.headers)[b"content-type"] == b"application/json"
        assert (b"www-authenticate" in dict(answer.headers)) == (answer.status == 401)
        body = json.loads(answer.body)
        assert isinstance(body, dict)
        return answer.status, body

    def token(self, key: str = KEY, **fields: str) -> tuple[int, dict[str, object]]:
        return self.ask(
            **{"grant_type": "client_credentials", "client_secret": key, "audience": "prod", **fields}
        )


def enrol(store: Store) -> None:
    for team in ("sre", "web"):
        store.add_team(team)
    for name, team, key in (
        ("sre-1", "sre", KEY),
        ("web-1", "web", OTHER_KEY),
        ("locked", "sre", LOCKED_KEY),
        ("retired", "sre", RETIRED_KEY),
    ):
        store.add_agent(name, owner="ada", teams=[team], key_hash=hash_key(key, PEPPER), key_hint=key[:8])
    revoked = store.add_api_key("sre-1", key_hash=hash_key(REVOKED_KEY, PEPPER), key_hint="x")
    store.revoke_api_key("sre-1", revoked)
    store.lock_agent("locked")
    store.retire_agent("retired")
    for cluster in ("prod", "dev"):
        store.add_cluster(
            cluster, relay_key=SigningKey.generate().public, teams=["sre"], labels={"env": cluster}
        )


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    key = SigningKey.generate()
    signing = SigningKeys(key, (key,))
    events: list[Event] = []
    async with open_directory(tmp_path / "hub.db", org="main", clock=lambda: NOW) as directory:
        await directory.change(enrol)
        endpoint = TokenEndpoint(
            directory=directory,
            keys=lambda: signing,
            pepper=PEPPER,
            issuer=ISSUER,
            record=events.append,
            clock=lambda: NOW,
        )
        yield Bench(directory, endpoint, signing, events)


def basic(name: str, key: str) -> tuple[bytes, bytes]:
    return b"authorization", b"Basic " + base64.b64encode(f"{name}:{key}".encode())


async def test_a_key_buys_a_token_for_one_granted_cluster(bench: Bench) -> None:
    status, body = bench.token()
    assert status == 200
    assert (body["token_type"], body["issued_token_type"]) == (
        "Bearer",
        "urn:ietf:params:oauth:token-type:access_token",
    )
    # The token's minute began half a second ago.
    assert body["expires_in"] == 59
    token = body["access_token"]
    assert isinstance(token, str)
    keys = bench.signing.public
    claims = verify_access(token, keys, issuer=ISSUER, org="main", cluster="prod", now=NOW)
    assert (claims.principal.user, claims.principal.groups) == ("agent:sre-1", ("main/sre",))
    assert claims.expires_at - claims.issued_at == 60
    with pytest.raises(TokenError):
        verify_access(token, keys, issuer=ISSUER, org="main", cluster="dev", now=NOW)
    (event,) = bench.events
    assert (event.kind, event.actor.type, event.actor.name, event.cluster_name) == (
        Kind.TOKEN_ISSUED,
        ActorType.AGENT,
        "sre-1",
        "prod",
    )
    assert event.actor.jti == claims.jti
    assert event.actor.credential == f"api-key:{claims.sid}"
    assert event.client is not None
    assert event.client.ip == "192.0.2.1"


@pytest.mark.parametrize(
    "headers_and_fields",
    [
        ([], {"client_secret": KEY, "client_id": "sre-1"}),
        ([basic("sre-1", KEY)], {}),
        ([basic("", KEY)], {}),
        ([basic("sre-1", KEY)], {"client_id": "sre-1"}),
        ([], {"client_secret": KEY, "audience": "urn:hawse:main:cluster:prod"}),
        ([], {"client_secret": KEY, "audience": "", "resource": f"{ISSUER}/clusters/prod"}),
        ([], {"client_secret": KEY, "resource": f"{ISSUER}/clusters/prod/", "unknown": "ignored"}),
    ],
)
async def test_every_way_to_show_the_key_and_name_the_cluster(
    bench: Bench, headers_and_fields: tuple[list[tuple[bytes, bytes]], dict[str, str]]
) -> None:
    headers, fields = headers_and_fields
    status, _ = bench.ask(*headers, **{"grant_type": "client_credentials", "audience": "prod", **fields})
    assert status == 200
    assert len(bench.events) == 1


async def test_refusals_of_a_credential_cannot_be_told_apart(bench: Bench) -> None:
    unknown = new_api_key(b"u" * 32)
    attempts = [
        bench.token(unknown),
        bench.token("hws_" + "A" * 49),
        bench.token(KEY[:-1]),
        bench.token("'; drop table agents; --"),
        bench.token(REVOKED_KEY),
        bench.token(LOCKED_KEY),
        bench.token(RETIRED_KEY),
        bench.token(KEY, client_id="web-1"),
        bench.token(KEY, client_id="nobody"),
        bench.token(unknown, audience="none"),
        bench.token(LOCKED_KEY, audience="none"),
        bench.ask(grant_type="client_credentials", audience="prod"),
        bench.ask(basic("sre-1", OTHER_KEY), grant_type="client_credentials", audience="prod"),
    ]
    assert {status for status, _ in attempts} == {401}
    assert len({json.dumps(body) for _, body in attempts}) == 1
    assert attempts[0][1]["error"] == "invalid_client"
    # The trail says which it was, once each.
    assert len(bench.events) == len(attempts)
    assert {event.kind for event in bench.events} == {Kind.AUTH_FAILED}
    assert [event.note for event in bench.events[4:8]] == [
        "the API key is unknown or revoked",
        "the agent is locked",
        "the API key is unknown or revoked",
        "the API key belongs to another agent",
    ]
    assert bench.events[5].actor.name == "locked"
    assert bench.events[0].actor.type is ActorType.ANONYMOUS


async def test_a_cluster_that_is_not_granted_looks_like_one_that_does_not_exist(bench: Bench) -> None:
    missing = bench.token(KEY, audience="none")
    denied = bench.token(OTHER_KEY, audience="prod")
    assert missing == denied
    assert missing[0] == 400
    assert missing[1]["error"] == "invalid_target"
    assert [event.note for event in bench.events] == [
        "the cluster does not exist",
        "the cluster is not granted to its teams",
    ]


@pytest.mark.parametrize(
    "audience",
    ["system:masters", "prod,dev", "prod\n", "../prod", "urn:hawse:other:cluster:prod", "PROD", "prod\x00"],
)
async def test_hostile_cluster_names_are_just_unknown(bench: Bench, audience: str) -> None:
    status, body = bench.token(KEY, audience=audience)
    assert (status, body["error"]) == (400, "invalid_target")


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"", "invalid_request"),
        (b"grant_type", "invalid_request"),
        (b"grant_type=client_credentials&grant_type=client_credentials", "invalid_request"),
        (b"grant_type=client_credentials&client_secret=a&client_secret=b", "invalid_request"),
        (b"\xff", "invalid_request"),
        (b"a=%ff", "invalid_request"),
        (b"&".join(b"a%d=1" % n for n in range(50)), "invalid_request"),
        (b"a=" + b"x" * FORM_BYTES_MAX, "invalid_request"),
        (b"{}", "invalid_request"),
        (b"a=1", "invalid_request"),
        (b"grant_type=password&audience=prod", "unsupported_grant_type"),
        (b"grant_type=urn:ietf:params:oauth:grant-type:token-exchange", "unsupported_grant_type"),
        (b"grant_type=client_credentials", "invalid_target"),
        (b"grant_type=client_credentials&audience=", "invalid_target"),
        (
            b"grant_type=client_credentials&audience=prod&resource=https://evil/clusters/prod",
            "invalid_target",
        ),
        (
            b"grant_type=client_credentials&audience=prod&resource=https://hub.example/clusters/dev",
            "invalid_target",
        ),
    ],
)
async def test_malformed_requests(bench: Bench, raw: bytes, error: str) -> None:
    status, body = bench.ask(raw=raw)
    assert (status, body["error"]) == (400, error)
    (event,) = bench.events
    assert event.kind is Kind.MALFORMED


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ((b"content-type", b"application/json"),),
        (FORM, FORM),
        (FORM, basic("sre-1", KEY), basic("sre-1", KEY)),
        (FORM, (b"authorization", b"Basic !!!")),
        (FORM, (b"authorization", b"Basic " + base64.b64encode(b"no colon"))),
        (FORM, (b"authorization", b"Basic " + base64.b64encode(b"\xff:\xff"))),
    ],
)
async def test_malformed_headers(bench: Bench, headers: tuple[tuple[bytes, bytes], ...]) -> None:
    form = urlencode({"grant_type": "client_credentials", "audience": "prod"}).encode()
    status, body = bench.read(bench.endpoint.answer(form, headers, "192.0.2.1"))
    assert (status, body["error"]) == (400, "invalid_request")


async def test_two_credentials_are_ambiguous(bench: Bench) -> None:
    fields = {"grant_type": "client_credentials", "audience": "prod"}
    for extra in ({"client_secret": KEY}, {"client_id": "web-1"}):
        status, body = bench.ask(basic("sre-1", KEY), **fields, **extra)
        assert (status, body["error"]) == (400, "invalid_request")


async def test_a_form_with_a_charset_is_a_form(bench: Bench) -> None:
    form = urlencode({"grant_type": "client_credentials", "audience": "prod", "client_secret": KEY}).encode()
    headers = ((b"content-type", b"Application/X-WWW-Form-urlencoded; charset=UTF-8"),)
    assert bench.endpoint.answer(form, headers, "192.0.2.1").status == 200


async def test_a_lock_holds_at_once_and_so_does_a_grant(bench: Bench) -> None:
    await bench.directory.change(lambda store: store.lock_agent("sre-1"))
    assert bench.token()[0] == 401
    await bench.directory.change(lambda store: store.unlock_agent("sre-1"))
    await bench.directory.change(lambda store: store.revoke("prod", "sre"))
    assert bench.token()[0] == 400
    await bench.directory.change(lambda store: store.grant("prod", "web"))
    assert bench.token(OTHER_KEY)[0] == 200


async def test_neither_key_nor_token_reaches_the_trail(bench: Bench) -> None:
    _, body = bench.token()
    bench.token(KEY, client_id="web-1")
    bench.ask(basic("nobody", KEY), grant_type="client_credentials", audience="prod")
    bench.ask(raw=b"grant_type=client_credentials&client_secret=" + KEY.encode() + b"&%%")
    bench.endpoint.clusters(((b"authorization", b"Bearer " + OTHER_KEY.encode() + b"x"),), "192.0.2.1")
    assert len(bench.events) == 5
    written = b"\n".join(encode(event) for event in bench.events).decode()
    for secret in (
        KEY,
        KEY[8:],
        OTHER_KEY[8:],
        str(body["access_token"]),
        hash_key(KEY, PEPPER),
        PEPPER.decode(),
    ):
        assert secret not in written


async def test_an_agent_sees_its_clusters(bench: Bench) -> None:
    for header in (basic("sre-1", KEY), (b"authorization", b"bearer " + KEY.encode())):
        status, body = bench.read(bench.endpoint.clusters((header,), "192.0.2.1"))
        assert status == 200
        assert body == {
            "agent": "sre-1",
            "org": "main",
            "teams": ["sre"],
            "clusters": [
                {"name": n, "labels": {"env": n}, "mode": "tunnel", "url": f"{ISSUER}/clusters/{n}"}
                for n in ("dev", "prod")
            ],
        }
    status, body = bench.read(bench.endpoint.clusters((basic("", OTHER_KEY),), "192.0.2.1"))
    assert body["clusters"] == []


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (basic("sre-1", LOCKED_KEY),),
        ((b"authorization", b"Bearer x"),),
        ((b"authorization", b"Digest x"),),
    ],
)
async def test_a_stranger_sees_no_clusters(bench: Bench, headers: tuple[tuple[bytes, bytes], ...]) -> None:
    status, body = bench.read(bench.endpoint.clusters(headers, "192.0.2.1"))
    assert (status, body["error"]) == (401, "invalid_client")
    assert [event.kind for event in bench.events] == [Kind.AUTH_FAILED]


async def test_use_is_noted(bench: Bench) -> None:
    bench.token()
    bench.token(LOCKED_KEY)
    await bench.directory.write_use()
    agents = bench.directory.current.agents_by_name
    assert agents["sre-1"].last_used_at == NOW
    assert agents["locked"].last_used_at is None


async def test_the_jwks_holds_the_public_keys_alone(bench: Bench) -> None:
    answer = bench.endpoint.jwks()
    assert [key.kid for key in KeySet.from_jwks(answer.body)] == [bench.signing.active.kid]
    assert b'"d"' not in answer.body
