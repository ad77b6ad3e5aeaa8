from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.hub.store.versions.applied import Applied
from proxy.hub.store.versions.snapshot_age import SnapshotAge
from proxy.hub.store.versions.version import Version

FIRST, SECOND, OTHER = Version(1, "a"), Version(2, "b"), Version(2, "c")


def applied() -> Applied:
    return Applied(SnapshotAge(0.0), FIRST)


def poll(state: Applied, version: Version, sent_s: float, *, keeps: bool = True) -> None:
    state.find(version, sent_s, lambda _: keeps)
    state.apply(state.found)


def test_without_a_lease_a_poll_confirms() -> None:
    state = applied()
    poll(state, SECOND, 5.0)
    assert (state.version, state.age.confirmed_s) == (SECOND, 5.0)


def test_with_a_lease_a_renewal_confirms_the_version_that_is_applied() -> None:
    state = applied()
    assert not state.renew(FIRST, 2.0)
    assert state.age.confirmed_s == 2.0
    poll(state, FIRST, 7.0)
    assert state.age.confirmed_s == 2.0


def test_a_renewal_that_has_read_a_new_version_confirms_once_that_is_applied() -> None:
    state = applied()
    assert state.renew(SECOND, 2.0)
    assert state.age.confirmed_s == 0.0
    state.find(SECOND, 2.5, lambda _: True)
    # The listeners are not called yet.
    assert (state.version, state.age.confirmed_s) == (FIRST, 0.0)
    state.apply(state.found)
    assert (state.version, state.age.confirmed_s) == (SECOND, 2.0)


def test_a_change_after_the_renewal_takes_its_confirmation_along() -> None:
    state = applied()
    state.renew(FIRST, 2.0)
    state.renew(SECOND, 4.0)
    poll(state, Version(3, "d"), 4.1)
    assert state.age.confirmed_s == 4.0


def test_a_server_with_another_history_confirms_nothing() -> None:
    """The poll reads from a primary that was left behind, and the renewal from the new one."""
    state = applied()
    state.renew(FIRST, 2.0)
    state.renew(SECOND, 4.0)
    poll(state, OTHER, 4.1)
    poll(state, Version(3, "d"), 4.2, keeps=False)
    poll(state, FIRST, 4.3)
    assert state.age.confirmed_s == 2.0


events = st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.floats(0.01, 5.0)), max_size=40)


@given(events)
def test_a_state_is_never_confirmed_after_the_last_renewal_that_it_covers(
    history: list[tuple[bool, int, float]],
) -> None:
    """Changes are committed, renewed and polled in any order; both read what is committed then."""
    state, committed, now_s = applied(), 1, 0.0
    renewals: list[tuple[int, float]] = []
    for renews, changes, after_s in history:
        now_s += after_s
        committed += changes
        version = Version(committed, str(committed))
        if renews:
            state.renew(version, now_s)
            renewals.append((committed, now_s))
        else:
            poll(state, version, now_s)
        if renewals:
            covered = [sent_s for number, sent_s in renewals if number <= state.version.number]
            assert state.age.confirmed_s <= max(covered, default=now_s)
            if not renews:
                assert state.age.confirmed_s == renewals[-1][1]
