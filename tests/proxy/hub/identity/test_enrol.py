from __future__ import annotations

import json
from collections.abc import AsyncIterator
from urllib.parse import urlencode

import attrs
import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric import ec

from audit.errors import AuditUnavailable
from audit.record import ActorType, Event, Kind, Phase, encode
from auth.apikey import hash as hash_key
from auth.apikey import new_api_key, new_code
from auth.assertion import issue_assertion
from auth.hubtime import hub_time, seconds_of
from auth.keys import PublicKey, SigningKey
from auth.tokens import issue_enrolment
from proxy.hub.identity.code_throttle import FAILURES_MAX, FORGIVEN_AFTER_S
from proxy.hub.identity.enrol import EnrolmentEndpoint
from proxy.hub.store.credentials import CODE_LIFETIME_S
from proxy.hub.store.directory import Directory, open_directory
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.store import Store
from tests.proxy.hub.identity.token_bench import FORM, ISSUER, NOW, PEPPER

CODE, OTHER_CODE = (new_code(bytes([n]) * 20) for n in range(2))


@attrs.define
class Bench:
    directory: Directory
    endpoint: EnrolmentEndpoint
    now: float = NOW
    events: list[Event] = attrs.Factory(list)
    down: bool = False

    async def intent(self, event: Event) -> None:
        assert event.phase is Phase.INTENT
        await trio.lowlevel.checkpoint()
        if self.down:
            raise AuditUnavailable("the disk is full")
        self.events.append(event)

    def complete(self, event: Event) -> None:
        self.events.append(event)

    async def enrol(
        self, key: SigningKey, code: str = CODE, *, address: str = "192.0.2.1", **fields: str
    ) -> tuple[int, dict[str, object]]:
        form = {
            "code": code,
            "jwk": json.dumps(key.public.to_jwk()),
            "proof": issue_enrolment(key, hub_url=ISSUER, jti="j", now=self.now),
            **fields,
        }
        answer = await self.endpoint.answer(urlencode(form).encode(), (FORM,), address)
        assert dict(answer.headers)[b"cache-control"] == b"no-store"
        body = json.loads(answer.body)
        assert isinstance(body, dict)
        return answer.status, body

    @property
    def kids(self) -> list[str]:
        return list(self.directory.current.agent_keys_by_kid)


def add_agents(store: Store) -> None:
    store.add_team("sre")
    for agent, code in (("sre-1", CODE), ("sre-2", OTHER_CODE)):
        store.add_agent(agent, owner="ada", teams=["sre"])
        store.add_code(agent, hash_key(code, PEPPER))


@pytest.fixture
async def bench(database: Location) -> AsyncIterator[Bench]:
    bench: Bench

    def clock() -> float:
        return bench.now

    async with open_directory(database, org="main", clock=lambda: NOW) as directory:
        await directory.change(add_agents)
        bench = Bench(directory, EnrolmentEndpoint(directory, PEPPER, ISSUER, None, clock))  # type: ignore[arg-type]
        bench.endpoint.recorder = bench
        yield bench


async def test_a_code_registers_the_key_that_was_proved(bench: Bench) -> None:
    key = SigningKey.generate()
    status, body = await bench.enrol(key)
    assert status == 201
    assert (body["agent"], body["org"], body["kid"]) == ("sre-1", "main", key.kid)
    assert bench.directory.current.find_agent_key(key.kid) == ("sre-1", key.public)
    intent, end = bench.events
    assert (intent.phase, end.phase, intent.eid) == (Phase.INTENT, Phase.COMPLETE, end.eid)
    assert end.kind is Kind.KEY_REGISTERED
    assert (end.actor.type, end.actor.name) == (ActorType.AGENT, "sre-1")
    assert end.actor.credential.startswith("code:")
    assert end.note == f"kid={key.kid} key={body['key_id']}"


