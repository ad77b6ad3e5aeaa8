"""Bundles of policies in the store: each a version, checked as a whole, and compiled once."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import attrs
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from auth.policy.bundled import first_sources
from auth.policy.match import NO_RULE
from auth.policy.text import Source, split
from proxy.hub.store import migrations
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.engines.errors import ConflictError, InvalidError, NotFoundError, StoreUnavailableError
from proxy.hub.store.policies import BUNDLES_KEPT
from proxy.hub.store.store import Store
from tests.auth.policies import ask, policy
from tests.fakes.databases import run

POD = "GET /api/v1/namespaces/a/pods/web"
LOOK = "- {id: look, effect: allow, verbs: [read], resources: ['*']}"


@pytest.fixture
def store(database: Location) -> Iterator[Store]:
    opened = Store(database, org="main", clock=lambda: 1000.0)
    yield opened
    opened.close()


def test_a_new_hub_has_what_is_granted_and_the_guard(store: Store) -> None:
    bundle = store.snapshot().bundle
    assert [policy.name for policy in bundle.policies] == ["granted", "guard"]
    assert bundle.version == 1
    assert ask(bundle, POD).policy == "granted"
    assert ask(bundle, "POST /api/v1/namespaces/a/serviceaccounts/d/token").policy == "guard"
    [row] = store.bundles()
    assert (row.version, row.hash) == (1, bundle.hash)
    # A migration wrote it, which has no clock but the system's.
    assert 1000.0 < row.created_at <= time.time()


def test_the_bundle_is_one_object_until_it_says_something_else(store: Store) -> None:
    before = store.snapshot().bundle
    store.add_team("sre")
    assert store.snapshot().bundle is before
    store.apply_policies([Source(policy(LOOK, name="look"))])
    after = store.snapshot().bundle
    assert after is not before
    assert (after.version, len(after.policies)) == (2, 3)


def test_a_bundle_that_was_lost_does_not_stand_for_the_next_one_with_its_number(
    store: Store, database: Location
) -> None:
    lost = store.apply_policies([Source(policy(LOOK, name="look"))])
    assert store.snapshot().bundle.id == lost.id
    # A failover loses it, and another process writes the next one, both between two readings.
    run(database, f"delete from policy_bundles where version = {lost.version}")
    with closing(Store(database, org="main", clock=lambda: 1000.0)) as other:
        written = other.apply_policies([Source(policy(LOOK.replace("read", "write"), name="look"))])
    assert written.version == lost.version
    assert store.snapshot().bundle.id == written.id != lost.id


def test_another_process_sees_the_bundle_that_this_one_wrote(store: Store, database: Location) -> None:
    other = Store(database, org="main", clock=lambda: 1000.0)
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
    with pytest.raises(InvalidError, match="the input contains no policy"):
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
    store: Store, database: Location
) -> None:
    store.snapshot()
    store.close()
    run(database, "UPDATE policy_bundles SET documents = '[\"kind: Policy\"]'")
    store = Store(database, org="main", clock=lambda: 1000.0)
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
    monkeypatch.setattr("proxy.hub.store.policies.BUNDLES_KEPT", 3)
    for number in range(5):
        store.apply_policies([Source(policy(LOOK, name=f"p{number}"))])
    assert [row.version for row in store.bundles()] == [6, 5, 4]


# A guard of before the rules that came later, as an operator has changed it.
OLD_GUARD = """\
# ours
kind: Policy
metadata: {name: guard, owner: Ann}
spec:
  bind: {teams: ["*"]}
  rules:
    # The relay is in another place here.
    - id: relay-namespace
      enabled: true
      effect: deny
      verbs: ["*"]
      namespaces: [proxies]
    - {id: webhooks, enabled: false, effect: deny, verbs: [write], resources: [mutatingwebhookconfigurations]}
    - {id: node-status, enabled: false, effect: deny, verbs: [delete], resources: [nodes]}
