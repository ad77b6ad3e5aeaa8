from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.keys import PublicKey, SigningKey
from auth.principal import TEAMS_MAX
from proxy.hub.store.clusters import RELAY_INSTANCES_KEPT, RelayContact
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.engines.errors import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    StoreError,
    StoreUnavailableError,
)
from proxy.hub.store.entities import AgentState, Mode
from proxy.hub.store.federation import JWKS_LENGTH_MAX, NewIssuer
from proxy.hub.store.names import PEM_LENGTH_MAX, check_name
from proxy.hub.store.roles import Role
from proxy.hub.store.store import Store
from tests.fakes.databases import run


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: Location, clock: Clock) -> Iterator[Store]:
    opened = Store(database, org="main", clock=clock)
    yield opened
    opened.close()


def relay_key() -> PublicKey:
    return SigningKey.generate().public


def add_agent(store: Store, name: str = "sre-1", teams: tuple[str, ...] = ("sre",), key: str = "h1") -> str:
    return store.add_agent(name, owner="ada", teams=teams, key_hash=key, key_hint="hws_ab")[0]


def test_an_agent_reaches_what_is_granted_to_its_teams(store: Store) -> None:
    store.add_team("sre")
    store.add_team("web")
    add_agent(store, "sre-1", ("sre",), "h1")
    add_agent(store, "web-1", ("web",), "h2")
    store.add_cluster("prod", relay_key=relay_key(), teams=["sre"], labels={"env": "prod"})
    store.add_cluster("dev", relay_key=relay_key(), teams=["web", "sre"])
    now = store.snapshot()
    sre, web = now.agents_by_name["sre-1"], now.agents_by_name["web-1"]
    assert [cluster.name for cluster in now.clusters_of(sre)] == ["dev", "prod"]
    assert [cluster.name for cluster in now.clusters_of(web)] == ["dev"]
    assert [agent.name for agent in now.agents_of(now.clusters_by_name["dev"])] == ["sre-1", "web-1"]
    assert sre.principal is not None
    assert (sre.principal.user, sre.principal.groups) == ("agent:sre-1", ("main/sre",))
    assert now.api_keys_by_hash["h1"][0] is sre
    assert now.clusters_by_name["prod"].labels == {"env": "prod"}


def test_a_team_made_again_inherits_nothing(store: Store) -> None:
    store.add_team("sre")
    store.add_team("other")
    store.add_cluster("prod", relay_key=relay_key(), teams=["sre"])
    first = store.remove_team("sre")
    assert store.add_team("sre", reuse_name=True) != first
    add_agent(store)
    now = store.snapshot()
    assert now.clusters_of(now.agents_by_name["sre-1"]) == ()


def test_a_teams_name_is_not_given_again_unless_it_is_meant(store: Store) -> None:
    store.add_team("sre")
    store.remove_team("sre")
    told = (
        "sre was removed, .* group main/sre: choose a new name, or remove those bindings and add --reuse-name"
    )
    for _ in range(2):
        with pytest.raises(ConflictError, match=told):
            store.add_team("sre")
    store.add_team("sre", reuse_name=True)
    with pytest.raises(ConflictError, match="exists already"):
        store.add_team("sre", reuse_name=True)
    # It can be removed again, and is taken again.
    store.remove_team("sre")
    with pytest.raises(ConflictError, match=told):
        store.add_team("sre")
    # Of a name that no team ever had it says nothing wrong.
    store.add_team("web", reuse_name=True)


def test_a_cluster_made_again_inherits_nothing(store: Store) -> None:
    store.add_team("sre")
    key = relay_key()
    store.add_cluster("prod", relay_key=key, teams=["sre"])
    store.relay_connected(RelayContact("", "i", "b", "1", "a"))
    store.remove_cluster("prod")
    cluster_id = store.add_cluster("prod", relay_key=relay_key())
    now = store.snapshot()
    assert now.clusters_by_id[cluster_id].teams == ()
    assert now.find_relay_key(key.kid) is None
    assert store.relay_instances() == []


