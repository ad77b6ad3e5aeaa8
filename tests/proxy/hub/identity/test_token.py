from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode

import attrs
import pytest
import trio
import trio.testing

from audit.record import ActorType, Kind, encode
from auth.apikey import hash as hash_key
from auth.apikey import new_api_key
from auth.assertion import issue_assertion
from auth.hubtime import hub_time, seconds_of
from auth.jws import TokenError
from auth.keys import KeySet, SigningKey
from auth.tokens import issue_access, verify_access
from proxy.agent.https.connection import SOCKET_TIMEOUT_S
from proxy.hub.home.sections.limits import AgentLimitsConfig, LimitsConfig
from proxy.hub.identity.oauth import FORM_BYTES_MAX, JWT_BEARER
from proxy.hub.identity.replay import ReplayCache
from proxy.hub.identity.replay_store import open_replay_store
from proxy.hub.identity.token import TokenEndpoint
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.store import Store
from tests.fakes.replays import HeldTable, open_replays, table_at, unreachable
from tests.proxy.hub.identity.token_bench import (
    AGENT_KEY,
    FORM,
    ISSUER,
    KEY,
    LIMITS,
    LOCKED_AGENT_KEY,
    LOCKED_KEY,
    NOW,
    OTHER_KEY,
    PEPPER,
    RETIRED_KEY,
    REVOKED_KEY,
    STRANGERS_KEY,
    Bench,
    basic,
    open_bench,
)
from tests.system.hostile import Forger

HUB = "urn:hawse:main:hub"


@pytest.fixture
async def bench(tmp_path: Path, database: Location) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path, lambda: NOW, database) as bench:
        yield bench


def assertion(key: SigningKey = AGENT_KEY, agent: str = "sre-1", jti: str = "j", now: float = NOW) -> str:
    return issue_assertion(key.key, agent=agent, hub_url=ISSUER, jti=jti, now=now)


def signed(token: str, **fields: str) -> dict[str, str]:
    return {
        "grant_type": "client_credentials",
        "client_assertion_type": JWT_BEARER,
        "client_assertion": token,
        "audience": "prod",
        **fields,
    }


async def test_an_agent_that_has_filled_its_share_of_the_trail_gets_no_token(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = bench.directory.current.agents_by_name["sre-1"]
    owed = {(agent.id, "sre-1"): "agent:sre-1 adds too much to the trail"}
    monkeypatch.setattr(bench.endpoint, "_audit_debt", lambda *asked: owed.get(asked, ""))
    status, body = await bench.token()
    assert (status, body["error"]) == (429, "slow_down")
    assert body["error_description"] == "agent:sre-1 adds too much to the trail"
    # The refusal is an event of that agent, and charged to it.
    assert bench.events[-1].agent == "sre-1"
    owed.clear()
    assert (await bench.token())[0] == 200


async def test_an_agent_is_given_so_many_tokens_within_a_minute_and_others_theirs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = 1000.0
    monkeypatch.setattr(bench.endpoint, "_monotonic", lambda: at)
    own = AgentLimitsConfig(tokens_per_minute=3)
    monkeypatch.setattr(bench.endpoint, "_limits", LimitsConfig(agents={"sre-1": own}))
    assert [(await bench.token())[0] for _ in range(5)] == [200, 200, 200, 429, 429]
    # With any credential, and for any cluster.
    status, body = await bench.ask(**signed(assertion(), audience="dev"))
    assert (status, body["error"]) == (429, "slow_down")
    assert "more than 3 tokens a minute (limits.tokens_per_minute)" in str(body["error_description"])
    assert (await bench.token(OTHER_KEY))[1]["error"] == "invalid_target"
    assert [event.kind for event in bench.events].count(Kind.TOKEN_ISSUED) == 3
    at += 20
    assert (await bench.token())[0] == 200
    assert (await bench.token())[0] == 429
    monkeypatch.setattr(bench.endpoint, "_limits", LimitsConfig(tokens_per_minute=0))
    assert (await bench.token())[0] == 200


async def test_no_token_is_issued_while_the_trail_is_down_and_only_agents_learn_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.endpoint, "_recording", lambda: False)
    for status, body in (await bench.token(), await bench.ask(**signed(assertion()))):
        assert (status, body["error"]) == (503, "temporarily_unavailable")
        assert "the audit trail cannot be written, so no token is issued" in str(body["error_description"])
    assert (await bench.token(new_api_key(b"x" * 32)))[0] == 401
    assert Kind.TOKEN_ISSUED not in {event.kind for event in bench.events}