async def test_a_code_is_valid_once_among_concurrent_requests(bench: Bench) -> None:
    statuses = []

    async def enrol() -> None:
        status, _ = await bench.enrol(SigningKey.generate())
        statuses.append(status)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(enrol)
    assert sorted(statuses) == [201, 401, 401, 401, 401]
    assert len(bench.kids) == 1
    assert (await bench.enrol(SigningKey.generate()))[0] == 401


async def test_an_answer_that_was_lost_is_given_again_to_the_same_key_alone(bench: Bench) -> None:
    key = SigningKey.generate()
    first = await bench.enrol(key)
    assert await bench.enrol(key) == first
    assert (bench.kids, bench.directory.current.find_agent_key(key.kid)) == ([key.kid], ("sre-1", key.public))
    assert bench.events[-1].note == f"kid={key.kid} key={first[1]['key_id']}, answered again"
    stolen = issue_enrolment(SigningKey.generate(), hub_url=ISSUER, jti="j", now=NOW)
    assert (await bench.enrol(SigningKey.generate()))[0] == 401
    assert (await bench.enrol(key, proof=stolen))[0] == 400


async def test_a_code_whose_commit_was_not_answered_gets_its_answer_when_it_is_sent_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, redeem = SigningKey.generate(), Store.redeem_code
    ids = []

    def lost(store: Store, digest: str, public: PublicKey) -> str:
        ids.append(redeem(store, digest, public))
        raise StoreUnavailableError("the connection is lost")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "redeem_code", lost)
        status, body = await bench.enrol(key)
    assert (status, body["error"], bench.endpoint.unwritten) == (503, "temporarily_unavailable", 1)
    status, body = await bench.enrol(key)
    assert (status, [body["key_id"]], bench.kids) == (201, ids, [key.kid])


async def test_a_code_that_is_sent_again_to_another_hub_gets_the_same_answer(
    bench: Bench, database: Location
) -> None:
    key = SigningKey.generate()
    async with open_directory(database, org="main", clock=lambda: NOW, shared=True) as directory:
        elsewhere = attrs.evolve(bench.endpoint, directory=directory)
        first = await bench.enrol(key)
        # Its snapshot still has the code, and then has the key.
        for _ in range(2):
            assert await attrs.evolve(bench, endpoint=elsewhere).enrol(key) == first
            assert list(directory.current.agent_keys_by_kid) == [key.kid]


@pytest.mark.parametrize("taken_back", ["lock", "revoke"])
async def test_an_answer_is_not_given_again_once_what_it_says_was_taken_back(
    bench: Bench, taken_back: str
) -> None:
    key = SigningKey.generate()
    _, body = await bench.enrol(key)

    def take_back(store: Store) -> None:
        if taken_back == "lock":
            store.lock_agent("sre-1")
        else:
            store.revoke_key("sre-1", str(body["key_id"]))

    await bench.directory.change(take_back)
    assert (await bench.enrol(key))[0] == 401


async def test_one_key_that_asks_twice_at_once_is_registered_once(bench: Bench) -> None:
    key = SigningKey.generate()
    answers = []

    async def enrol() -> None:
        answers.append(await bench.enrol(key))

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(enrol)
    assert answers[0] == answers[1]
    assert (answers[0][0], bench.kids) == (201, [key.kid])


async def test_refusals_of_a_code_are_indistinguishable(bench: Bench) -> None:
    key = SigningKey.generate()
    await bench.enrol(SigningKey.generate(), OTHER_CODE)
    del bench.events[:]
    answers = [
        await bench.enrol(key, code)
        for code in (new_code(b"u" * 20), "hwc_", CODE[:-1], new_api_key(b"k" * 32), OTHER_CODE)
    ]
    bench.now += CODE_LIFETIME_S
    answers.append(await bench.enrol(key))
    assert {status for status, _ in answers} == {401}
    assert len({json.dumps(body) for _, body in answers}) == 1
    assert bench.kids == [kid for kid in bench.kids if kid != key.kid]
    assert [event.kind for event in bench.events] == [Kind.AUTH_FAILED] * len(answers)
    assert [event.note for event in bench.events[-2:]] == [
        "the code is unknown, or was used",
        "the code has expired",
    ]