def test_a_team_with_agents_stays(store: Store) -> None:
    store.add_team("sre")
    add_agent(store)
    with pytest.raises(ConflictError, match="sre-1"):
        store.remove_team("sre")
    store.retire_agent("sre-1")
    store.remove_team("sre")


def test_an_agents_name_is_never_given_again(store: Store) -> None:
    store.add_team("sre")
    add_agent(store)
    with pytest.raises(ConflictError, match="exists already"):
        add_agent(store, key="h2")
    store.retire_agent("sre-1")
    with pytest.raises(ConflictError, match="never given to another"):
        add_agent(store, key="h3")


def test_retiring_revokes_every_key_and_cannot_be_undone(store: Store) -> None:
    store.add_team("sre")
    add_agent(store)
    store.add_api_key("sre-1", key_hash="h2", key_hint="x")
    store.retire_agent("sre-1")
    now = store.snapshot()
    assert now.api_keys_by_hash == {}
    assert now.agents_by_name["sre-1"].state is AgentState.RETIRED
    assert not now.agents_by_name["sre-1"].active
    for change in (store.unlock_agent, store.lock_agent, store.retire_agent):
        with pytest.raises(ConflictError, match="is retired"):
            change("sre-1")
    with pytest.raises(ConflictError, match="is retired"):
        store.add_api_key("sre-1", key_hash="h4", key_hint="x")


def test_locking_and_unlocking(store: Store) -> None:
    store.add_team("sre")
    add_agent(store)
    store.lock_agent("sre-1")
    assert not store.snapshot().agents_by_name["sre-1"].active
    with pytest.raises(ConflictError, match="locked already"):
        store.lock_agent("sre-1")
    store.unlock_agent("sre-1")
    assert store.snapshot().agents_by_name["sre-1"].active


def test_an_agent_always_has_a_team(store: Store) -> None:
    store.add_team("sre")
    store.add_team("web")
    with pytest.raises(InvalidError, match="at least one team"):
        add_agent(store, teams=())
    assert "sre-1" not in store.snapshot().agents_by_name  # the refused change left nothing behind
    add_agent(store)
    with pytest.raises(InvalidError):
        store.change_agent_teams("sre-1", remove=["sre"])
    for unknown in ({"add": ["web", "none"]}, {"add": ["web"], "remove": ["none"]}):
        with pytest.raises(NotFoundError, match="none"):
            store.change_agent_teams("sre-1", **unknown)
    assert store.snapshot().agents_by_name["sre-1"].teams == ("sre",)
    for nothing in ({"remove": ["web"]}, {"add": ["sre"]}, {"add": ["web"], "remove": ["web"]}):
        with pytest.raises(ConflictError, match=r"^nothing was changed: agent sre-1 is in sre$"):
            store.change_agent_teams("sre-1", **nothing)
    store.change_agent_teams("sre-1", add=["web", "sre", "web"])
    assert store.snapshot().agents_by_name["sre-1"].teams == ("sre", "web")


def test_keys_are_listed_revoked_and_bounded(store: Store, clock: Clock) -> None:
    store.add_team("sre")
    add_agent(store)
    clock.now = 2000.0
    second = store.add_api_key("sre-1", key_hash="h2", key_hint="hws_cd")
    store.revoke_key("sre-1", second)
    assert [(key.hint, key.revoked_at) for key in store.credentials("sre-1")] == [
        ("hws_ab", None),
        ("hws_cd", 2000.0),
    ]
    assert list(store.snapshot().api_keys_by_hash) == ["h1"]
    with pytest.raises(ConflictError, match="revoked already"):
        store.revoke_key("sre-1", second)
    with pytest.raises(NotFoundError):
        store.revoke_key("sre-1", "x")
    for number in range(15):
        store.add_api_key("sre-1", key_hash=f"n{number}", key_hint="x")
    with pytest.raises(ConflictError, match="the most it may have"):
        store.add_api_key("sre-1", key_hash="n99", key_hint="x")


def test_a_key_of_another_agent_cannot_be_revoked_through_this_one(store: Store) -> None:
    store.add_team("sre")
    add_agent(store)
    add_agent(store, "sre-2", key="h2")
    other = store.credentials("sre-2")[0]
    with pytest.raises(NotFoundError):
        store.revoke_key("sre-1", other.id)