async def test_a_key_buys_a_token_for_one_granted_cluster(bench: Bench) -> None:
    status, body = await bench.token()
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
    assert event.req is not None
    assert (event.req.method, event.req.raw_target) == ("POST", "/oauth/token")
    assert event.resp is not None
    assert event.resp.status == 200
    assert event.decision is not None
    assert event.decision.effect == "allow"


@pytest.mark.parametrize(("now", "left"), [(1_800_000_000.0, 60), (1_800_000_000.999, 59)])
async def test_a_token_is_kept_no_longer_than_it_lives(tmp_path: Path, now: float, left: int) -> None:
    async with open_bench(tmp_path, lambda: now) as bench:
        status, body = await bench.token()
        assert (status, body["expires_in"]) == (200, left)
        token, keys = str(body["access_token"]), bench.signing.public
        verify_access(token, keys, issuer=ISSUER, org="main", cluster="prod", now=now + left - 0.01)


@asynccontextmanager
async def held_writes(bench: Bench, folder: Path) -> AsyncIterator[HeldTable]:
    """Give the endpoint a store of used tokens whose first write waits for the test."""
    held = HeldTable(table_at(folder / "held.db"))
    async with open_replay_store(held) as store:
        bench.endpoint._replays.store = store
        yield held


async def test_a_token_counts_from_when_it_is_made(tmp_path: Path) -> None:
    """And not from when it was asked for: the note of an assertion may have taken its time."""
    now = NOW
    async with open_bench(tmp_path, lambda: now) as bench, held_writes(bench, tmp_path) as held:
        answers: list[tuple[int, dict[str, object]]] = []

        async def ask() -> None:
            answers.append(await bench.ask(**signed(assertion())))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await held.reached.wait()
            now += 30
            held.go.set()
    [(status, body)] = answers
    assert status == 200
    claims = verify_access(
        str(body["access_token"]), bench.signing.public, issuer=ISSUER, org="main", cluster="prod", now=now
    )
    assert claims.issued_at == int(NOW) + 30


@pytest.mark.parametrize(
    "headers_and_fields",
    [
        ([], {"client_secret": KEY, "client_id": "sre-1"}),
        ([basic("sre-1", KEY)], {}),
        ([basic("", KEY)], {}),
        ([basic("sre-1", KEY)], {"client_id": "sre-1"}),
        ([], {"client_secret": KEY, "audience": "urn:hawse:main:cluster:prod"}),
        ([], {"client_secret": KEY, "audience": "", "resource": f"{ISSUER}/clusters/prod"}),
        ([], {"client_secret": KEY, "audience": "prod", "resource": f"{ISSUER}/clusters/prod"}),
        ([], {"client_secret": KEY, "resource": f"{ISSUER}/clusters/prod/", "unknown": "ignored"}),
    ],
)
async def test_every_way_to_show_the_key_and_name_the_cluster(
    bench: Bench, headers_and_fields: tuple[list[tuple[bytes, bytes]], dict[str, str]]
) -> None:
    headers, fields = headers_and_fields
    status, _ = await bench.ask(
        *headers, **{"grant_type": "client_credentials", "audience": "prod", **fields}
    )
    assert status == 200
    assert len(bench.events) == 1


