"""Bundles of policies in the store: each a version, checked as a whole, and compiled once."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from auth.policy import NO_RULE
from auth.policy_text import Source, split
from proxy.hub.errors import ConflictError, InvalidError, NotFoundError
from proxy.hub.policies import BUNDLES_KEPT
from proxy.hub.store import Store
from tests.auth.policies import ask, policy

POD = "GET /api/v1/namespaces/a/pods/web"
LOOK = "- {id: look, effect: allow, verbs: [read], resources: ['*']}"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "hub.db", org="main", clock=lambda: 1000.0)
    yield opened
    opened.close()


def test_a_new_hub_has_what_is_granted_and_the_guard(store: Store) -> None:
    bundle = store.snapshot().bundle
    assert [policy.name for policy in bundle.policies] == ["granted", "guard"]
    assert bundle.version == 1
    assert ask(bundle, POD).policy == "granted"
    assert ask(bundle, "POST /api/v1/namespaces/a/serviceaccounts/d/token").policy == "guard"
    [row] = store.bundles()
    assert (row.version, row.hash, row.created_at) == (1, bundle.hash, 1000.0)


def test_the_bundle_is_one_object_until_it_says_something_else(store: Store) -> None:
    before = store.snapshot().bundle
    store.add_team("sre")
    assert store.snapshot().bundle is before
    store.apply_policies([Source(policy(LOOK, name="look"))])
    after = store.snapshot().bundle
    assert after is not before
    assert (after.version, len(after.policies)) == (2, 3)


def test_another_process_sees_the_bundle_that_this_one_wrote(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "hub.db", org="main", clock=lambda: 1000.0)
    try:
        assert other.snapshot().bundle.version == 1
        written = store.apply_policies([Source(policy(LOOK, name="look"))])
        assert other.snapshot().bundle.id == written.id
    finally:
        other.close()


def test_a_policy_takes_the_place_of_the_one_of_its_name(store: Store) -> None:
    store.apply_policies([Source(policy(LOOK, name="granted"))])
    bundle = store.snapshot().bundle
    assert [each.name for each in bundle.policies] == ["granted", "guard"]
    assert ask(bundle, "DELETE /api/v1/namespaces/a/pods/web") is NO_RULE


def test_only_these_policies_can_be_left(store: Store) -> None:
    store.apply_policies([Source(policy(LOOK, name="look"))], only=True)
    assert [each.name for each in store.snapshot().bundle.policies] == ["look"]


def test_a_bad_document_changes_nothing_and_is_told_with_its_place(store: Store) -> None:
    good = split(policy(LOOK, name="good"), "good.yaml")
    bad = split("# a comment\n---\n" + policy(LOOK.replace("read", "reed"), name="bad"), "bad.yaml")
    before = store.snapshot().bundle
    with pytest.raises(InvalidError, match=r'bad\.yaml:8: spec\.rules\[0\]\.verbs\[0\]: "reed" is no verb'):
        store.apply_policies([*good, *bad])
    assert store.snapshot().bundle is before
    with pytest.raises(InvalidError, match="there is no policy in what was given"):
        store.apply_policies([])


def test_what_changes_nothing_makes_no_version(store: Store) -> None:
    source = Source(policy(LOOK, name="look"))
    applied = store.apply_policies([source])
    assert store.apply_policies([source]).id == applied.id
    with pytest.raises(ConflictError, match="nothing was changed: they are on already"):
        store.switch_rules("guard", ["nodes-proxy"], enabled=True)
    assert [row.version for row in store.bundles()] == [2, 1]


def test_a_rule_of_the_guard_is_switched(store: Store) -> None:
    store.switch_rules("guard", ["secrets", "rbac"], enabled=True)
    bundle = store.snapshot().bundle
    assert ask(bundle, "GET /api/v1/namespaces/a/secrets").rule == "secrets"
    store.switch_rules("guard", ["secrets"], enabled=False)
    assert ask(store.snapshot().bundle, "GET /api/v1/namespaces/a/secrets").allowed
    with pytest.raises(InvalidError, match='policy "guard" has no rule "nothing", only service'):
        store.switch_rules("guard", ["nothing"], enabled=True)
    with pytest.raises(NotFoundError, match="there is no policy 'nothing', only granted, guard"):
        store.switch_rules("nothing", ["a"], enabled=True)


def test_a_policy_is_removed_and_an_earlier_bundle_can_still_be_read(store: Store) -> None:
    store.remove_policy("granted")
    assert ask(store.snapshot().bundle, POD) is NO_RULE
    assert any("name: granted" in text for text in store.bundle(1).documents)
    assert not any("name: granted" in text for text in store.bundle(2).documents)
    with pytest.raises(NotFoundError, match="there is no policy 'granted', only guard"):
        store.remove_policy("granted")
    with pytest.raises(NotFoundError, match="there is no version 3"):
        store.bundle(3)


def test_a_stored_bundle_that_must_not_be_used_allows_nothing_and_can_be_mended(
    store: Store, tmp_path: Path
) -> None:
    store.snapshot()
    store.close()
    with sqlite3.connect(tmp_path / "hub.db") as connection:
        connection.execute("UPDATE policy_bundles SET documents = '[\"kind: Policy\"]'")
    connection.close()
    store = Store(tmp_path / "hub.db", org="main", clock=lambda: 1000.0)
    now = store.snapshot()
    assert ask(now.bundle, POD) is NO_RULE
    assert ask(now.bundle, "GET /api").allowed
    assert any("version 1 of the policies allows nothing, for it is refused" in fault for fault in now.faults)
    with pytest.raises(InvalidError):
        store.apply_policies([Source(policy(LOOK, name="look"))])
    store.apply_policies([Source(policy(LOOK, name="look"))], only=True)
    now = store.snapshot()
    store.close()
    assert ask(now.bundle, POD).allowed
    assert now.faults == ()


def test_old_bundles_go(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert BUNDLES_KEPT > 3
    monkeypatch.setattr("proxy.hub.policies.BUNDLES_KEPT", 3)
    for number in range(5):
        store.apply_policies([Source(policy(LOOK, name=f"p{number}"))])
    assert [row.version for row in store.bundles()] == [6, 5, 4]