def test_grants(store: Store) -> None:
    store.add_team("sre")
    store.add_cluster("prod", relay_key=relay_key())
    store.grant("prod", "sre")
    with pytest.raises(ConflictError):
        store.grant("prod", "sre")
    assert store.snapshot().clusters_by_name["prod"].teams == ("sre",)
    store.revoke("prod", "sre")
    with pytest.raises(ConflictError):
        store.revoke("prod", "sre")
    assert store.snapshot().clusters_by_name["prod"].teams == ()


def test_relay_keys_are_replaced_at_once_or_with_an_overlap(store: Store) -> None:
    first, second, third = relay_key(), relay_key(), relay_key()
    cluster_id = store.add_cluster("prod", relay_key=first)
    assert store.snapshot().find_relay_key(first.kid) == (cluster_id, first)
    store.replace_relay_key("prod", second, keep_old=True)
    assert {key.kid for key in store.snapshot().clusters_by_name["prod"].relay_keys} == {
        first.kid,
        second.kid,
    }
    store.replace_relay_key("prod", third, keep_old=False)
    assert store.snapshot().clusters_by_name["prod"].relay_keys == (third,)
    store.replace_relay_key("prod", relay_key(), keep_old=True)
    store.replace_relay_key("prod", relay_key(), keep_old=True)
    store.replace_relay_key("prod", relay_key(), keep_old=True)
    with pytest.raises(ConflictError, match="4 relay keys"):
        store.replace_relay_key("prod", relay_key(), keep_old=True)


def test_the_newest_relay_key_stays_though_the_clock_was_set_back(store: Store, clock: Clock) -> None:
    first, second, third = relay_key(), relay_key(), relay_key()
    store.add_cluster("prod", relay_key=first)
    clock.now -= 500
    store.replace_relay_key("prod", second, keep_old=True)
    store.replace_relay_key("prod", third, keep_old=True)
    assert store.drop_old_relay_keys("prod") == [first.kid, second.kid]
    assert store.snapshot().clusters_by_name["prod"].relay_keys == (third,)