async def test_refusals_of_a_credential_are_indistinguishable(bench: Bench) -> None:
    unknown = new_api_key(b"u" * 32)
    attempts = [
        await bench.token(unknown),
        await bench.token("hws_" + "A" * 49),
        await bench.token(KEY[:-1]),
        await bench.token("'; drop table agents; --"),
        await bench.token(REVOKED_KEY),
        await bench.token(RETIRED_KEY),
        await bench.token(KEY, client_id="web-1"),
        await bench.token(KEY, client_id="nobody"),
        await bench.token(unknown, audience="none"),
        await bench.token(LOCKED_KEY, client_id="sre-1"),
        await bench.ask(grant_type="client_credentials", audience="prod"),
        await bench.ask(basic("sre-1", OTHER_KEY), grant_type="client_credentials", audience="prod"),
    ]
    assert {status for status, _ in attempts} == {401}
    assert len({json.dumps(body) for _, body in attempts}) == 1
    assert attempts[0][1] == {
        "error": "invalid_client",
        "error_description": (
            "the credential is not accepted: this hub does not know it, or it was revoked; "
            f"ask the hub's operator for a code, then run `hawse login --hub {ISSUER} --code`"
        ),
    }
    # The trail says which it was, once each.
    assert len(bench.events) == len(attempts)
    assert {event.kind for event in bench.events} == {Kind.AUTH_FAILED}
    assert [event.note for event in bench.events[4:7]] == [
        "the API key is unknown or revoked",
        "the API key is unknown or revoked",
        "the credential belongs to another agent",
    ]
    assert bench.events[9].actor.name == "locked"
    assert bench.events[0].actor.type is ActorType.ANONYMOUS


async def test_the_holder_of_a_valid_credential_learns_that_its_agent_is_locked(bench: Bench) -> None:
    told = {
        "error": "access_denied",
        "error_description": (
            "agent:locked is locked: ask the operator of this hub to unlock it "
            "(`hawse admin agent unlock locked`)"
        ),
    }
    assert await bench.token(LOCKED_KEY) == (403, told)
    # For any target.
    assert await bench.token(LOCKED_KEY, audience="none") == (403, told)
    assert await bench.ask(**signed(assertion(LOCKED_AGENT_KEY, "locked"))) == (403, told)
    shown = basic("locked", LOCKED_KEY)
    assert bench.read(bench.endpoint.clusters((shown,), "192.0.2.1")) == (403, told)
    _, body = await bench.token(KEY, audience="", resource=ISSUER)
    await bench.directory.change(lambda store: store.lock_agent("sre-1"))
    bearer = b"authorization", f"Bearer {body['access_token']}".encode()
    status, body = bench.read(bench.endpoint.clusters((bearer,), "192.0.2.1"))
    assert (status, "agent:sre-1 is locked" in str(body["error_description"])) == (403, True)
    refused = [event for event in bench.events if event.kind is Kind.AUTH_FAILED]
    assert [event.note for event in refused] == ["the agent is locked"] * 5


async def test_a_cluster_that_is_not_granted_looks_like_one_that_does_not_exist(bench: Bench) -> None:
    missing = await bench.token(KEY, audience="none")
    denied = await bench.token(OTHER_KEY, audience="prod")
    assert missing == denied
    assert missing[0] == 400
    assert missing[1]["error"] == "invalid_target"
    assert [event.note for event in bench.events] == [
        "the cluster does not exist",
        "the cluster is not granted to its teams",
    ]


@pytest.mark.parametrize(
    "audience",
    [
        *("system:masters", "prod,dev", "prod\n", "../prod", "PROD", "prod\x00", "prod ", "hub"),
        *("urn:hawse:other:cluster:prod", "urn:hawse:other:hub", "urn:hawse:main:cluster:"),
        *("xurn:hawse:main:cluster:prod", "urn:hawse:main:hub:", ISSUER, f"{ISSUER}/clusters/prod"),
    ],
)
async def test_hostile_cluster_names_are_just_unknown(bench: Bench, audience: str) -> None:
    status, body = await bench.token(KEY, audience=audience)
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
        (b"grant_type=urn:ietf:params:oauth:grant-type:token-exchange", "invalid_request"),
        (b"grant_type=client_credentials", "invalid_target"),
        (b"grant_type=client_credentials&audience=", "invalid_target"),
        (b"grant_type=client_credentials&resource=prod", "invalid_target"),
        (b"grant_type=client_credentials&resource=https://hub.example/clusters", "invalid_target"),
        (b"grant_type=client_credentials&resource=https://hub.example/clusters/", "invalid_target"),
        (b"grant_type=client_credentials&resource=https://hub.example.evil/clusters/prod", "invalid_target"),
        (b"grant_type=client_credentials&resource=http://hub.example/clusters/prod", "invalid_target"),
        (b"grant_type=client_credentials&resource=x/https://hub.example/clusters/prod", "invalid_target"),
        (b"grant_type=client_credentials&audience=prod&resource=https://hub.example", "invalid_target"),
        (
            b"grant_type=client_credentials&audience=urn:hawse:main:hub&resource=https://hub.example/clusters/prod",
            "invalid_target",
        ),
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
    status, body = await bench.ask(raw=raw)
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
    status, body = bench.read(await bench.endpoint.answer(form, headers, "192.0.2.1"))
    assert (status, body["error"]) == (400, "invalid_request")


