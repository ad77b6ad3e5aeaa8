"""C36 at the token endpoint: an issuer over real TLS, its rules in the store, its workloads' tokens."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import attrs
import pytest
import trio

from audit.record import Kind, encode
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.engines.errors import ConflictError, InvalidError, NotFoundError
from proxy.hub.store.federation import ISSUERS_MAX, RULES_PER_AGENT_MAX, NewIssuer
from proxy.hub.store.store import Store
from tests.fakes.https import Reply
from tests.fakes.issuer import FakeIssuer, running_issuer
from tests.fakes.jwks import jwk, jwks
from tests.proxy.hub.identity.token_bench import ISSUER as HUB
from tests.proxy.hub.identity.token_bench import Bench, basic, open_bench

EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
JWT = "urn:ietf:params:oauth:token-type:jwt"
PINNED = {"repository_id": "4242", "ref": "refs/heads/main"}


@pytest.fixture
def issuer() -> Iterator[FakeIssuer]:
    with running_issuer() as issuer:
        yield issuer


@pytest.fixture
async def bench(tmp_path: Path, database: Location, issuer: FakeIssuer) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path, time.time, database) as bench:
        await bench.directory.change(lambda store: add_rule(store, issuer))
        yield bench


def described(issuer: FakeIssuer) -> NewIssuer:
    return NewIssuer(issuer.url, ca_pem=issuer.ca_pem, address_private=True)


def add_rule(
    store: Store, issuer: FakeIssuer, agent: str = "sre-1", claims: dict[str, str] | None = None
) -> str:
    return store.add_federation(
        agent, described(issuer), audience=HUB, claims=claims or PINNED, mutable=False
    )


async def exchange(bench: Bench, token: str, **fields: str) -> tuple[int, dict[str, object]]:
    return await bench.ask(
        **{
            "grant_type": EXCHANGE,
            "subject_token": token,
            "subject_token_type": JWT,
            "audience": "prod",
            **fields,
        }
    )


def workload(issuer: FakeIssuer, **claims: object) -> str:
    return issuer.token(**{"aud": HUB, **PINNED, "event_name": "push", **claims})


async def test_a_workloads_token_buys_one_of_ours(bench: Bench, issuer: FakeIssuer) -> None:
    status, body = await exchange(bench, workload(issuer))
    assert status == 200
    assert body["issued_token_type"] == "urn:ietf:params:oauth:token-type:access_token"
    [event] = bench.events
    [(_, rule)] = bench.directory.current.rules_by_issuer[issuer.url]
    assert (event.kind, event.actor.name) == (Kind.TOKEN_ISSUED, "sre-1")
    assert event.actor.credential == f"federation:{rule.id}"
    # Again, and for the hub itself, without asking the issuer.
    asked = len(issuer.asked)
    assert (await exchange(bench, workload(issuer), audience="", resource=HUB))[0] == 200
    assert len(issuer.asked) == asked
    await bench.directory.write_use()
    [(agent, rule)] = bench.directory.current.rules_by_issuer[issuer.url]
    assert (await bench.directory.read(Store.last_used)).keys() == {agent.id, rule.id}


async def test_c36_all_other_workloads_get_one_answer(bench: Bench, issuer: FakeIssuer) -> None:
    with running_issuer() as other:
        tokens = {
            "the same name under another id": workload(issuer, repository_id="9999"),
            "a pull request": workload(issuer, event_name="pull_request"),
            "a pull request's review": workload(issuer, event_name="pull_request_review"),
            "another branch": workload(issuer, ref="refs/heads/mainline"),
            "another audience": workload(issuer, aud="https://else.example"),
            "two audiences": workload(issuer, aud=[HUB, "https://else.example"]),
            "the issuer with a slash": workload(issuer, iss=issuer.url + "/"),
            "an issuer that nobody named": workload(other),
            "the issuer's name on another's key": workload(other, iss=issuer.url),
            "expired": workload(issuer, iat=int(time.time()) - 600, exp=int(time.time()) - 300),
            "for ever": workload(issuer, exp=int(time.time()) + 10**8),
            "a key in its header": issuer.token(headers={"jku": f"{other.url}/jwks"}, aud=HUB, **PINNED),
            "no token": "x",
        }
        answers = {what: await exchange(bench, token) for what, token in tokens.items()}
        assert other.asked == []
    assert {what: status for what, (status, _) in answers.items() if status != 401} == {}
    assert len({json.dumps(body) for _, body in answers.values()}) == 1
    assert {event.kind for event in bench.events} == {Kind.AUTH_FAILED}
    notes = dict(zip(tokens, [event.note for event in bench.events], strict=True))
    assert "repository_id is not sre-1's" in notes["the same name under another id"]
    assert "event_name is not sre-1's" in notes["a pull request"]
    assert "no rule names the issuer" in notes["the issuer with a slash"]
    written = b"\n".join(encode(event) for event in bench.events).decode()
    assert "eyJ" not in written


async def test_an_issuer_that_rotates_is_followed_and_what_it_took_back_is_refused(
    bench: Bench, issuer: FakeIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = workload(issuer)
    assert (await exchange(bench, before))[0] == 200
    issuer.rotate("k2")
    # The first unknown key came too soon after a fetch: unauthenticated tokens cause no fetches.
    assert (await exchange(bench, workload(issuer)))[0] == 401
    monkeypatch.setattr("proxy.hub.identity.issuers.REFETCH_S", 0.0)
    assert (await exchange(bench, workload(issuer)))[0] == 200
    assert (await exchange(bench, before))[0] == 401


async def test_an_unavailable_issuer_is_distinct_from_a_refusal(bench: Bench, issuer: FakeIssuer) -> None:
    def away() -> Reply:
        return 503, {}, b""

    issuer.replies["/jwks"] = away
    status, body = await exchange(bench, workload(issuer))
    assert (status, body["error"]) == (503, "temporarily_unavailable")
    assert "answered 503" in bench.events[-1].note


async def test_a_token_of_several_agents_must_name_one(bench: Bench, issuer: FakeIssuer) -> None:
    await bench.directory.change(lambda store: add_rule(store, issuer, "web-1", {"repository_id": "4242"}))
    await bench.directory.change(lambda store: store.grant("prod", "web"))
    status, body = await exchange(bench, workload(issuer))
    assert (status, "more than one agent's" in str(body["error_description"])) == (401, True)
    for agent, code in (("sre-1", 200), ("web-1", 200), ("locked", 401), ("none", 401)):
        assert (await exchange(bench, workload(issuer), client_id=agent))[0] == code
    assert (await exchange(bench, workload(issuer, ref="refs/heads/x"), client_id="sre-1"))[0] == 401
    assert (await exchange(bench, workload(issuer, ref="refs/heads/x")))[0] == 200
    assert bench.events[-1].actor.name == "web-1"


async def test_a_rule_that_is_removed_and_an_agent_that_is_locked_buy_nothing_at_once(
    bench: Bench, issuer: FakeIssuer
) -> None:
    await bench.directory.change(lambda store: store.lock_agent("sre-1"))
    status, body = await exchange(bench, workload(issuer))
    assert (status, "agent:sre-1 is locked: ask" in str(body["error_description"])) == (403, True)
    # A token that fits no rule has proved nothing.
    assert (await exchange(bench, workload(issuer, ref="refs/heads/x")))[0] == 401
    await bench.directory.change(lambda store: store.unlock_agent("sre-1"))
    assert (await exchange(bench, workload(issuer)))[0] == 200
    [(_, rule)] = bench.directory.current.rules_by_issuer[issuer.url]
    await bench.directory.change(lambda store: store.remove_federation(rule.id))
    assert bench.directory.current.issuers_by_url == {}
    assert (await exchange(bench, workload(issuer)))[0] == 401


async def test_keys_that_were_fetched_for_an_issuer_are_none_of_the_one_in_its_place(
    bench: Bench, issuer: FakeIssuer
) -> None:
    stolen, keys = workload(issuer), issuer.jwks()
    issuer.rotate("k1")
    token = trio.lowlevel.current_trio_token()

    def put_in_its_place(store: Store) -> None:
        [(_, rule)] = bench.directory.current.rules_by_issuer[issuer.url]
        store.remove_federation(rule.id)
        anew = NewIssuer(issuer.url, jwks=issuer.jwks().decode())
        store.add_federation("sre-1", anew, audience=HUB, claims=PINNED, mutable=False)

    def meanwhile() -> Reply:
        trio.from_thread.run(bench.directory.change, put_in_its_place, trio_token=token)
        return 200, {}, keys

    issuer.replies["/jwks"] = meanwhile
    assert (await exchange(bench, stolen))[0] == 401
    assert "was removed while its keys were fetched" in bench.events[-1].note
    assert (await exchange(bench, workload(issuer)))[0] == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"subject_token": ""},
        {"subject_token_type": ""},
        {"subject_token_type": "urn:ietf:params:oauth:token-type:saml2"},
        {"actor_token": "x"},
        {"requested_token_type": "urn:ietf:params:oauth:token-type:refresh_token"},
        {"client_secret": "x"},
        {"client_assertion": "x"},
    ],
)
async def test_an_exchange_is_one_token_for_one(bench: Bench, fields: dict[str, str]) -> None:
    status, body = await exchange(bench, "x", **fields)
    assert (status, body["error"]) == (400, "invalid_request")


async def test_an_exchange_shows_no_second_credential(bench: Bench, issuer: FakeIssuer) -> None:
    fields = {"grant_type": EXCHANGE, "subject_token": workload(issuer), "subject_token_type": JWT}
    assert (await bench.ask(basic("sre-1", "x"), audience="prod", **fields))[0] == 400
    fields["grant_type"] = "client_credentials"
    assert (await bench.ask(audience="prod", **fields))[0] == 400


# -- the store -----------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store.db", org="main", clock=lambda: 1000.0)
    store.add_team("sre")
    for number in range(2):
        store.add_agent(f"sre-{number}", owner="ada", teams=["sre"])
    yield store
    store.close()


GITHUB = NewIssuer("https://token.actions.githubusercontent.com")


def add(store: Store, issuer: NewIssuer = GITHUB, agent: str = "sre-0", **claims: str) -> str:
    return store.add_federation(agent, issuer, audience=HUB, claims=claims or PINNED, mutable=False)


def test_an_issuer_is_there_as_long_as_a_rule_needs_it(store: Store) -> None:
    first, second = add(store), add(store, agent="sre-1")
    now = store.snapshot()
    assert list(now.issuers_by_url) == [GITHUB.url]
    # Both were made at the same moment of this store's clock.
    assert sorted(rule.id for _, rule in now.rules_by_issuer[GITHUB.url]) == sorted([first, second])
    store.remove_federation(first)
    assert list(store.snapshot().issuers_by_url) == [GITHUB.url]
    store.retire_agent("sre-1")
    assert (store.snapshot().issuers_by_url, store.snapshot().rules_by_issuer) == ({}, {})
    with pytest.raises(NotFoundError):
        store.remove_federation(first)


def test_an_issuer_is_described_once(store: Store) -> None:
    described = attrs.evolve(GITHUB, jwks_url="https://keys.example/jwks")
    add(store, described)
    add(store, described)
    add(store, GITHUB)
    with pytest.raises(ConflictError, match="another CA, JWKS or address rule"):
        add(store, attrs.evolve(GITHUB, address_private=True))
    [(_, rule), *_] = store.snapshot().rules_by_issuer[GITHUB.url]
    assert rule.issuer.jwks_url == "https://keys.example/jwks"


@pytest.mark.parametrize(
    "issuer",
    [
        NewIssuer("http://issuer.example"),
        NewIssuer("https://issuer.example?x"),
        NewIssuer("https://user@issuer.example"),
        NewIssuer("https://127.0.0.1"),
        NewIssuer("https://169.254.169.254", address_private=True),
        NewIssuer("https://[::ffff:169.254.169.254]", address_private=True),
        NewIssuer("issuer.example"),
        NewIssuer("https://issuer.example", jwks_url="http://issuer.example/jwks"),
        NewIssuer("https://issuer.example", jwks_url="https://10.0.0.1/jwks"),
        NewIssuer("https://issuer.example", jwks="{}"),
        NewIssuer("https://issuer.example", jwks=jwks(jwk()), address_private=True),
    ],
)
def test_c36_an_issuer_is_asked_over_https_and_not_at_home(store: Store, issuer: NewIssuer) -> None:
    with pytest.raises(InvalidError):
        add(store, issuer)
    assert store.snapshot().issuers_by_url == {}


def test_an_issuer_whose_keys_are_given_may_be_anywhere(store: Store) -> None:
    add(store, NewIssuer("https://kubernetes.default.svc", jwks=jwks(jwk())))
    add(store, NewIssuer("https://10.96.0.1", jwks=jwks(jwk())))
    assert len(store.snapshot().issuers_by_url) == 2


def test_rules_and_issuers_are_bounded(store: Store) -> None:
    for _ in range(RULES_PER_AGENT_MAX):
        add(store)
    with pytest.raises(ConflictError, match="16 rules"):
        add(store)
    for number in range(ISSUERS_MAX - 1):
        store.add_agent(f"x-{number}", owner="ada", teams=["sre"])
        add(store, NewIssuer(f"https://i{number}.example"), f"x-{number}")
    with pytest.raises(ConflictError, match="64 issuers"):
        add(store, NewIssuer("https://more.example"), "sre-1")
