"""The limit of relays over all hubs: two hubs on one real PostgreSQL, whose transactions meet in an order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import attrs
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.keys import SigningKey
from proxy.hub.membership.tunnels import Admission, Dial, Standing, Tunnel, Tunnels, decide
from proxy.hub.store.clusters import RelayContact
from proxy.hub.store.engines import postgres as postgres_engine
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.store import Store
from tests.fakes.databases import run
from tests.fakes.hub_rows import add_hub
from tests.fakes.races import Race, racing
from tests.postgres import PostgresServer

LIMIT = 2
NOW = 1000.0
NEWS = "an instance that was not seen before; an address that was not seen before (known: none)"


def tunnel(
    session: str, instance: str = "a", boot: str = "b1", *, hub: str = "hub-1", cluster: str = "c1"
) -> Tunnel:
    return Tunnel(session, RelayContact(cluster, instance, boot, "1", "192.0.2.1"), "kid", hub, NOW)


def slot(session: str, instance: str = "a", boot: str = "b1", *, living: bool = True) -> Standing:
    return Standing(tunnel(session, instance, boot), "hub", living)


def sessions(admission: Admission) -> list[str]:
    return [each.tunnel.session for each in admission.conflicts]


def test_a_process_takes_one_slot_with_several_tunnels() -> None:
    taken = [slot("s1", "a"), slot("s2", "b")]
    assert decide(Dial(tunnel("s3", "a")), taken, LIMIT) == Admission()
    assert decide(Dial(tunnel("s3", "b")), [*taken, slot("s4", "a")], LIMIT) == Admission()


def test_a_third_relay_conflicts_with_all() -> None:
    taken = [slot("s1", "a"), slot("s2", "b"), slot("s3", "b")]
    assert sessions(decide(Dial(tunnel("s4", "c")), taken, LIMIT)) == ["s1", "s2", "s3"]


def test_another_process_of_an_instance_conflicts_with_its_tunnels_alone() -> None:
    taken = [slot("s1", "a"), slot("s2", "a"), slot("s3", "b")]
    assert sessions(decide(Dial(tunnel("s4", "a", "b2")), taken, LIMIT)) == ["s1", "s2"]
    found = decide(Dial(tunnel("s4", "a", "b2"), frozenset({"s1", "s2"})), taken, LIMIT)
    assert found == Admission(displaced=("s1", "s2"))
    # One of two tunnels answers.
    assert sessions(decide(Dial(tunnel("s4", "a", "b2"), frozenset({"s1"})), taken, LIMIT)) == ["s2"]


def test_only_as_many_relays_lose_their_slots_as_needed() -> None:
    taken = [slot("s1", "a"), slot("s2", "b", living=False), slot("s3", "b", living=False)]
    assert decide(Dial(tunnel("s4", "c")), taken, LIMIT) == Admission(displaced=("s2", "s3"))
    silent = frozenset({"s1", "s2", "s3"})
    assert decide(Dial(tunnel("s4", "c"), silent), taken, LIMIT) == Admission(displaced=("s2", "s3"))
    both = [slot("s1", "a"), slot("s2", "b")]
    assert decide(Dial(tunnel("s4", "c"), silent), both, LIMIT) == Admission(displaced=("s1",))


SLOTS = st.lists(
    st.builds(
        slot,
        st.sampled_from([f"s{number}" for number in range(8)]),
        st.sampled_from("abc"),
        st.sampled_from(["b1", "b2"]),
        living=st.booleans(),
    ),
    max_size=8,
    unique_by=lambda each: each.tunnel.session,
)


@given(
    SLOTS,
    st.sampled_from("abcd"),
    st.sampled_from(["b1", "b2"]),
    st.integers(1, 3),
    st.sets(st.integers(0, 7)),
)
def test_no_decision_makes_it_worse(
    taken: list[Standing], instance: str, boot: str, limit: int, quiet: set[int]
) -> None:
    dial = Dial(tunnel("new", instance, boot), frozenset(f"s{number}" for number in quiet))
    found = decide(dial, taken, limit)
    firm = {each.tunnel.session for each in taken if each.living} - dial.silent
    # A relay that answers keeps its slot, and only such ones refuse another one.
    assert not firm.intersection(found.displaced)
    assert set(sessions(found)) <= firm
    assert not (found.conflicts and found.displaced)
    if found.conflicts:
        return
    left = [each.tunnel for each in taken if each.tunnel.session not in found.displaced]
    before = {each.tunnel.contact.instance for each in taken}
    after = {each.contact.instance for each in left} | {instance}
    assert len(after) <= max(limit, len(before))
    assert {each.contact.boot for each in left if each.contact.instance == instance} <= {boot}


Hubs: TypeAlias = Race[Tunnels]


def opened(address: PostgresAddress) -> Tunnels:
    return Tunnels(address, org="main", clock=lambda: NOW)


@pytest.fixture
def hubs(in_postgres: PostgresAddress, postgres: PostgresServer) -> Iterator[Hubs]:
    add_hub(in_postgres, "hub-1")
    add_hub(in_postgres, "hub-2")
    with racing(opened, in_postgres, postgres) as hubs:
        yield hubs


@pytest.fixture
def cluster(in_postgres: PostgresAddress) -> str:
    """The id of a cluster."""
    return add_cluster(in_postgres, "prod")


def add_cluster(address: PostgresAddress, name: str) -> str:
    store = Store(address, org="main", clock=lambda: NOW)
    cluster_id = store.add_cluster(name, relay_key=SigningKey.generate().public)
    store.close()
    return cluster_id


def dial(*tunnels: Tunnel) -> Callable[[Tunnels], list[Admission]]:
    return lambda store: store.change_tunnels([Dial(each) for each in tunnels], relays_per_cluster=LIMIT)


def taken(store: Tunnels) -> dict[str, bool]:
    """The tunnels, and whether each leaves."""
    return {each.tunnel.session: each.tunnel.leaving for each in store.tunnels()}


def test_of_two_third_relays_one_is_refused(hubs: Hubs, cluster: str) -> None:
    assert dial(tunnel("s1", "a", cluster=cluster))(hubs.one) == [Admission(news=NEWS)]
    first, second = hubs.race(
        dial(tunnel("s2", "b", cluster=cluster)), dial(tunnel("s3", "c", hub="hub-2", cluster=cluster))
    )
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert not first[0].conflicts
    assert sessions(second[0]) == ["s1", "s2"]
    assert [(each.hub, each.living) for each in second[0].conflicts] == [("hub-1", True)] * 2
    assert taken(hubs.other) == {"s1": False, "s2": False}


def test_of_two_processes_of_an_instance_the_first_stays(hubs: Hubs, cluster: str) -> None:
    _, second = hubs.race(
        dial(tunnel("s1", "a", "b1", cluster=cluster)),
        dial(tunnel("s2", "a", "b2", hub="hub-2", cluster=cluster)),
    )
    assert isinstance(second, list)
    assert sessions(second[0]) == ["s1"]


def test_one_process_may_dial_two_hubs_at_once(hubs: Hubs, cluster: str) -> None:
    _, second = hubs.race(
        dial(tunnel("s1", cluster=cluster)), dial(tunnel("s2", hub="hub-2", cluster=cluster))
    )
    assert second == [Admission()]
    assert taken(hubs.one) == {"s1": False, "s2": False}


def test_hubs_that_dial_several_clusters_at_once_do_not_deadlock(
    hubs: Hubs, in_postgres: PostgresAddress
) -> None:
    clusters = sorted(add_cluster(in_postgres, name) for name in ("one", "two", "three"))
    orders = clusters, clusters[::-1]
    batches = [
        dial(*(tunnel(f"{boot}-{each}", boot, hub=boot, cluster=each) for each in order))
        for boot, order in zip(("hub-1", "hub-2"), orders, strict=True)
    ]
    with psycopg.connect(in_postgres.url) as third, ThreadPoolExecutor(2) as threads:
        # With the one in the middle locked, each hub has what it locks before.
        third.execute("select from clusters where id = %s for no key update", [clusters[1]])
        met = [threads.submit(batches[0], hubs.one), threads.submit(batches[1], hubs.other)]
        hubs.wait_until_blocked(*met)
        third.rollback()
        found = [each.result() for each in met]
    assert not any(admission.conflicts for batch in found for admission in batch)
    assert len(taken(hubs.one)) == 6


def test_a_hub_that_is_stopped_amid_a_dial_does_not_keep_its_locks(
    hubs: Hubs, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(postgres_engine, "IDLE_TIMEOUT_MS", 100)
        # It opens its connection again.
        hubs.one.close()
        hubs.one.tunnels()
    with hubs.stopped(dial(tunnel("s1", cluster=cluster))) as begun:
        assert dial(tunnel("s2", cluster=cluster))(hubs.other) == [Admission(news=NEWS)]
    with pytest.raises(StoreUnavailableError, match="idle-in-transaction"):
        begun.result()
    assert taken(hubs.one) == {"s2": False}


def test_a_batch_decides_about_one_dial_after_the_other(hubs: Hubs, cluster: str) -> None:
    dials = [tunnel(f"s{number}", name, cluster=cluster) for number, name in enumerate("abca")]
    found = dial(*dials)(hubs.one)
    assert [bool(each.conflicts) for each in found] == [False, False, True, False]
    assert taken(hubs.one) == {"s0": False, "s1": False, "s3": False}


def test_a_commit_that_was_not_answered_may_be_repeated(hubs: Hubs, cluster: str) -> None:
    only = tunnel("s1", cluster=cluster)
    dial(only)(hubs.one)
    assert dial(only)(hubs.other) == [Admission()]
    hubs.one.change_tunnels(ended=[only], relays_per_cluster=LIMIT)
    hubs.other.change_tunnels(ended=[only], relays_per_cluster=LIMIT)
    assert taken(hubs.one) == {}


def test_a_hub_whose_lease_has_ended_gives_up_its_slots(
    hubs: Hubs, cluster: str, in_postgres: PostgresAddress
) -> None:
    add_hub(in_postgres, "stopped", age_s=11)
    add_hub(in_postgres, "gone", state="gone")
    dial(tunnel("s1", "a", hub="stopped", cluster=cluster), tunnel("s2", "b", hub="gone", cluster=cluster))(
        hubs.one
    )
    # Two seconds more than its own bound of 10 s, at which it takes nothing new.
    assert dial(tunnel("s3", "c", cluster=cluster))(hubs.one)[0].displaced == ("s2",)
    run(in_postgres, "update hubs set renewed_at = renewed_at - 1.1 where boot = 'stopped'")
    assert dial(tunnel("s4", "a", "b2", cluster=cluster))(hubs.one)[0].displaced == ("s1",)
    assert taken(hubs.one) == {"s1": True, "s2": True, "s3": False, "s4": False}
    # The row of a hub is deleted some minutes after its end.
    run(in_postgres, "delete from hubs where boot = 'stopped'")
    assert set(taken(hubs.one)) == {"s2", "s3", "s4"}


def test_a_tunnel_that_leaves_gives_up_its_slot(hubs: Hubs, cluster: str) -> None:
    both = [tunnel("s1", "a", cluster=cluster), tunnel("s2", "b", cluster=cluster)]
    dial(*both)(hubs.one)
    found = hubs.other.change_tunnels(
        [Dial(tunnel("s3", "c", hub="hub-2", cluster=cluster))], left=[both[0]], relays_per_cluster=LIMIT
    )
    assert not found[0].conflicts
    assert hubs.one.tunnels_of("hub-1") == {"s1": attrs.evolve(both[0], leaving=True), "s2": both[1]}


def test_a_relay_is_disconnected_once_its_last_tunnel_ends(hubs: Hubs, cluster: str) -> None:
    both = [tunnel("s1", cluster=cluster), tunnel("s2", hub="hub-2", cluster=cluster)]
    dial(*both)(hubs.one)
    hubs.one.change_tunnels(ended=both[:1], relays_per_cluster=LIMIT)
    assert [each.disconnected_at for each in hubs.one.relay_instances()] == [None]
    hubs.other.change_tunnels(ended=both[1:], relays_per_cluster=LIMIT)
    assert [each.disconnected_at for each in hubs.one.relay_instances()] == [NOW]


def test_the_tunnels_of_ended_hubs_are_deleted(
    hubs: Hubs, cluster: str, in_postgres: PostgresAddress
) -> None:
    dial(
        tunnel("s1", "a", cluster=cluster),
        tunnel("s2", "a", hub="hub-2", cluster=cluster),
        tunnel("s3", "b", cluster=cluster),
    )(hubs.one)
    run(in_postgres, "update hubs set state = 'dead' where boot = 'hub-1'")
    hubs.other.close_ended()
    assert taken(hubs.one) == {"s2": False}
    found = {each.instance: each.disconnected_at for each in hubs.one.relay_instances()}
    assert found == {"a": None, "b": NOW}


def test_a_dial_that_meets_the_removal_of_its_cluster_leaves_nothing(
    hubs: Hubs, cluster: str, in_postgres: PostgresAddress
) -> None:
    dial(tunnel("s1", cluster=cluster))(hubs.one)
    with psycopg.connect(in_postgres.url) as operator, ThreadPoolExecutor(1) as threads:
        operator.execute("delete from clusters where id = %s", [cluster])
        met = threads.submit(dial(tunnel("s2", hub="hub-2", cluster=cluster)), hubs.other)
        hubs.wait_until_blocked(met)
        operator.commit()
        assert met.result() == [Admission()]
    assert taken(hubs.one) == {}