async def test_two_credentials_are_ambiguous(bench: Bench) -> None:
    fields = {"grant_type": "client_credentials", "audience": "prod"}
    for extra in ({"client_secret": KEY}, {"client_id": "web-1"}):
        status, body = await bench.ask(basic("sre-1", KEY), **fields, **extra)
        assert (status, body["error"]) == (400, "invalid_request")


async def test_a_form_with_a_charset_is_a_form(bench: Bench) -> None:
    form = urlencode({"grant_type": "client_credentials", "audience": "prod", "client_secret": KEY}).encode()
    headers = ((b"content-type", b"Application/X-WWW-Form-urlencoded; charset=UTF-8"),)
    assert (await bench.endpoint.answer(form, headers, "192.0.2.1")).status == 200


async def test_a_lock_holds_at_once_and_so_does_a_grant(bench: Bench) -> None:
    await bench.directory.change(lambda store: store.lock_agent("sre-1"))
    assert (await bench.token())[0] == 403
    await bench.directory.change(lambda store: store.unlock_agent("sre-1"))
    await bench.directory.change(lambda store: store.revoke("prod", "sre"))
    assert (await bench.token())[0] == 400
    await bench.directory.change(lambda store: store.grant("prod", "web"))
    assert (await bench.token(OTHER_KEY))[0] == 200