# What a hostile or hasty operator may try; each would become a user, a group or a place in a path.
HOSTILE = [
    "",
    " ",
    "system",
    "system:masters",
    "system:serviceaccount:ns:sa",
    "system:node:n1",
    "system:authenticated",
    "oidc:ada",
    "agent:x",
    "a,b",
    "a\n",
    "a\r\nImpersonate-User: x",
    "a b",
    "a/b",
    "..",
    "a%2fb",
    "ſystem",
    "ａ",
    "Ada",
    "-a",
    "a-",
    "a_b",
    "$(id)",
    '"',
    "--server=x",
    "a" * 64,
    "kubernetes",
    "\x00",
    "a\u202eb",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused_everywhere(store: Store, name: str) -> None:
    store.add_team("sre")
    for attempt in (
        lambda: store.add_team(name),
        lambda: add_agent(store, name),
        lambda: store.add_cluster(name, relay_key=relay_key()),
        lambda: store.add_admin_token(name, "h", role=Role.VIEWER),
    ):
        with pytest.raises(InvalidError) as caught:
            attempt()
        assert str(caught.value).isprintable()
        assert str(caught.value).isascii()
    remove_token = partial(store.remove_admin_token, at=0.0)
    for lookup in (store.remove_team, store.remove_cluster, store.lock_agent, remove_token):
        with pytest.raises(NotFoundError) as missing:
            lookup(name)
        assert str(missing.value).isprintable()


@given(st.text(max_size=70))
def test_a_name_that_passes_can_stand_in_a_header_a_path_and_a_file_name(name: str) -> None:
    try:
        check_name("name", name)
    except InvalidError:
        return
    assert name.isascii()
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert name.casefold() == name


@pytest.mark.parametrize("owner", ["", " ada", "ada\n", "a" * 255, "\x1b]0;x", "a\u202eb"])
def test_hostile_owners_are_refused(store: Store, owner: str) -> None:
    store.add_team("sre")
    with pytest.raises(InvalidError):
        store.add_agent("sre-1", owner=owner, teams=["sre"], key_hash="h", key_hint="x")


@pytest.mark.parametrize(
    "labels", [{"": "x"}, {"a b": "x"}, {"a": "x y"}, {"a": "-"}, {"A/b/c": "x"}, {"a\n": "x"}]
)
def test_labels_follow_kubernetes(store: Store, labels: dict[str, str]) -> None:
    with pytest.raises(InvalidError):
        store.add_cluster("prod", relay_key=relay_key(), labels=labels)


def test_too_many_labels_are_refused(store: Store) -> None:
    with pytest.raises(InvalidError, match="65 labels"):
        store.add_cluster("prod", relay_key=relay_key(), labels={f"l{n}": "" for n in range(65)})


@pytest.mark.parametrize(
    "url",
    [
        "http://relay.example",
        "https://",
        "https://a:b@relay.example",
        "https://relay.example/path",
        "https://relay.example?q",
        "https://relay.example:99999",
        "https://relay.example:0",
        "https://relay example",
        "https://relay.example\r\n",
        "https://169.254.169.254",
        "https://[fe80::1]",
        "https://[::]",
        "https://0.0.0.0",
        "https://[::ffff:169.254.169.254]",
        "https://224.0.0.1",
        "unix:///var/run/docker.sock",
    ],
)
def test_relay_urls_where_no_relay_can_be(store: Store, url: str) -> None:
    with pytest.raises(InvalidError):
        store.add_cluster(
            "prod", relay_key=relay_key(), mode=Mode.DIRECT, relay_url=url, relay_address_private=True
        )


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.0.0.1", "[::1]", "[fd00::1]", "[::ffff:10.0.0.1]", "192.168.1.1:8443"]
)
def test_private_relay_addresses_need_to_be_meant(store: Store, host: str) -> None:
    url = f"https://{host}"
    with pytest.raises(InvalidError, match="allow-private-address"):
        store.add_cluster("prod", relay_key=relay_key(), mode=Mode.DIRECT, relay_url=url)
    store.add_cluster(
        "prod", relay_key=relay_key(), mode=Mode.DIRECT, relay_url=url, relay_address_private=True
    )
    assert store.snapshot().clusters_by_name["prod"].relay_address_private is True


def test_mode_and_relay_address_belong_together(store: Store) -> None:
    with pytest.raises(InvalidError, match=r"needs the URL .* \(--relay-url\)"):
        store.add_cluster("prod", relay_key=relay_key(), mode=Mode.DIRECT)
    with pytest.raises(InvalidError, match="belong to mode direct"):
        store.add_cluster("prod", relay_key=relay_key(), relay_url="https://relay.example")
    with pytest.raises(InvalidError, match="needs the public key"):
        store.add_cluster("prod")
    # Which a direct one does without.
    store.add_cluster(
        "prod",
        mode=Mode.DIRECT,
        relay_url="https://relay.example:8443",
        relay_ca_pem="pem",
    )
    cluster = store.snapshot().clusters_by_name["prod"]
    assert (cluster.mode, cluster.relay_url, cluster.relay_ca_pem) == (
        Mode.DIRECT,
        "https://relay.example:8443",
        "pem",
    )


def test_relays_are_remembered(store: Store, clock: Clock) -> None:
    cluster_id = store.add_cluster("prod", relay_key=relay_key())
    contact = RelayContact(cluster_id, "pod-1", "boot-1", "0.1.0", "10.0.0.1")
    store.relay_connected(contact)
    clock.now = 1100.0
    store.note_use(agents={}, credentials={}, admin_tokens={}, relays={(cluster_id, "pod-1"): 1090.0})
    (seen,) = store.relay_instances()
    assert (seen.cluster, seen.connected_at, seen.last_seen_at, seen.disconnected_at) == (
        "prod",
        1000.0,
        1090.0,
        None,
    )
    store.relay_disconnected(cluster_id, "pod-1", "another boot")
    assert store.relay_instances()[0].disconnected_at is None
    store.relay_disconnected(cluster_id, "pod-1", "boot-1")
    assert store.relay_instances()[0].disconnected_at == 1100.0
    store.relay_connected(contact)
    assert store.relay_instances()[0].disconnected_at is None
    store.close_relays()
    assert store.relay_instances()[0].disconnected_at == 1100.0