"""
GRANTED = first_sources()[0].text
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"


def store_of_before(path: Path, documents: Sequence[str] | None) -> Store:
    """Open a store that a hub of revision 0004 has written."""
    engine = sa.create_engine(f"sqlite:///{path}", poolclass=sa.NullPool)
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(migrations.__file__).parent))
        config.attributes["connection"] = connection
        command.upgrade(config, "0004")
        if documents is not None:
            connection.execute(
                sa.text("INSERT INTO policy_bundles VALUES (7, 'x', 1.0, :documents)"),
                {"documents": json.dumps(documents)},
            )
    engine.dispose()
    return Store(path, org="main", clock=lambda: 1000.0)


@pytest.mark.parametrize("flow", [False, True])
def test_an_older_hubs_guard_gets_the_new_rules_and_keeps_what_was_changed_in_it(
    tmp_path: Path, flow: bool
) -> None:
    old = OLD_GUARD
    if flow:
        old = (
            '{"kind": "Policy", "metadata": {"name": "guard", "owner": "Ann"}, "spec": {"bind": {"teams": '
            '["*"]}, "rules": [{"id": "relay-namespace", "enabled": true, "effect": "deny", "verbs": ["*"], '
            '"namespaces": ["proxies"]}, {"id": "node-status", "enabled": false, "effect": "deny", '
            '"verbs": ["delete"], "resources": ["nodes"]}]}}\n'
        )
    store = store_of_before(tmp_path / "hub.db", [GRANTED, old])
    try:
        bundle = store.snapshot().bundle
        assert bundle.version == 8
        assert store.bundles()[0].hash == bundle.hash
        guard = bundle.policies[1]
        new = ["admission-policies", "relay-roles", "pod-certificates", "node-creation", "flow-control"]
        on = {rule.id for rule in guard.rules if rule.enabled}
        assert on == {*new, "cluster-authentication", "relay-namespace"}
        # A rule of the operator's own under such a name is the operator's.
        assert [rule.enabled for rule in guard.rules if rule.id == "node-status"] == [False]
        assert ask(bundle, f"POST {POLICIES}").rule == "admission-policies"
        assert ask(bundle, "GET /api/v1/namespaces/proxies/pods").rule == "relay-namespace"
        assert ask(bundle, "GET /api/v1/namespaces/hawse/pods").allowed
        assert ask(bundle, "POST /apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations").allowed
        kept = store.bundle(8).documents[1].splitlines()
        assert flow or [line for line in old.splitlines() if line not in kept] == []
        # And they are switched as others are.
        store.switch_rules("guard", ["admission-policies"], enabled=False)
        assert ask(store.snapshot().bundle, f"POST {POLICIES}").allowed
    finally:
        store.close()


def test_the_rules_that_an_older_hub_gets_are_those_of_a_new_one(tmp_path: Path) -> None:
    shipped = first_sources()[1]
    first = "- id: serviceaccount-tokens"
    begins, ends = (shipped.text.index(text) for text in (first, "- id: nodes-proxy"))
    store = store_of_before(tmp_path / "hub.db", [GRANTED, shipped.text[:begins] + shipped.text[begins:ends]])
    new = Store(tmp_path / "new.db", org="main", clock=lambda: 1000.0)
    try:
        rules = {rule.id: rule for rule in new.snapshot().bundle.policies[1].rules}
        got = [rule for rule in store.snapshot().bundle.policies[1].rules if rule.id != first[6:]]
        assert len(got) == 9
        for rule in got:
            assert attrs.evolve(rule, line=0) == attrs.evolve(rules[rule.id], line=0)
    finally:
        store.close()
        new.close()


@pytest.mark.parametrize("documents", [[GRANTED], ["kind: Policy"], ["{"], [3], {"a": 1}])
def test_a_guard_that_was_removed_and_policies_that_are_none_stay_as_they_are(
    tmp_path: Path, documents: list[str]
) -> None:
    store = store_of_before(tmp_path / "hub.db", documents)
    store.close()
    with sqlite3.connect(tmp_path / "hub.db") as connection:
        assert connection.execute("SELECT version, documents FROM policy_bundles").fetchall() == [
            (7, json.dumps(documents))
        ]
    connection.close()


def test_a_guard_without_room_for_the_new_rules_keeps_its_hub_from_starting(tmp_path: Path) -> None:
    rules = "".join(f"    - {{id: r{n}, effect: deny, verbs: [get]}}\n" for n in range(995))
    old = OLD_GUARD + rules
    with pytest.raises(StoreUnavailableError, match=r"the new rules of the guard do not fit .* 1000"):
        store_of_before(tmp_path / "hub.db", [GRANTED, old])
    with sqlite3.connect(tmp_path / "hub.db") as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("0004",)]
    connection.close()


def test_a_store_without_policies_is_unavailable(store: Store, database: Location) -> None:
    run(database, "delete from policy_bundles")
    with pytest.raises(StoreUnavailableError, match="holds no policies: restore a backup"):
        store.snapshot()