async def test_neither_key_nor_token_reaches_the_trail(bench: Bench) -> None:
    _, body = await bench.token()
    await bench.token(KEY, client_id="web-1")
    await bench.ask(basic("nobody", KEY), grant_type="client_credentials", audience="prod")
    await bench.ask(raw=b"grant_type=client_credentials&client_secret=" + KEY.encode() + b"&%%")
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
    _, own = bench.directory.current.api_keys_by_hash[hash_key(KEY, PEPPER)]
    for header in (basic("sre-1", KEY), (b"authorization", b"bearer " + KEY.encode())):
        status, body = bench.read(bench.endpoint.clusters((header,), "192.0.2.1"))
        assert status == 200
        assert body == {
            "agent": "sre-1",
            "org": "main",
            "teams": ["sre"],
            "hub": ISSUER,
            "credential": own.id,
            "now": NOW,
            "clusters": [
                {
                    "name": n,
                    "labels": {"env": n},
                    "mode": "tunnel",
                    "url": f"{ISSUER}/clusters/{n}",
                    "state": "not tried",
                    "may": "all",
                }
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
async def test_an_unauthenticated_sender_sees_no_clusters(
    bench: Bench, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    status, body = bench.read(bench.endpoint.clusters(headers, "192.0.2.1"))
    assert (status, body["error"]) == (401, "invalid_client")
    [event] = bench.events
    assert event.req is not None
    assert (event.kind, event.req.method, event.req.raw_target) == (Kind.AUTH_FAILED, "GET", "/v1/clusters")


async def test_use_is_noted(bench: Bench) -> None:
    await bench.token()
    await bench.token(LOCKED_KEY)
    await bench.directory.write_use()
    agents = bench.directory.current.agents_by_name
    keys = bench.directory.current.api_keys_by_hash.values()
    [key] = [key for agent, key in keys if agent.name == "sre-1"]
    assert await bench.directory.read(Store.last_used) == {agents["sre-1"].id: NOW, key.id: NOW}
    bench.endpoint.clusters((basic("", OTHER_KEY),), "192.0.2.1")
    await bench.directory.write_use()
    assert agents["web-1"].id in await bench.directory.read(Store.last_used)


async def test_the_jwks_holds_the_public_keys_alone(bench: Bench) -> None:
    answer = bench.endpoint.jwks()
    assert answer.headers == (
        (b"content-type", b"application/jwk-set+json"),
        (b"cache-control", b"public, max-age=300"),
    )
    assert [key.kid for key in KeySet.from_jwks(answer.body)] == [bench.signing.active.kid]
    assert b'"d"' not in answer.body


# -- keys of the agents' own ---------------------------------------------------------------------------------


async def test_an_assertion_buys_a_token_and_is_named_in_the_trail(bench: Bench) -> None:
    status, body = await bench.ask(**signed(assertion()))
    assert status == 200
    claims = verify_access(
        str(body["access_token"]),
        bench.signing.public,
        issuer=ISSUER,
        org="main",
        cluster="prod",
        now=NOW,
    )
    assert claims.principal.user == "agent:sre-1"
    [event] = bench.events
    assert (event.kind, event.actor.credential) == (Kind.TOKEN_ISSUED, f"key:{claims.sid}")
    await bench.directory.write_use()
    [(agent, key)] = [
        each for each in bench.directory.current.agent_keys_by_kid.values() if each[0].name == "sre-1"
    ]
    assert await bench.directory.read(Store.last_used) == {agent.id: NOW, key.id: NOW}


async def test_an_assertion_is_good_once(bench: Bench) -> None:
    token = assertion()
    assert (await bench.ask(**signed(token)))[0] == 200
    status, body = await bench.ask(**signed(token))
    assert (status, body["error"]) == (401, "invalid_client")
    assert "used before" in str(body["error_description"])
    assert bench.events[-1].actor.name == "sre-1"
    assert (await bench.ask(**signed(assertion(jti="k"))))[0] == 200


async def test_an_assertion_that_was_refused_for_another_agent_is_still_good(bench: Bench) -> None:
    token = assertion()
    assert (await bench.ask(**signed(token, client_id="web-1")))[0] == 401
    assert (await bench.ask(**signed(token, client_id="sre-1")))[0] == 200


async def test_an_assertion_is_good_once_over_a_restart_as_well(tmp_path: Path) -> None:
    token = assertion()
    async with open_replays(tmp_path / "seen.db") as replays:
        async with open_bench(tmp_path, lambda: NOW) as bench:
            assert (await bench.ask(**signed(token)))[0] == 200
            again = TokenEndpoint(
                directory=bench.directory,
                keys=lambda: bench.signing,
                pepper=PEPPER,
                issuer=ISSUER,
                record=bench.events.append,
                clock=lambda: NOW + 55,
                replays=replays,
                limits=LIMITS,
                recording=lambda: True,
                state_of=lambda cluster: "not tried",
            )
            status, body = attrs.evolve(bench, endpoint=again).read(
                await again.answer(urlencode(signed(token)).encode(), (FORM,), "192.0.2.1")
            )
            assert (status, body["error"]) == (401, "invalid_client")
            assert "used before" in str(body["error_description"])


async def test_no_token_is_issued_for_an_assertion_whose_use_cannot_be_recorded(
    bench: Bench, tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    cache = bench.endpoint._replays
    store, token = cache.store, assertion()
    answers: list[tuple[int, dict[str, object]]] = []

    async def ask() -> None:
        answers.append(await bench.ask(**signed(token)))

    async with open_replays(unreachable(tmp_path)) as away, trio.open_nursery() as nursery:
        cache.store = away
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        # Half of the time that an agent waits for its answer.
        mock_clock.jump(SOCKET_TIMEOUT_S / 2)
    cache.store = store
    [(status, body)] = answers
    assert (status, body["error"]) == (503, "temporarily_unavailable")
    told = "the hub's database did not record in 5 s that the assertion is used: try again"
    assert body["error_description"] == told
    assert [(event.kind, event.actor.name, event.note) for event in bench.events] == [
        (Kind.AUTH_FAILED, "sre-1", told)
    ]
    # It may have been recorded all the same.
    assert (await bench.ask(**signed(token)))[0] == 401
    assert (await bench.ask(**signed(assertion(jti="k"))))[0] == 200


async def test_refused_assertions_look_like_refused_keys(bench: Bench) -> None:
    attempts = [
        await bench.token("x"),
        await bench.ask(**signed(assertion(STRANGERS_KEY))),
        await bench.ask(**signed(assertion(LOCKED_AGENT_KEY, "sre-1"))),
        await bench.ask(**signed(assertion(agent="web-1"))),
        await bench.ask(**signed(assertion(jti="2"), client_id="web-1")),
        await bench.ask(**signed("x.y.z")),
        await bench.ask(**signed("x")),
    ]
    assert {status for status, _ in attempts} == {401}
    assert len({json.dumps(body) for _, body in attempts}) == 1
    assert {event.kind for event in bench.events} == {Kind.AUTH_FAILED}


async def test_a_key_holder_that_uses_another_name_for_the_hub_gets_the_right_one(bench: Bench) -> None:
    for key, is_told in ((AGENT_KEY, True), (STRANGERS_KEY, False)):
        other_hub = issue_assertion(key.key, agent="sre-1", hub_url="https://else.example", jti="1", now=NOW)
        status, body = await bench.ask(**signed(other_hub))
        assert (status, body["error"], "hub_time" in body) == (401, "invalid_client", False)
        step = f"ask its operator for a code, then run `hawse login --hub {ISSUER} --code`"
        assert (body["error_description"] == f"this hub calls itself {ISSUER}: {step}") is is_told


async def test_a_cluster_url_with_another_hub_name_is_refused_with_the_right_one(bench: Bench) -> None:
    _, body = await bench.token(audience="", resource="https://else.example")
    assert body["error_description"] == (
        f"this hub calls itself {ISSUER}: run `hawse login --hub {ISSUER}`, "
        f"or name a cluster by {ISSUER}/clusters/<name>"
    )


async def test_only_the_key_holder_learns_that_its_clock_is_wrong(bench: Bench) -> None:
    for now in (NOW - 90, NOW + 90):
        _, body = await bench.ask(**signed(assertion(now=now)))
        assert "clocks differ" in str(body["error_description"])
        _, body = await bench.ask(**signed(assertion(STRANGERS_KEY, now=now)))
        assert "clocks" not in str(body["error_description"])


def dated(hub_time: str, now: float = NOW, jti: str = "again") -> dict[str, str]:
    return signed(
        issue_assertion(AGENT_KEY.key, agent="sre-1", hub_url=ISSUER, jti=jti, now=now, hub_time=hub_time)
    )


async def test_an_agent_with_a_wrong_clock_gets_the_hubs_time_and_signs_by_it_once(bench: Bench) -> None:
    for number, now in enumerate((NOW - 90, NOW + 90, NOW + 1e9)):
        status, body = await bench.ask(**signed(assertion(now=now)))
        told = str(body["hub_time"])
        assert (status, seconds_of(told)) == (401, int(NOW))
        again = dated(told, jti=str(number))
        assert (await bench.ask(**again))[0] == 200
        _, body = await bench.ask(**again)
        assert "used before" in str(body["error_description"])
        assert "hub_time" not in body


async def test_no_other_refusal_tells_the_time(bench: Bench) -> None:
    for fields in (
        signed(assertion(STRANGERS_KEY, now=NOW - 90)),
        signed(assertion(STRANGERS_KEY)),
        signed(assertion(LOCKED_AGENT_KEY, "locked")),
        signed(assertion(jti="other"), client_id="web-1"),
        signed("x.y.z"),
    ):
        status, body = await bench.ask(**fields)
        assert (status in {401, 403}, "hub_time" in body) == (True, False)


async def test_a_time_that_the_hub_has_not_issued_is_refused(tmp_path: Path) -> None:
    """An attacker in the hub's place could have an agent sign assertions, and collect them for later."""
    now = NOW
    async with open_bench(tmp_path, lambda: now) as bench:
        _, body = await bench.ask(**signed(assertion(now=NOW - 90)))
        heard = str(body["hub_time"])
        later = NOW + 3600
        mac = heard.partition(".")[2]
        gathered = [
            dated(text, later, jti=text)
            for text in (heard, f"{int(later)}.{mac}", hub_time(b"q" * 32, later), "1.2")
        ]
        now = later
        for fields in gathered:
            status, body = await bench.ask(**fields)
            assert (status, body) == await bench.ask(**signed(assertion(STRANGERS_KEY, now=now)))
            assert "has not issued" in bench.events[-2].note
        assert (await bench.ask(**dated(hub_time(PEPPER, later), later)))[0] == 200


async def test_a_revoked_key_and_a_locked_agent_buy_nothing_at_once(bench: Bench) -> None:
    [key] = [k for k in await bench.directory.read(lambda s: s.credentials("sre-1")) if "key:" in k.label[:4]]
    await bench.directory.change(lambda store: store.lock_agent("sre-1"))
    assert (await bench.ask(**signed(assertion(jti="1"))))[0] == 403
    await bench.directory.change(lambda store: store.unlock_agent("sre-1"))
    assert (await bench.ask(**signed(assertion(jti="2"))))[0] == 200
    await bench.directory.change(lambda store: store.revoke_key("sre-1", key.id))
    assert (await bench.ask(**signed(assertion(jti="3"))))[0] == 401


@pytest.mark.parametrize("taken", ["key", "agent"])
async def test_what_is_taken_back_while_the_use_is_written_buys_nothing(
    bench: Bench, tmp_path: Path, taken: str
) -> None:
    [key] = [k for k in await bench.directory.read(lambda s: s.credentials("sre-1")) if "key:" in k.label[:4]]
    answers: list[tuple[int, dict[str, object]]] = []

    async def ask() -> None:
        answers.append(await bench.ask(**signed(assertion())))

    async with held_writes(bench, tmp_path) as held, trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await held.reached.wait()
        if taken == "key":
            await bench.directory.change(lambda store: store.revoke_key("sre-1", key.id))
        else:
            await bench.directory.change(lambda store: store.lock_agent("sre-1"))
        held.go.set()
    [(status, body)] = answers
    expected = (401, "invalid_client") if taken == "key" else (403, "access_denied")
    assert (status, body["error"]) == expected
    assert [event.kind for event in bench.events] == [Kind.AUTH_FAILED]


@pytest.mark.parametrize(
    "fields",
    [
        {"client_secret": KEY},
        {"client_assertion_type": ""},
        {"client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:saml2-bearer"},
        {"client_assertion": ""},
    ],
)
async def test_an_assertion_comes_alone_and_whole(bench: Bench, fields: dict[str, str]) -> None:
    status, body = await bench.ask(**{**signed(assertion()), **fields})
    assert (status, body["error"]) == (400, "invalid_request")
    status, body = await bench.ask(basic("sre-1", KEY), **signed(assertion()))
    assert (status, body["error"]) == (400, "invalid_request")


async def test_bad_forms_of_an_assertion_are_refused(tmp_path: Path) -> None:
    """C30, C32: tokens that an agent's own key was made to sign."""
    claims = {"iss": "sre-1", "sub": "sre-1", "aud": ISSUER, "jti": "j"}
    forger = Forger(AGENT_KEY.kid, AGENT_KEY.key, "client-authentication+jwt", claims)
    async with open_bench(tmp_path, time.time) as bench:
        for number, (what, make) in enumerate(forger.bad_forms().items()):
            status, body = await bench.ask(**signed(make()))
            assert (status, body["error"]) == (401, "invalid_client"), what
            assert (await bench.ask(**signed(forger.token(jti=str(number)))))[0] == 200


async def test_a_token_for_the_hub_ends_with_the_credential_that_it_was_made_from(bench: Bench) -> None:
    _, body = await bench.ask(**{**signed(assertion()), "audience": "", "resource": ISSUER})
    bearer = ((b"authorization", b"Bearer " + str(body["access_token"]).encode()),)
    assert bench.endpoint.clusters(bearer, "192.0.2.1").status == 200
    _, key = bench.directory.current.agent_keys_by_kid[AGENT_KEY.kid]
    await bench.directory.change(lambda store: store.revoke_key("sre-1", key.id))
    assert bench.directory.current.agents_by_name["sre-1"].active
    assert bench.endpoint.clusters(bearer, "192.0.2.1").status == 401


async def test_a_token_for_the_hub_itself_lists_the_clusters_and_opens_none(bench: Bench) -> None:
    for number, target in enumerate(({"resource": ISSUER}, {"resource": f"{ISSUER}/"}, {"audience": HUB})):
        status, body = await bench.ask(**{**signed(assertion(jti=str(number))), "audience": "", **target})
        assert status == 200
        bearer = b"Bearer " + str(body["access_token"]).encode()
        status, listed = bench.read(bench.endpoint.clusters(((b"authorization", bearer),), "192.0.2.1"))
        assert (status, listed["agent"]) == (200, "sre-1")
    await bench.directory.change(lambda store: store.lock_agent("sre-1"))
    assert bench.endpoint.clusters(((b"authorization", bearer),), "192.0.2.1").status == 403
    await bench.directory.change(lambda store: store.unlock_agent("sre-1"))
    principal = bench.directory.current.agents_by_name["sre-1"].principal
    assert principal is not None
    foreign = SigningKey.generate()
    for key, cluster in ((bench.signing.active, "prod"), (foreign, None)):
        token = issue_access(
            key, issuer=ISSUER, principal=principal, cluster=cluster, sid="s", jti="j", now=NOW
        )
        header = (b"authorization", b"Bearer " + token.encode())
        assert bench.endpoint.clusters((header,), "192.0.2.1").status == 401


async def test_a_token_for_the_hub_is_of_its_own_agent_and_credential(bench: Bench) -> None:
    agents, keys = bench.directory.current.agents_by_name, bench.directory.current.api_keys_by_hash
    owner, own = keys[hash_key(KEY, PEPPER)]
    _, foreign = keys[hash_key(OTHER_KEY, PEPPER)]
    assert owner.principal is not None
    unknown = attrs.evolve(owner.principal, agent_id=str(uuid.uuid4()))
    for principal, sid, expected in (
        (owner.principal, own.id, 200),
        (owner.principal, foreign.id, 401),
        (owner.principal, "none", 401),
        (unknown, own.id, 401),
        (agents["web-1"].principal, own.id, 401),
    ):
        assert principal is not None
        token = issue_access(
            bench.signing.active,
            issuer=ISSUER,
            principal=principal,
            cluster=None,
            sid=sid,
            jti="j",
            now=NOW,
        )
        header = (b"authorization", b"Bearer " + token.encode())
        assert bench.endpoint.clusters((header,), "192.0.2.1").status == expected


AWAY = "this hub cannot confirm its state with the database since 14 s"


@pytest.mark.parametrize("key", [KEY, OTHER_KEY, "wrong"])
async def test_a_hub_that_may_decide_nothing_gives_no_token_and_says_why(bench: Bench, key: str) -> None:
    bench.directory.age.withhold(AWAY)
    refused = (503, {"error": "temporarily_unavailable", "error_description": f"{AWAY}: try again later"})
    assert await bench.token(key) == refused
    answer = bench.endpoint.clusters((basic("sre-1", key),), "192.0.2.1")
    assert (answer.status, json.loads(answer.body)) == refused
    assert [(event.kind, event.note) for event in bench.events] == [
        (Kind.AUTH_FAILED, f"{AWAY}: try again later")
    ] * 2
    # Keys are no decision.
    assert bench.endpoint.jwks().status == 200
    bench.directory.age.withhold("")
    assert (await bench.token())[0] == 200


async def test_a_token_is_refused_too_when_the_hub_may_not_decide_any_more_after_a_wait(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def take_long(*_: object) -> None:
        bench.directory.age.withhold(AWAY)

    monkeypatch.setattr(ReplayCache, "use", take_long)
    status, body = await bench.ask(**signed(assertion()))
    assert (status, body["error"]) == (503, "temporarily_unavailable")
