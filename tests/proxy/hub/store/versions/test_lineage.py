"""Whether a hub notices that its database has lost changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import count

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.hub.store.engines.engine import Location
from proxy.hub.store.store import Store
from proxy.hub.store.versions.lineage import Lineage, Loss
from proxy.hub.store.versions.version import Version, is_kept
from tests.fakes.databases import lose, run

# The database keeps 10,000.
KEPT = 10


@attrs.define
class Database:
    """The states that a database went through, each with the history that it keeps."""

    states: list[list[Version]] = attrs.Factory(lambda: [[Version(1, "first")]])
    _nonces: Iterator[str] = attrs.Factory(lambda: map(str, count()))

    @property
    def history(self) -> list[Version]:
        return self.states[-1]

    def change(self) -> None:
        new = Version(self.history[-1].number + 1, next(self._nonces))
        self.states.append([*self.history, new][-KEPT:])

    def fail_over(self, lost: int) -> None:
        """Continue at a standby that has not received the last changes."""
        self.states = self.states[: max(1, len(self.states) - lost)]

    def keeps(self, applied: Version) -> bool:
        nonces = {each.number: each.nonce for each in self.history}
        return is_kept(applied, self.history[0].number, nonces.get(applied.number))

    def accept_loss(self, applied: Version) -> None:
        number = max(self.history[-1].number, applied.number) + 1
        self.states.append([Version(number, next(self._nonces))])


STEPS = st.lists(st.one_of(st.just("change"), st.just("accept"), st.integers(1, 4)), max_size=60)


@given(STEPS)
def test_a_loss_is_seen_until_it_is_accepted_and_nothing_else_is_one(steps: list[str | int]) -> None:
    database = Database()
    hub = Lineage(None)
    hub.follow(database, database.history[-1])
    for step in steps:
        applied = hub.applied
        assert applied is not None
        accepted = False
        match step:
            case "change":
                database.change()
            case int():
                database.fail_over(step)
            case _ if hub.loss is not None:
                database.accept_loss(applied)
                accepted = True
        hub.follow(database, database.history[-1])
        known = applied in (state[-1] for state in database.states)
        if hub.loss is not None:
            assert not known
            assert not accepted
            assert hub.applied == applied
        else:
            forgotten = applied.number < database.history[0].number
            assert known or accepted or forgotten
            assert hub.applied == database.history[-1]


@given(st.integers(1, 5), st.integers(0, 8))
def test_a_loss_is_seen_whether_or_not_its_numbers_were_given_again(lost: int, changes: int) -> None:
    database, hub = Database(), Lineage(None)
    for _ in range(5):
        database.change()
    hub.follow(database, database.history[-1])
    database.fail_over(lost)
    for _ in range(changes):
        database.change()
    found = database.history[-1]
    hub.follow(database, found)
    assert hub.loss == Loss(6, found.number)
    hub.accepts = True
    hub.follow(database, found)
    assert hub.loss is not None
    hub.follow(database, database.history[-1])
    assert hub.loss is None
    assert database.history[-1].number > 6


@pytest.fixture
def store(database: Location) -> Iterator[Store]:
    with closing(Store(database, org="main", clock=lambda: 1000.0)) as store:
        yield store


def test_the_database_of_each_engine_judges_alike(store: Store, database: Location) -> None:
    store.add_team("kept")
    before = store.version()
    store.add_team("lost")
    applied = store.version()
    assert store.keeps(before)
    assert store.keeps(applied)
    lose(database, back_to=before)
    assert store.keeps(before)
    assert not store.keeps(applied)
    for name in ("other", "third"):
        store.add_team(name)
        assert not store.keeps(applied)
    assert store.version().number == applied.number + 1
    store.accept_loss(applied)
    accepted = store.version()
    assert accepted.number == applied.number + 2
    assert store.keeps(applied)
    assert store.keeps(before)
    assert run(database, "select version, nonce from versions") == [(accepted.number, accepted.nonce)]
    # A snapshot of before that reads everything.
    store.add_team("last")
    assert store.keeps(accepted)
    assert not store.keeps(Version(accepted.number, "another"))


def test_an_accepted_history_is_above_what_was_applied(store: Store, database: Location) -> None:
    before = store.version()
    for number in range(5):
        store.add_team(f"team-{number}")
    applied = store.version()
    lose(database, back_to=before)
    store.accept_loss(applied)
    assert store.version().number == applied.number + 1
    assert store.keeps(applied)


def test_versions_that_are_no_longer_kept_are_not_lost(store: Store, database: Location) -> None:
    first = store.version()
    run(database, "update directory set version = version + 10000")
    store.add_team("sre")
    assert store.keeps(first)
