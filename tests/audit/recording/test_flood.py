from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from audit.ids import new_eid
from audit.record import Actor, ActorType, Client, Cluster, Decision, Kind, Phase, Request, Response
from audit.recording.flood import FIRST, SOURCES_MAX, WINDOW_S, Floods
from tests.audit.events import NOW_S, call, failure


def test_the_first_failures_are_stored_and_the_rest_are_one_event_with_a_count() -> None:
    floods = Floods(new_eid)
    events = [failure(at_s=NOW_S + number / 100) for number in range(500)]
    stored = [event for number, event in enumerate(events) if floods.admit(event, number / 100)]
    assert stored == events[:FIRST]
    assert floods.due(WINDOW_S - 0.01) == []
    (aggregate,) = floods.due(WINDOW_S)
    assert aggregate.count == 490
    assert aggregate.ts == events[FIRST].ts
    assert aggregate.dur_ms == 4890.0
    assert aggregate.note.endswith("the token has expired")
    assert aggregate.eid not in {event.eid for event in events}
    assert floods.next_due_s() is None


def test_places_do_not_hide_one_another() -> None:
    floods = Floods(new_eid)
    for number in range(100):
        floods.admit(failure(ip="10.0.0.1"), number / 100)
    assert floods.admit(failure(ip="10.0.0.2"), 1.0)


def test_the_addresses_of_one_network_are_one_place() -> None:
    floods = Floods(new_eid, lambda address: address.rpartition(":")[0])
    stored = [floods.admit(failure(ip=f"2001:db8::{number:x}"), 0.0) for number in range(100)]
    assert sum(stored) == FIRST
    assert floods.admit(failure(ip="2001:db9::1"), 0.0)


def test_a_slow_trickle_is_never_aggregated() -> None:
    floods = Floods(new_eid)
    for number in range(100):
        now_s = number * WINDOW_S / FIRST
        assert floods.due(now_s) == []
        assert floods.admit(failure(), now_s)


def test_denials_are_aggregated_and_allowed_calls_are_not() -> None:
    floods = Floods(new_eid)
    allowed = call(phase=Phase.COMPLETE)
    assert all(floods.admit(allowed, 0.0) for _ in range(100))
    denied = replace(allowed, decision=Decision("deny", "no-kill"))
    assert sum(floods.admit(denied, 0.0) for _ in range(100)) == FIRST


def test_refused_admin_requests_are_aggregated_and_admitted_ones_are_not() -> None:
    """A token that may only fetch metrics leaves no event, so it must not fill the disk with refusals."""
    floods = Floods(new_eid)
    admitted = replace(failure(), kind=Kind.ADMIN, resp=Response(403))
    assert all(floods.admit(admitted, 0.0) for _ in range(100))
    refused = replace(admitted, decision=Decision("deny"))
    assert sum(floods.admit(refused, 0.0) for _ in range(100)) == FIRST


def test_an_operators_reads_are_aggregated_and_changes_are_not() -> None:
    """A read-only token must not fill the disk either."""
    floods = Floods(new_eid)
    change = replace(failure(), kind=Kind.ADMIN, req=Request("POST", "/v1/teams", "create"))
    assert all(floods.admit(change, 0.0) for _ in range(100))
    for method in ("GET", "HEAD"):
        read = replace(
            change, req=Request(method, "/v1/teams", "list"), actor=Actor(ActorType.OPERATOR, method)
        )
        assert sum(floods.admit(read, 0.0) for _ in range(100)) == FIRST
    local = replace(change, req=Request(verb="backup", resource="hub"))
    assert all(floods.admit(local, 0.0) for _ in range(100))


def test_what_is_beyond_an_agents_limits_is_one_place_wherever_it_comes_from() -> None:
    floods = Floods(new_eid)
    limited = replace(call(phase=Phase.COMPLETE), decision=Decision("deny", "limits.x"), resp=Response(429))
    stored = sum(
        floods.admit(
            replace(limited, client=Client(f"10.0.0.{number}"), cluster=Cluster("", f"c-{number}")), 0.0
        )
        for number in range(100)
    )
    assert stored == FIRST
    assert floods.admit(replace(limited, actor=replace(limited.actor, name="other")), 0.0)
    [aggregate] = floods.due(WINDOW_S)
    assert aggregate.count == 100 - FIRST


def test_an_intent_is_never_aggregated() -> None:
    floods = Floods(new_eid)
    assert all(floods.admit(call(), 0.0) for _ in range(100))


@given(st.lists(st.tuples(st.integers(0, 3 * SOURCES_MAX), st.floats(0, 3)), max_size=400))
def test_every_failure_is_counted_exactly_once(steps: list[tuple[int, float]]) -> None:
    floods = Floods(new_eid)
    now_s = 0.0
    counted = 0
    for place, pause_s in steps:
        now_s += pause_s
        counted += sum(event.count for event in floods.due(now_s))
        counted += floods.admit(failure(ip=f"host-{place % 7}"), now_s)
    counted += sum(event.count for event in floods.due(float("inf")))
    assert counted == len(steps)


def test_many_places_share_one_so_that_memory_is_bounded() -> None:
    floods = Floods(new_eid)
    sent = SOURCES_MAX + 500
    stored = sum(floods.admit(failure(ip=f"host-{number}"), 0.0) for number in range(sent))
    assert stored == SOURCES_MAX + FIRST
    assert sum(event.count for event in floods.due(WINDOW_S)) == sent - stored