def test_old_relay_instances_are_forgotten_and_connected_ones_never(store: Store, clock: Clock) -> None:
    cluster_id = store.add_cluster("prod", relay_key=relay_key())
    store.relay_connected(RelayContact(cluster_id, "alive", "b", "1", "a"))
    for number in range(30):
        clock.now += 1
        store.relay_connected(RelayContact(cluster_id, f"pod-{number}", "b", "1", "a"))
        store.relay_disconnected(cluster_id, f"pod-{number}", "b")
    names = [relay.instance for relay in store.relay_instances()]
    assert len(names) == RELAY_INSTANCES_KEPT
    assert {"alive", "pod-29"} <= set(names)


def test_use_is_written_down(store: Store) -> None:
    store.add_team("sre")
    agent_id = add_agent(store)
    key = store.credentials("sre-1")[0]
    token_id = store.add_admin_token("ops", "th", role=Role.METRICS)
    store.note_use(
        agents={agent_id: 5.0, "gone": 6.0},
        credentials={key.id: 5.0},
        admin_tokens={token_id: 7.0},
        relays={},
    )
    assert store.last_used() == {agent_id: 5.0, key.id: 5.0, token_id: 7.0}
    # An earlier use that is written later, as of another hub, changes nothing.
    store.note_use(agents={agent_id: 4.0}, credentials={key.id: 6.0}, admin_tokens={}, relays={})
    assert store.last_used([agent_id, key.id, "gone"]) == {agent_id: 5.0, key.id: 6.0}


def names_of_tokens(store: Store) -> list[str]:
    return sorted(token.name for token in store.snapshot().admin_tokens_by_hash.values())


def test_admin_tokens_never_run_out(store: Store) -> None:
    store.put_local_token("h1")
    store.add_admin_token("scrape", "h2", role=Role.METRICS)
    # Of the other roles none can add an admin.
    with pytest.raises(ConflictError, match=r"local is the last one with the role admin: add another first"):
        store.remove_admin_token("local", at=0.0)
    store.add_admin_token("ci", "h3", role=Role.ADMIN)
    with pytest.raises(ConflictError, match="exists already"):
        store.add_admin_token("ci", "h4", role=Role.ADMIN)
    store.remove_admin_token("local", at=0.0)
    with pytest.raises(ConflictError, match="ci is the last one"):
        store.remove_admin_token("ci", at=0.0)
    store.remove_admin_token("scrape", at=0.0)
    assert names_of_tokens(store) == ["ci"]


def test_an_admin_token_that_has_expired_is_not_the_other_admin(store: Store) -> None:
    store.put_local_token("h1")
    store.add_admin_token("week", "h2", role=Role.ADMIN, expires_at=100.0)
    with pytest.raises(ConflictError, match="local is the last one"):
        store.remove_admin_token("local", at=100.0)
    # An expired one may always go.
    store.remove_admin_token("week", at=100.0)
    store.add_admin_token("week", "h2", role=Role.ADMIN, expires_at=100.0)
    # As of the request, though it is carried out later.
    store.remove_admin_token("local", at=99.0)
    assert names_of_tokens(store) == ["week"]


def test_the_local_token_is_replaced_and_no_other_has_its_name(store: Store) -> None:
    store.put_local_token("h1")
    with pytest.raises(InvalidError, match="choose another name"):
        store.add_admin_token("local", "h2", role=Role.ADMIN)
    store.put_local_token("h3")
    [(digest, token)] = store.snapshot().admin_tokens_by_hash.items()
    assert (digest, token.name, token.role, token.expires_at) == ("h3", "local", Role.ADMIN, None)


