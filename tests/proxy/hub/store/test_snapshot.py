"""A snapshot that is made from an earlier one says what a full reading says, after any changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from random import Random

import pytest

from auth.keys import SigningKey
from auth.policy.text import Source
from proxy.hub.store import snapshot as snapshot_module
from proxy.hub.store.clusters import RelayContact
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.engines.errors import StoreError
from proxy.hub.store.entities import Mode, Snapshot
from proxy.hub.store.federation import NewIssuer
from proxy.hub.store.roles import Role
from proxy.hub.store.store import Store
from tests.auth.policies import policy
from tests.fakes.databases import run

NAMES = [f"n{number}" for number in range(6)]
KEYS = [SigningKey.generate().public for _ in range(12)]
# The tables of agents and clusters, each with its column of their ids. Those of the cascades come last.
TABLES = {
    "agent_teams": "agent_id",
    "api_keys": "agent_id",
    "agent_keys": "agent_id",
    "enrolment_codes": "agent_id",
    "federation_rules": "agent_id",
    "cluster_grants": "cluster_id",
    "relay_keys": "cluster_id",
    "agents": "id",
    "clusters": "id",
}


@pytest.fixture
def store(database: Location) -> Iterator[Store]:
    with closing(Store(database, org="main", clock=lambda: 1000.0)) as store:
        yield store


def changes(store: Store, random: Random) -> list[Callable[[], object]]:
    """Every kind of change, with names of which some exist."""
    name, other = random.choice(NAMES), random.choice(NAMES)
    some = random.sample(NAMES, 2)
    key = random.choice(KEYS)
    now = store.snapshot()
    keys = [(agent.name, key.id) for agent, key in now.api_keys_by_hash.values()]
    keys += [(agent.name, key.id) for agent, key in now.agent_keys_by_kid.values()]
    rules = [rule.id for pairs in now.rules_by_issuer.values() for _, rule in pairs] or ["x"]
    clusters = [cluster.id for cluster in now.clusters_by_id.values()] or ["x"]
    secret = f"h{random.randrange(10_000)}"
    issuer = NewIssuer(f"https://{other}.example")
    claims = {"repository_id": "1"}
    return [
        lambda: store.add_team(name, some[:1] if now.clusters_by_id else (), reuse_name=True),
        lambda: store.remove_team(name),
        lambda: store.add_agent(name + secret, owner="ada", teams=some[:1], key_hash=secret, key_hint="x"),
        lambda: store.add_agent(name, owner="ada", teams=some),
        lambda: store.change_agent_teams(name, add=[other]),
        lambda: store.change_agent_teams(name, remove=[other]),
        lambda: store.lock_agent(name),
        lambda: store.unlock_agent(name),
        lambda: random.randrange(8) or store.retire_agent(name),
        lambda: store.add_api_key(name, key_hash=secret, key_hint="x"),
        lambda: store.revoke_key(*random.choice(keys or [(name, "x")])),
        lambda: store.add_code(name, secret),
        lambda: store.withdraw_codes(name),
        lambda: store.redeem_code(random.choice([*now.codes_by_hash, "x"]), key),
        lambda: store.add_federation(name, issuer, audience="urn:a:b", claims=claims, mutable=True),
        lambda: store.remove_federation(random.choice(rules)),
        lambda: store.add_cluster(name, relay_key=key, teams=some[:1], labels={"a": other}),
        lambda: store.add_cluster(name, mode=Mode.DIRECT, relay_url="https://relay.example"),
        lambda: store.grant(name, other),
        lambda: store.revoke(name, other),
        lambda: store.replace_relay_key(name, key, keep_old=True),
        lambda: store.replace_relay_key(name, key, keep_old=False),
        lambda: store.drop_old_relay_keys(name),
        lambda: store.pin_cluster(random.choice(clusters), secret),
        lambda: store.unpin_cluster(name),
        lambda: random.randrange(4) or store.remove_cluster(name),
        lambda: store.add_admin_token(name, secret, role=random.choice(list(Role))),
        lambda: store.remove_admin_token(name, at=0.0),
        lambda: store.put_local_token(secret),
        lambda: store.apply_policies([Source(policy("- {id: a, effect: deny, verbs: [get]}", name=name))]),
        lambda: store.remove_policy(name),
        lambda: store.relay_connected(RelayContact(random.choice(clusters), name, "b", "1", "192.0.2.1")),
        lambda: store.note_use(
            agents=dict.fromkeys(now.agents_by_id, 1.0), credentials={}, admin_tokens={}, relays={}
        ),
    ]


def change_at_random(store: Store, random: Random, times: int) -> None:
    before = store.snapshot()
    for _ in range(times):
        try:
            random.choice(changes(store, random))()
        except StoreError:
            continue
        # Several changes may come before the next reading.
        if random.randrange(3):
            before = store.snapshot(before)
            assert before == store.snapshot()


def populate(store: Store) -> None:
    for name in NAMES[:4]:
        store.add_team(name)
    for name, key in zip(NAMES, KEYS, strict=False):
        store.add_agent(name, owner="ada", teams=NAMES[:2])
        store.add_cluster(name, relay_key=key, teams=NAMES[:1])


def test_what_is_new_and_the_rest_are_the_whole(store: Store) -> None:
    populate(store)
    change_at_random(store, Random(1), 120)


@pytest.mark.long
def test_what_is_new_and_the_rest_are_the_whole_after_10_000_changes(store: Store) -> None:
    populate(store)
    for seed in range(10):
        change_at_random(store, Random(seed), 1000)


def test_every_row_of_an_agent_or_cluster_is_noted_by_itself(store: Store, database: Location) -> None:
    # A change of ours often writes several tables, so that another one's note would hide a missing one.
    store.add_team("sre")
    store.add_agent("a", owner="ada", teams=["sre"], key_hash="h", key_hint="x")
    store.add_cluster("prod", relay_key=KEYS[0], teams=["sre"])
    store.add_code("a", "c1")
    store.redeem_code("c1", KEYS[1])
    store.add_code("a", "c2")
    issuer = NewIssuer("https://issuer.example")
    store.add_federation("a", issuer, audience="urn:a:b", claims={"repository_id": "1"}, mutable=True)
    noted: dict[str, list[bool]] = {}
    for table, owner in TABLES.items():
        column = "name" if owner == "id" else owner
        run(database, f"create table kept_{table} as select * from {table}")
        for statement in (
            f"update {table} set {column} = {column}",
            f"delete from {table}",
            f"insert into {table} select * from kept_{table}",
        ):
            run(database, "delete from touched", statement)
            ids = run(database, f"select {owner} from kept_{table}")
            seen = run(database, "select id from touched")
            noted.setdefault(table, []).append(len(ids) == 1 and ids[0] in seen)
        run(database, f"drop table kept_{table}")
    assert noted == {table: [True, True, True] for table in TABLES}


@pytest.fixture
def read_whole(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each reading was a full one."""
    told: list[bool] = []
    read = snapshot_module._read

    def _read(*args: object) -> Snapshot:
        told.append(args[-1] is None)
        return read(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(snapshot_module, "_read", _read)
    return told


def test_only_what_is_new_is_read(store: Store, read_whole: list[bool]) -> None:
    store.add_team("sre")
    for name in ("a", "b"):
        store.add_agent(name, owner="ada", teams=["sre"], key_hash=name, key_hint="x")
    store.add_team("web")
    before = store.snapshot()
    store.lock_agent("a")
    after = store.snapshot(before)
    assert read_whole == [True, False]
    assert not after.agents_by_name["a"].active
    assert after.api_keys_by_hash["a"][0] is after.agents_by_name["a"]
    assert after.agents_by_name["b"] is before.agents_by_name["b"]


def test_a_version_of_another_history_is_read_whole(
    store: Store, database: Location, read_whole: list[bool]
) -> None:
    store.add_team("sre")
    store.add_agent("a", owner="ada", teams=["sre"])
    before = store.snapshot()
    # As after a failover that lost a lock, and a change that got its number.
    run(database, "update versions set nonce = 'x'", "update agents set state = 'locked'")
    store.add_team("web")
    assert not store.snapshot(before).agents_by_name["a"].active
    assert read_whole == [True, True]


def test_a_hub_that_missed_too_much_reads_everything(
    store: Store, database: Location, read_whole: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add_team("sre")
    before = store.snapshot()
    monkeypatch.setattr(snapshot_module, "TOUCHED_MAX", 2)
    for name in ("a", "b"):
        store.add_agent(name, owner="ada", teams=["sre"])
    assert len(store.snapshot(before).agents_by_name) == 2
    store.add_agent("c", owner="ada", teams=["sre"])
    assert len(store.snapshot(before).agents_by_name) == 3
    assert read_whole == [True, False, True]
    # The versions that are kept are bounded.
    run(database, "update directory set version = version + 10001")
    run(database, "update directory set version = version + 1")
    assert run(database, "select count(*) from versions") == [(2,)]


@pytest.mark.parametrize(
    "statement",
    [
        "update agents set name = 'system:admin' where name = 'a'",
        "update teams set name = 'a,system:masters' where name = 'sre'",
        "update clusters set name = '../prod'",
        "delete from agent_teams where agent_id = (select id from agents where name = 'a')",
    ],
)
def test_a_row_changed_by_hand_counts_with_the_next_change(
    store: Store, database: Location, statement: str
) -> None:
    store.add_team("sre")
    store.add_team("web")
    for name in ("a", "b"):
        store.add_agent(name, owner="ada", teams=["sre"])
    store.add_cluster("prod", relay_key=KEYS[0], teams=["sre"])
    before = store.snapshot()
    run(database, statement)
    store.add_admin_token("ops", "h", role=Role.VIEWER)
    after = store.snapshot(before)
    assert after == store.snapshot()
    assert after != before
    store.add_admin_token("more", "h2", role=Role.VIEWER)
    assert store.snapshot(after) == store.snapshot()
