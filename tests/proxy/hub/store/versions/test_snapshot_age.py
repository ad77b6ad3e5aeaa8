from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.hub.store.versions.snapshot_age import LATE_S, SnapshotAge, Stage

times = st.floats(0, 1e6)
ages = st.floats(0, 200)


@given(times, st.lists(times), ages, st.floats(2, 60), st.floats(0, 60))
def test_the_age_counts_from_the_latest_statement_that_was_applied(
    begin_s: float, sent: list[float], later_s: float, stale_s: float, more_s: float
) -> None:
    age = SnapshotAge(begin_s, stale_s, stale_s + more_s)
    for sent_s in sent:
        age.confirm(sent_s)
    latest_s = max([begin_s, *sent])
    now_s = latest_s + later_s
    assert age.age_s(now_s) == now_s - latest_s
    # What admission compares, and what the endpoints ask.
    assert (now_s < age.serves_until_s) is (age.refusal(now_s) == "")
    assert age.serves_until_s == latest_s + stale_s


@given(ages, ages, st.floats(2, 60), st.floats(0, 60))
def test_an_older_snapshot_never_allows_more(
    one_s: float, other_s: float, stale_s: float, more_s: float
) -> None:
    age = SnapshotAge(0.0, stale_s, stale_s + more_s)
    younger, older = sorted((one_s, other_s))
    stages = list(Stage)
    assert stages.index(age.stage(younger)) <= stages.index(age.stage(older))
    assert (age.refusal(older) == "") is (age.stage(older) in (Stage.CONFIRMED, Stage.LATE))


def test_each_stage_begins_at_its_age() -> None:
    age = SnapshotAge(100.0, 10, 60)
    begins = {100.0: Stage.CONFIRMED, 105.0: Stage.LATE, 110.0: Stage.STALE, 160.0: Stage.EXPIRED}
    for begin_s, stage in begins.items():
        assert age.stage(begin_s) is stage
        if begin_s > 100.0:
            assert age.stage(math.nextafter(begin_s, 0)) is not stage
    assert age.late_s == LATE_S


def test_a_short_bound_refuses_before_it_is_late() -> None:
    age = SnapshotAge(0.0, 2, 3)
    assert age.late_s == 2
    assert [age.stage(at_s) for at_s in (1.9, 2.0, 3.0)] == [Stage.CONFIRMED, Stage.STALE, Stage.EXPIRED]


def test_the_refusal_names_the_age_and_the_setting() -> None:
    assert SnapshotAge(0.0, 10, 60).refusal(14.2) == (
        "this hub cannot confirm its state with the database since 14 s (database.stale_s is 10)"
    )


@pytest.mark.parametrize("confirmed", [True, False])
def test_another_reason_refuses_at_any_age_until_it_is_lifted(confirmed: bool) -> None:
    age = SnapshotAge(0.0, 10, 60)
    age.withhold("the database has lost changes")
    if confirmed:
        age.confirm(1.0)
    assert age.refusal(1.0) == "the database has lost changes"
    assert age.serves_until_s == -math.inf
    # It ends nothing that runs.
    assert age.stage(1.0) is Stage.CONFIRMED
    age.withhold("")
    assert age.refusal(1.0) == ""