def test_the_machines_of_one_directory_have_a_token_each(store: Store) -> None:
    for name, digest in (("local-00000000", "h1"), ("local-0000000a", "h2"), ("local-00000000", "h3")):
        store.put_local_token(digest, name)
        with pytest.raises(InvalidError, match="reserved for a hub's own token"):
            store.add_admin_token(name, "h4", role=Role.ADMIN)
    assert set(store.snapshot().admin_tokens_by_hash) == {"h2", "h3"}
    store.add_admin_token("local-laptop", "h4", role=Role.ADMIN)


@pytest.mark.parametrize(
    ("column", "value"), [("role", "root"), ("role", ""), ("name", "local:root"), ("name", "a b")]
)
def test_an_admin_token_that_this_code_would_not_have_written_is_left_out(
    database: Location, store: Store, column: str, value: str
) -> None:
    store.put_local_token("h1")
    store.add_admin_token("ci", "h2", role=Role.VIEWER)
    run(database, f"update admin_tokens set {column} = '{value}' where name = 'ci'")
    now = store.snapshot()
    assert set(now.admin_tokens_by_hash) == {"h1"}
    assert "is invalid" in now.faults[0]


def test_what_was_stored_is_there_at_the_next_start(database: Location, clock: Clock) -> None:
    for _ in range(2):
        store = Store(database, org="main", clock=clock)
        if not store.snapshot().teams_by_name:
            store.add_team("sre")
        names = list(store.snapshot().teams_by_name)
        store.close()
    assert names == ["sre"]


def test_the_database_itself_refuses_what_the_code_must_not_write(database: Location, store: Store) -> None:
    store.add_team("sre")
    add_agent(store)
    cluster = "insert into clusters (id, name, labels, mode, relay_url, relay_address_private, created_at)"
    for statement in (
        "update agents set state = 'admin'",
        f"{cluster} values ('i', 'n', '{{}}', 'direct', null, false, 0)",
        f"{cluster} values ('i', 'n', '{{}}', 'tunnel', 'https://x', false, 0)",
        "delete from teams",
        "insert into agents select 'other', name, owner, state, 0, 0, null from agents",
        # A row whose INSERT forgets the role is no admin: it is none at all.
        "insert into admin_tokens (id, name, hash, created_at) values ('a', 'a', 'a', 1)",
        "insert into directory (id, version, nonce, oldest) values (2, 1, '', '')",
    ):
        with pytest.raises((sqlite3.IntegrityError, psycopg.IntegrityError)):
            run(database, "pragma foreign_keys = on" if isinstance(database, Path) else "select 1", statement)


def test_what_is_too_much_is_refused_before_it_is_stored(store: Store) -> None:
    store.add_team("sre")
    add_agent(store, "robot")
    pinned = {"repository_id": "1"}

    def federate(issuer: NewIssuer) -> None:
        store.add_federation("robot", issuer, audience="urn:hawse:main:hub", claims=pinned, mutable=False)

    def dial(ca: str) -> None:
        store.add_cluster("edge", mode=Mode.DIRECT, relay_url="https://relay.example", relay_ca_pem=ca)

    issuer = "https://issuer.example"
    with pytest.raises(InvalidError, match=f"{TEAMS_MAX + 1} teams exceed"):
        store.add_agent("other", owner="ada", teams=[f"team-{number}" for number in range(TEAMS_MAX + 1)])
    with pytest.raises(InvalidError, match="the relay's CA exceeds"):
        dial("x" * (PEM_LENGTH_MAX + 1))
    with pytest.raises(InvalidError, match="the JWKS exceeds"):
        federate(NewIssuer(issuer, jwks="x" * (JWKS_LENGTH_MAX + 1)))
    with pytest.raises(InvalidError, match="the issuer's CA exceeds"):
        federate(NewIssuer(issuer, ca_pem="x" * (PEM_LENGTH_MAX + 1)))
    now = store.snapshot()
    assert (list(now.agents_by_name), now.clusters_by_name, now.issuers_by_url) == (["robot"], {}, {})


def test_every_refusal_is_one_kind_of_error() -> None:
    ours = {kind for kind in StoreError.__subclasses__() if kind.__module__.startswith("proxy.hub.store.")}
    assert ours == {NotFoundError, ForbiddenError, ConflictError, InvalidError, StoreUnavailableError}