async def test_a_valid_code_of_a_locked_agent_is_refused_with_the_reason_and_stays_valid(
    bench: Bench,
) -> None:
    key = SigningKey.generate()
    await bench.directory.change(lambda store: store.lock_agent("sre-1"))
    status, body = await bench.enrol(key)
    assert (status, body["error"]) == (403, "access_denied")
    assert body["error_description"] == (
        "agent:sre-1 is locked: ask the operator of this hub to unlock it (`hawse admin agent unlock sre-1`)"
    )
    assert (bench.events[-1].note, bench.events[-1].actor.name) == ("the agent is locked", "sre-1")
    await bench.directory.change(lambda store: store.unlock_agent("sre-1"))
    assert (await bench.enrol(key))[0] == 201


async def test_nor_by_what_is_asked_beside_them(bench: Bench) -> None:
    key = SigningKey.generate()
    await bench.enrol(SigningKey.generate(), OTHER_CODE)
    used = await bench.enrol(key, OTHER_CODE, proof="x")
    bench.now += CODE_LIFETIME_S + 1
    assert await bench.enrol(key, CODE, proof="x") == used


async def test_an_address_with_many_invalid_codes_is_throttled(
    bench: Bench, mock_clock: trio.testing.MockClock
) -> None:
    key = SigningKey.generate()
    for number in range(FAILURES_MAX):
        assert (await bench.enrol(key, new_code(bytes([number]) * 19 + b"x")))[0] == 401
    status, body = await bench.enrol(key)
    assert (status, body["error"]) == (429, "too_many_attempts")
    # Others are, and so is this one later, though the machine's clock is set back.
    assert (await bench.enrol(key, address="192.0.2.2"))[0] == 201
    bench.now -= 86_400
    mock_clock.jump(FORGIVEN_AFTER_S)
    assert (await bench.enrol(SigningKey.generate(), OTHER_CODE))[0] == 201


async def test_a_key_is_registered_by_its_holder_and_in_its_one_form(bench: Bench) -> None:
    key, other = SigningKey.generate(), SigningKey.generate()
    jwk = key.public.to_jwk()
    old = issue_enrolment(key, hub_url=ISSUER, jti="j", now=NOW - 90)
    p256 = PublicKey("k", "ES256", ec.generate_private_key(ec.SECP256R1()).public_key())
    for fields in (
        {"proof": issue_enrolment(other, hub_url=ISSUER, jti="j", now=NOW)},
        {"proof": issue_enrolment(key, hub_url="https://other.example", jti="j", now=NOW)},
        {"proof": issue_assertion(key.key, agent=key.kid, hub_url=ISSUER, jti="j", now=NOW)},
        {"proof": old},
        {"proof": "x"},
        {"jwk": json.dumps(other.public.to_jwk())},
        {"jwk": json.dumps({**jwk, "kid": "chosen"})},
        {"jwk": json.dumps({**jwk, "d": "AAAA"})},
        {"jwk": json.dumps(p256.to_jwk())},
        {"jwk": "{"},
        {"jwk": "[" * 5000},
        {"jwk": "null"},
        {"jwk": ""},
        {"proof": ""},
        {"code": ""},
    ):
        status, body = await bench.enrol(key, **fields)
        assert (status, body["error"]) == (400, "invalid_request"), fields
        assert ("hub_time" in body) == (fields.get("proof") == old)
    assert bench.kids == []
    assert {event.kind for event in bench.events} == {Kind.MALFORMED}
    # None of it has cost the code.
    assert (await bench.enrol(key))[0] == 201


