from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest

from auth.keys import PublicKey, SigningKey
from proxy.hub.store.credentials import CODE_LIFETIME_S, CODES_PER_AGENT_MAX, KEYS_PER_AGENT_MAX
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.engines.errors import ConflictError, InvalidError, NotFoundError
from proxy.hub.store.store import Store
from tests.fakes.databases import run


@attrs.define
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: Location, clock: Clock) -> Iterator[Store]:
    store = Store(database, org="main", clock=clock)
    store.add_team("sre")
    for name in ("sre-1", "sre-2"):
        store.add_agent(name, owner="ada", teams=["sre"])
    yield store
    store.close()


def public() -> PublicKey:
    return SigningKey.generate().public


def register(store: Store, agent: str = "sre-1", key: PublicKey | None = None) -> str:
    store.add_code(agent, "c")
    return store.redeem_code("c", key or public())


def test_a_code_registers_one_key_of_its_agent(store: Store, clock: Clock) -> None:
    code = store.add_code("sre-1", "c1")
    assert code.expires_at == 1000.0 + CODE_LIFETIME_S
    agent, found = store.snapshot().codes_by_hash["c1"]
    assert (agent.name, found) == ("sre-1", code)
    key = public()
    key_id = store.redeem_code("c1", key)
    now = store.snapshot()
    assert now.codes_by_hash == {}
    agent, registered = now.agent_keys_by_kid[key.kid]
    assert (agent.name, registered.id, registered.public) == ("sre-1", key_id, key)
    assert now.find_agent_key(key.kid) == ("sre-1", key)
    assert now.find_agent_key("none") is None
    with pytest.raises(NotFoundError):
        store.redeem_code("c1", public())
    assert len(store.snapshot().agent_keys_by_kid) == 1


def test_a_code_that_was_used_answers_its_key_alone_for_as_long_as_a_code_lives(
    store: Store, clock: Clock
) -> None:
    key = public()
    key_id = register(store, key=key)
    clock.now += CODE_LIFETIME_S - 1
    assert store.redeem_code("c", key) == key_id
    with pytest.raises(NotFoundError):
        store.redeem_code("c", public())
    clock.now += 1
    with pytest.raises(NotFoundError):
        store.redeem_code("c", key)


def test_a_code_ends_after_its_quarter_of_an_hour(store: Store, clock: Clock) -> None:
    store.add_code("sre-1", "c1")
    clock.now += CODE_LIFETIME_S
    with pytest.raises(NotFoundError):
        store.redeem_code("c1", public())
    assert store.snapshot().agent_keys_by_kid == {}
    # The next code sweeps it away.
    store.add_code("sre-1", "c2")
    assert list(store.snapshot().codes_by_hash) == ["c2"]


@pytest.mark.parametrize("end", [Store.lock_agent, Store.retire_agent])
def test_a_code_of_an_agent_that_may_not_act_registers_nothing(store: Store, end: object) -> None:
    assert callable(end)
    store.add_code("sre-1", "c1")
    end(store, "sre-1")
    with pytest.raises((ConflictError, NotFoundError)):
        store.redeem_code("c1", public())
    assert store.snapshot().agent_keys_by_kid == {}


def test_codes_are_bounded_and_can_be_withdrawn(store: Store) -> None:
    for number in range(CODES_PER_AGENT_MAX):
        store.add_code("sre-1", f"c{number}")
    with pytest.raises(ConflictError, match="8 unused codes"):
        store.add_code("sre-1", "more")
    store.add_code("sre-2", "other")
    assert store.withdraw_codes("sre-1") == CODES_PER_AGENT_MAX
    assert list(store.snapshot().codes_by_hash) == ["other"]
    for refused in (lambda: store.add_code("none", "x"), lambda: store.withdraw_codes("none")):
        with pytest.raises(NotFoundError):
            refused()


def test_a_key_is_registered_once_in_its_life(store: Store) -> None:
    key = public()
    key_id = register(store, key=key)
    with pytest.raises(InvalidError, match="registered before"):
        register(store, "sre-2", key)
    store.revoke_key("sre-1", key_id)
    with pytest.raises(InvalidError, match="registered before"):
        store.redeem_code("c", key)
    # The code was not used up by that.
    store.redeem_code("c", public())


def test_keys_of_both_kinds_are_listed_revoked_and_bounded(store: Store, clock: Clock) -> None:
    first = register(store)
    clock.now += 1
    second = store.add_api_key("sre-1", key_hash="h", key_hint="hws_ab")
    assert [key.id for key in store.credentials("sre-1")] == [first, second]
    assert [key.label for key in store.credentials("sre-1")] == [f"key:{first}", f"api-key:{second}"]
    with pytest.raises(NotFoundError):
        store.revoke_key("sre-2", first)
    store.revoke_key("sre-1", first)
    with pytest.raises(ConflictError, match="revoked already"):
        store.revoke_key("sre-1", first)
    assert store.snapshot().agent_keys_by_kid == {}
    assert store.credentials("sre-1")[0].revoked_at == clock.now
    for _ in range(KEYS_PER_AGENT_MAX):
        register(store)
    with pytest.raises(ConflictError, match="16 keys, the most"):
        register(store)


def test_a_retired_agent_has_no_key_left(store: Store) -> None:
    register(store)
    store.add_api_key("sre-1", key_hash="h", key_hint="hws_ab")
    store.add_code("sre-1", "c2")
    store.retire_agent("sre-1")
    now = store.snapshot()
    assert (now.agent_keys_by_kid, now.api_keys_by_hash, now.codes_by_hash) == ({}, {}, {})
    assert all(key.revoked_at for key in store.credentials("sre-1"))


def test_the_use_of_a_registered_key_is_written_down(store: Store) -> None:
    key = public()
    key_id = register(store, key=key)
    store.note_use(agents={}, credentials={key_id: 5.0}, admin_tokens={}, relays={})
    assert store.last_used() == {key_id: 5.0}


@pytest.mark.parametrize("jwk", ['{"kty": "oct"}', '{"kty": "OKP", "crv": "Ed25519", "kid": "x"}', "1"])
def test_a_key_that_must_not_be_used_is_left_out_alone(store: Store, database: Location, jwk: str) -> None:
    bad, good = public(), public()
    register(store, key=bad)
    register(store, "sre-2", good)
    run(database, f"update agent_keys set jwk = '{jwk}' where kid = '{bad.kid}'")
    now = store.snapshot()
    assert list(now.agent_keys_by_kid) == [good.kid]
    assert len(now.faults) == 1


def test_a_key_under_another_kid_than_its_own_is_left_out(store: Store, database: Location) -> None:
    register(store)
    run(database, "update agent_keys set kid = 'chosen'")
    assert store.snapshot().agent_keys_by_kid == {}