def holds(database: Location, statement: str) -> bool:
    """Put JSON into a column; False where PostgreSQL itself refuses a text that is no JSON."""
    if isinstance(database, Path):
        run(database, statement)
        return True
    try:
        run(database, statement)
    except (psycopg.errors.InvalidTextRepresentation, psycopg.errors.StatementTooComplex):
        return False
    return True


def test_an_agent_that_must_not_act_is_left_out_alone(database: Location, store: Store) -> None:
    store.add_team("sre")
    add_agent(store, "bad", key="h1")
    add_agent(store, "good", key="h2")
    run(database, "update agents set name = 'system:admin' where name = 'bad'")
    now = store.snapshot()
    assert list(now.agents_by_name) == ["good"]
    assert list(now.api_keys_by_hash) == ["h2"]
    [fault] = now.faults
    assert "system:admin" in fault


def test_whoever_is_in_a_team_that_must_not_be_used_does_not_act_with_the_others(
    database: Location, store: Store
) -> None:
    store.add_team("sre")
    store.add_team("web")
    add_agent(store, "in-both", ("sre", "web"), "h1")
    add_agent(store, "in-one", ("web",), "h2")
    store.add_cluster("prod", relay_key=relay_key(), teams=["sre", "web"])
    run(database, "update teams set name = 'a,system:masters' where name = 'sre'")
    now = store.snapshot()
    assert list(now.teams_by_name) == ["web"]
    assert list(now.agents_by_name) == ["in-one"]
    assert now.clusters_by_name["prod"].teams == ("web",)
    assert len(now.faults) == 2


@pytest.mark.parametrize("jwk", ["{}", "[]", "{", "1", "[" * 99_999])
def test_a_relay_key_that_cannot_be_used_is_no_key(database: Location, store: Store, jwk: str) -> None:
    store.add_cluster("prod", relay_key=relay_key())
    store.add_cluster("dev", relay_key=relay_key())
    prod = "(select id from clusters where name = 'prod')"
    if not holds(database, f"update relay_keys set jwk = '{jwk}' where cluster_id = {prod}"):
        return
    now = store.snapshot()
    assert now.clusters_by_name["prod"].relay_keys == ()
    assert len(now.clusters_by_name["dev"].relay_keys) == 1
    assert len(now.faults) == 1


def test_a_cluster_under_no_name_of_ours_is_left_out(database: Location, store: Store) -> None:
    store.add_cluster("prod", relay_key=relay_key())
    run(database, "update clusters set name = '../prod'")
    now = store.snapshot()
    assert now.clusters_by_id == {}
    assert len(now.faults) == 1


@pytest.mark.parametrize("labels", ["{", "[]", "1", "null", '{"env": 1}', '{"env": "a b"}', "[" * 99_999])
def test_a_cluster_with_labels_that_are_none_is_left_out(
    database: Location, store: Store, labels: str
) -> None:
    store.add_cluster("prod", relay_key=relay_key())
    store.add_cluster("dev", relay_key=relay_key())
    if not holds(database, f"update clusters set labels = '{labels}' where name = 'prod'"):
        return
    now = store.snapshot()
    assert list(now.clusters_by_name) == ["dev"]
    (fault,) = now.faults
    assert fault.startswith("cluster 'prod' is invalid: ")


@pytest.mark.parametrize("jwk", ["{}", "[]", "{", "1", "[" * 99_999])
def test_an_agents_key_that_cannot_be_used_is_left_out(database: Location, store: Store, jwk: str) -> None:
    store.add_team("sre")
    for agent, code in (("one", "c1"), ("other", "c2")):
        add_agent(store, agent, key=agent)
        store.add_code(agent, code)
        store.redeem_code(code, relay_key())
    one = "(select id from agents where name = 'one')"
    if not holds(database, f"update agent_keys set jwk = '{jwk}' where agent_id = {one}"):
        return
    now = store.snapshot()
    assert [agent.name for agent, _ in now.agent_keys_by_kid.values()] == ["other"]
    (fault,) = now.faults
    assert "is invalid" in fault
    assert len(store.credentials("one")) == 1