async def test_a_proof_by_a_wrong_clock_gets_the_hubs_time_and_costs_nothing(bench: Bench) -> None:
    key = SigningKey.generate()
    _, body = await bench.enrol(key, proof=issue_enrolment(key, hub_url=ISSUER, jti="j", now=NOW + 90))
    told = str(body["hub_time"])
    assert seconds_of(told) == int(NOW)
    assert (await bench.enrol(key, proof=dated(key, told, NOW)))[0] == 201


def dated(key: SigningKey, told: str, now: float) -> str:
    return issue_enrolment(key, hub_url=ISSUER, jti="j", now=now, hub_time=told)


async def test_a_proof_with_a_time_that_the_hub_has_not_issued_is_refused(
    bench: Bench,
) -> None:
    """An attacker in the hub's place could have a proof signed, and keep it for another code."""
    key = SigningKey.generate()
    _, body = await bench.enrol(key, proof=issue_enrolment(key, hub_url=ISSUER, jti="j", now=NOW - 90))
    heard = str(body["hub_time"])
    later = NOW + 600
    mac = heard.partition(".")[2]
    made_up = [heard, f"{int(later)}.{mac}", hub_time(b"q" * 32, later), "1.2"]
    gathered = [dated(key, text, later) for text in made_up]
    bench.now = later
    for proof in gathered:
        status, body = await bench.enrol(key, proof=proof)
        assert (status, "hub_time" in body) == (400, False)
        assert "this hub has not issued" in str(body["error_description"])
    assert bench.kids == []
    assert (await bench.enrol(key, proof=dated(key, hub_time(PEPPER, later), later)))[0] == 201


async def test_a_sender_that_uses_another_name_for_the_hub_gets_the_right_one(bench: Bench) -> None:
    key = SigningKey.generate()
    proof = issue_enrolment(key, hub_url="https://other.example", jti="j", now=NOW)
    _, body = await bench.enrol(key, proof=proof)
    step = f"run `hawse login --hub {ISSUER} --code` with the same code"
    assert body["error_description"] == f"this hub calls itself {ISSUER}: {step}"
    assert (await bench.enrol(key))[0] == 201


async def test_a_key_that_was_registered_is_not_registered_again(bench: Bench) -> None:
    key = SigningKey.generate()
    await bench.enrol(key)
    status, body = await bench.enrol(key, OTHER_CODE)
    assert (status, body["error"]) == (400, "invalid_request")
    assert "registered before" in str(body["error_description"])
    assert bench.events[-1].resp is not None
    assert bench.events[-1].resp.status == 400


async def test_nothing_is_registered_while_the_trail_cannot_be_written(bench: Bench) -> None:
    bench.down = True
    key = SigningKey.generate()
    status, _ = await bench.enrol(key)
    assert (status, bench.kids, bench.endpoint.unwritten) == (503, [], 1)
    bench.down = False
    assert (await bench.enrol(key))[0] == 201


async def test_neither_code_nor_proof_reaches_the_trail(bench: Bench) -> None:
    key = SigningKey.generate()
    await bench.enrol(key, CODE[:-1])
    await bench.enrol(key, proof="secret-proof")
    await bench.enrol(key)
    written = b"\n".join(encode(event) for event in bench.events).decode()
    for secret in (CODE, CODE[4:20], "secret-proof", hash_key(CODE, PEPPER), "eyJ"):
        assert secret not in written


async def test_a_hub_that_may_decide_nothing_takes_no_code(bench: Bench) -> None:
    key = SigningKey.generate()
    bench.directory.age.withhold("the database is away")
    for code in (CODE, "wrong"):
        status, body = await bench.enrol(key, code)
        assert (status, body["error"]) == (503, "temporarily_unavailable")
        assert body["error_description"] == "the database is away: try again later"
    assert bench.kids == []
    bench.directory.age.withhold("")
    # The code is as good as before.
    assert (await bench.enrol(key))[0] == 201
