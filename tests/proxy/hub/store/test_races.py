"""Two hubs on one database, whose changes meet in a chosen order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import attrs
import pytest

from auth.keys import PublicKey, SigningKey
from proxy.hub.store.clusters import RelayContact
from proxy.hub.store.credentials import CODES_PER_AGENT_MAX, KEYS_PER_AGENT_MAX
from proxy.hub.store.engines.errors import ConflictError, NotFoundError
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.roles import Role
from proxy.hub.store.sealed import HubSecrets
from proxy.hub.store.secrets.sealing import Seal
from proxy.hub.store.secrets.signing_keys import SigningKeys
from proxy.hub.store.store import Store
from tests.fakes.races import Race, racing
from tests.postgres import PostgresServer

Hubs: TypeAlias = Race[Store]


@pytest.fixture
def hubs(in_postgres: PostgresAddress, postgres: PostgresServer) -> Iterator[Hubs]:
    def opened(address: PostgresAddress) -> Store:
        return Store(address, org="main", clock=lambda: 1000.0)

    with racing(opened, in_postgres, postgres) as hubs:
        hubs.one.add_team("sre")
        hubs.one.add_agent("sre-1", owner="ada", teams=["sre"])
        yield hubs


def public() -> PublicKey:
    return SigningKey.generate().public


def test_the_last_admin_token_stays(hubs: Hubs) -> None:
    for name in ("a", "b"):
        hubs.one.add_admin_token(name, name, role=Role.ADMIN)
    _, refused = hubs.race(
        lambda store: store.remove_admin_token("a", at=0.0),
        lambda store: store.remove_admin_token("b", at=0.0),
    )
    assert isinstance(refused, ConflictError)
    assert [token.name for token in hubs.other.snapshot().admin_tokens_by_hash.values()] == ["b"]


def test_of_two_sixteenth_keys_one_is_refused(hubs: Hubs) -> None:
    for number in range(KEYS_PER_AGENT_MAX - 1):
        hubs.one.add_api_key("sre-1", key_hash=f"h{number}", key_hint="x")
    _, refused = hubs.race(
        lambda store: store.add_api_key("sre-1", key_hash="one", key_hint="x"),
        lambda store: store.add_api_key("sre-1", key_hash="other", key_hint="x"),
    )
    assert isinstance(refused, ConflictError)
    assert len(hubs.other.credentials("sre-1")) == KEYS_PER_AGENT_MAX


def test_of_two_last_codes_one_is_refused(hubs: Hubs) -> None:
    for number in range(CODES_PER_AGENT_MAX - 1):
        hubs.one.add_code("sre-1", f"h{number}")
    _, refused = hubs.race(
        lambda store: store.add_code("sre-1", "one"), lambda store: store.add_code("sre-1", "other")
    )
    assert isinstance(refused, ConflictError)


def test_a_code_registers_one_key_though_two_hubs_get_it(hubs: Hubs) -> None:
    hubs.one.add_code("sre-1", "code")
    keys = public(), public()
    _, refused = hubs.race(
        lambda store: store.redeem_code("code", keys[0]), lambda store: store.redeem_code("code", keys[1])
    )
    assert isinstance(refused, NotFoundError)
    assert list(hubs.other.snapshot().agent_keys_by_kid) == [keys[0].kid]


def test_a_code_that_is_sent_to_two_hubs_with_one_key_gets_one_answer(hubs: Hubs) -> None:
    hubs.one.add_code("sre-1", "code")
    key = public()
    first, second = hubs.race(
        lambda store: store.redeem_code("code", key), lambda store: store.redeem_code("code", key)
    )
    assert first == second


def test_a_name_is_given_once(hubs: Hubs) -> None:
    def add(store: Store) -> object:
        return store.add_agent("new", owner="ada", teams=["sre"])

    _, refused = hubs.race(add, add)
    assert isinstance(refused, ConflictError)


def test_a_lock_and_a_new_code_leave_a_locked_agent(hubs: Hubs) -> None:
    hubs.one.add_code("sre-1", "code")
    _, refused = hubs.race(
        lambda store: store.lock_agent("sre-1"), lambda store: store.redeem_code("code", public())
    )
    assert isinstance(refused, ConflictError)


def test_an_instance_that_connects_to_two_hubs_is_new_to_one(hubs: Hubs) -> None:
    cluster_id = hubs.one.add_cluster("prod", relay_key=public())
    contact = RelayContact(cluster_id, "pod-1", "b", "1", "192.0.2.1")
    first, second = hubs.race(
        lambda store: store.relay_connected(contact), lambda store: store.relay_connected(contact)
    )
    assert "not seen before" in str(first)
    assert second == ""
    assert len(hubs.other.relay_instances()) == 1


def test_a_relay_that_connects_while_its_cluster_is_removed_leaves_nothing(hubs: Hubs) -> None:
    cluster_id = hubs.one.add_cluster("prod", relay_key=public())
    contact = RelayContact(cluster_id, "pod-1", "b", "1", "192.0.2.1")
    _, second = hubs.race(
        lambda store: store.remove_cluster("prod"), lambda store: store.relay_connected(contact)
    )
    assert second == ""
    assert hubs.other.relay_instances() == []


def test_two_changes_of_policies_get_two_versions(hubs: Hubs) -> None:
    def switch(rule: str) -> Callable[[Store], int]:
        return lambda store: store.switch_rules("guard", [rule], enabled=True).version

    both = hubs.race(switch("custom-resource-definitions"), switch("persistent-volumes"))
    assert both == (2, 3)


def test_versions_are_in_the_order_of_commits(hubs: Hubs) -> None:
    before = hubs.one.version().number
    hubs.race(lambda store: store.add_team("a"), lambda store: store.add_team("b"))
    assert hubs.other.version().number == before + 2


def test_two_hubs_that_rotate_the_keys_publish_one_and_sign_one_statement(hubs: Hubs) -> None:
    seal = Seal.generate()
    hubs.one.put_secrets(HubSecrets.generate(), seal)

    def keys() -> SigningKeys:
        return hubs.other.sealed_secrets().open(seal).keys

    def publish(keys: SigningKeys) -> SigningKeys:
        new = keys.published or SigningKey.generate()
        return attrs.evolve(keys, all=(*{*keys.all, new},), published=new)

    def activate(keys: SigningKeys) -> SigningKeys:
        if keys.published is None:
            return keys
        return SigningKeys(keys.published, keys.all, (*keys.succession, "a.b.c"))

    for step in (publish, activate):
        hubs.race(
            lambda store, step=step: store.change_signing_keys(step, seal),
            lambda store, step=step: store.change_signing_keys(step, seal),
        )
        assert len(keys().all) == 2
    assert keys().succession == ("a.b.c",)


def test_of_two_first_starts_one_makes_the_secrets(hubs: Hubs) -> None:
    seal = Seal.generate()
    first, second = hubs.race(
        lambda store: store.put_secrets(HubSecrets.generate(), seal),
        lambda store: store.put_secrets(HubSecrets.generate(), seal),
    )
    assert first == second == hubs.other.sealed_secrets()