@pytest.mark.parametrize("claims", ["[]", '{"sub": 1}', "{}", "{", "1", "[" * 99_999])
def test_a_federation_rule_that_would_fit_too_much_is_left_out(
    database: Location, store: Store, claims: str
) -> None:
    store.add_team("sre")
    add_agent(store, "robot")
    issuer = NewIssuer("https://token.actions.githubusercontent.com")
    pinned = {"repository_id": "1", "ref": "refs/heads/main"}
    store.add_federation("robot", issuer, audience="urn:hawse:main:hub", claims=pinned, mutable=False)
    assert store.snapshot().rules_by_issuer
    if not holds(database, f"update federation_rules set claims = '{claims}'"):
        return
    now = store.snapshot()
    assert now.rules_by_issuer == {}
    (fault,) = now.faults
    assert "is invalid" in fault


@pytest.mark.parametrize("documents", ["{", "1", "[" * 99_999])
def test_a_store_that_cannot_be_read_at_all_is_unavailable(
    database: Location, store: Store, documents: str
) -> None:
    store.snapshot()
    if not holds(database, f"update policy_bundles set documents = '{documents}'"):
        return
    with pytest.raises(StoreUnavailableError, match="cannot be read"):
        store.snapshot()


def test_what_is_new_about_a_relay_is_told_once(store: Store) -> None:
    cluster_id = store.add_cluster("prod", relay_key=relay_key())
    other_id = store.add_cluster("dev", relay_key=relay_key())

    def come(instance: str, address: str, cluster: str = cluster_id) -> str:
        return store.relay_connected(RelayContact(cluster, instance, "b", "1", address))

    assert come("pod-1", "192.0.2.1") == (
        "an instance that was not seen before; an address that was not seen before (known: none)"
    )
    assert come("pod-1", "192.0.2.1") == ""
    assert come("pod-2", "192.0.2.1") == "an instance that was not seen before"
    assert come("pod-2", "192.0.2.9") == "an address that was not seen before (known: 192.0.2.1)"
    assert come("pod-2", "2001:db8::1") == "an address that was not seen before (known: 192.0.2.1, 192.0.2.9)"
    assert come("pod-2", "2001:db8::2:1") == ""
    assert come("pod-2", "2001:db8:0:1::1").startswith("an address that was not seen before")
    # Of another cluster it is new all the same.
    assert "instance" in come("pod-1", "192.0.2.1", other_id)
    assert come("pod-1", "192.0.2.1", "no-such-cluster") == ""


def test_what_has_not_changed_is_the_same_object_and_what_has_is_not(store: Store) -> None:
    for team in ("sre", "web"):
        store.add_team(team)
    for name in ("a", "b"):
        store.add_agent(name, owner="ada", teams=["sre"])
        store.add_cluster(name, relay_key=SigningKey.generate().public, teams=["sre"])
    # What the version of `before` itself touched is read again.
    store.add_admin_token("ops", "h", role=Role.VIEWER)
    before = store.snapshot()
    again = store.snapshot(before)
    assert all(again.agents_by_name[name] is before.agents_by_name[name] for name in "ab")
    assert all(again.clusters_by_name[name] is before.clusters_by_name[name] for name in "ab")

    store.lock_agent("a")
    store.change_agent_teams("b", add=["web"])
    store.grant("a", "web")
    store.replace_relay_key("b", SigningKey.generate().public, keep_old=True)
    after = store.snapshot(before)
    assert after.agents_by_name["a"].state is AgentState.LOCKED
    assert after.agents_by_name["b"].teams == ("sre", "web")
    assert after.clusters_by_name["a"].teams == ("sre", "web")
    assert len(after.clusters_by_name["b"].relay_keys) == 2
    # A team made again under its name is another one.
    store.change_agent_teams("b", remove=["web"])
    store.remove_team("web")
    store.add_team("web", reuse_name=True)
    assert store.snapshot().clusters_by_name["a"].teams == ("sre",)
