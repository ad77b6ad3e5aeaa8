from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.hub.membership.deaths import PAUSE_MAX_S, DeathWatch
from proxy.hub.membership.member import MemberState
from tests.proxy.hub.membership.rows import reading, row

BOUND_S = 75.0


def test_a_hub_is_dead_after_75_s_of_one_renewal() -> None:
    watch = DeathWatch()
    for second in range(0, 75, 2):
        assert watch.overdue(reading(float(second), row("b", 0.0))) == []
    (dead,) = watch.overdue(reading(75.0, row("b", 0.0), row("a", 75.0)))
    assert dead.member.boot == "b"


def test_a_hub_that_has_ended_is_not_judged() -> None:
    watch = DeathWatch()
    for second in range(0, 200, 2):
        ended = row("b", 0.0, state=MemberState.GONE), row("c", 0.0, state=MemberState.DEAD)
        assert watch.overdue(reading(float(second), *ended)) == []


def test_no_hub_is_dead_within_75_s_of_a_new_connection() -> None:
    """As after a start of the server, or a promotion."""
    watch = DeathWatch()
    found = [
        second
        for second in range(0, 200, 5)
        if watch.overdue(reading(float(second), row("b", 0.0), connection=1 + (second >= 60)))
    ]
    assert found[0] == 60 + 75


def test_a_hub_is_judged_by_its_own_settings() -> None:
    watch = DeathWatch()
    patient = row("b", 0.0, stale_streams_s=600.0)
    found = [second for second in range(0, 700, 5) if watch.overdue(reading(float(second), patient))]
    assert found[0] == 615


# Steps of one hub's view: the time since the last reading, whether the connection is new, and which of the
# others has renewed since.
steps = st.lists(st.tuples(st.floats(0.1, 90.0), st.booleans(), st.booleans(), st.booleans()), max_size=120)


@given(steps, st.floats(-100, 100))
def test_no_hub_is_dead_that_another_one_has_not_watched_for_75_s(
    history: list[tuple[float, bool, bool, bool]], clock_s: float
) -> None:
    """Neither a pause, nor another server, nor the database's clock makes a hub overdue."""
    watch, now_s, connection = DeathWatch(), 0.0, 1
    renewed = {"b": clock_s, "c": clock_s}
    # When this hub has first seen, without an interruption, the renewal that each of the others has.
    seen = dict.fromkeys(renewed, 0.0)
    first = True
    for after_s, reconnects, b_renews, c_renews in history:
        now_s += after_s
        connection += reconnects
        for boot, renews in (("b", b_renews), ("c", c_renews)):
            if renews:
                renewed[boot] = clock_s + now_s
            if first or renews or reconnects or after_s > PAUSE_MAX_S:
                seen[boot] = now_s
        first = False
        rows = [row(boot, at) for boot, at in renewed.items()]
        found = {each.member.boot for each in watch.overdue(reading(now_s, *rows, connection=connection))}
        assert found == {boot for boot, since_s in seen.items() if now_s - since_s >= BOUND_S}
