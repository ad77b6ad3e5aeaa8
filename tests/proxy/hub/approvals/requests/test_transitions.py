"""Random histories of requests at two hubs, on both engines, beside a model in memory."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from proxy.hub.approvals.request import Request, State
from proxy.hub.approvals.requests.table import RequestsTable
from proxy.hub.approvals.view import View
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.engines.errors import StoreError
from proxy.hub.store.entities import Snapshot
from tests.fakes.databases import run
from tests.fakes.hub_rows import add_hub
from tests.proxy.hub.approvals.requests.bench import TIMES, new_request, opened, populate, wait
from tests.proxy.hub.approvals.requests.model import Model

BOOTS = "boot-a", "boot-b"
AGENTS = "robot0", "robot1"
# Steps far longer than a history takes, and not near any of the limits.
TIMES_S = 4.0, 13.0, 250.0, 800.0, 1700.0, 4000.0
hubs = st.sampled_from(BOOTS)
# Of the requests there are; mostly one.
which = st.integers(0, 3)


def outcome(call: object) -> object:
    """What a call returns or raises, without its words."""
    assert callable(call)
    try:
        return call()
    except StoreError as error:
        return type(error)


class Histories(RuleBasedStateMachine):
    """The table at two hubs, and the model."""

    location: ClassVar[Location]
    snapshot: ClassVar[Snapshot]
    tables: ClassVar[dict[str, RequestsTable]]

    def __init__(self) -> None:
        super().__init__()
        run(self.location, "delete from requests")
        self.model = Model()

    def id_of(self, number: int) -> str:
        ids = [*self.model.rows]
        return ids[-1 - number] if number < len(ids) else "none"

    def same(self, real: object, model: object) -> None:
        if isinstance(real, Request) and isinstance(model, Request):
            assert facts(real) == facts(model)
        else:
            assert real == model

    @rule(hub=hubs, number=st.integers(0, 2), agent=st.sampled_from(AGENTS), large=st.booleans())
    def open(self, hub: str, number: int, agent: str, large: bool) -> None:
        new = new_request(self.snapshot, number, agent)
        new = attrs.evolve(new, view=attrs.evolve(new.view, too_large=large and number == 2))
        real = outcome(lambda: self.tables[hub].open(new, serves=""))
        request_id = real.id if isinstance(real, Request) else "refused"
        self.same(real, outcome(lambda: self.model.open(new, request_id)))

    @rule(hub=hubs, number=which, approve=st.booleans(), right=st.integers(0, 4))
    def decide(self, hub: str, number: int, approve: bool, right: int) -> None:
        request_id = self.id_of(number)
        row = self.model.rows.get(request_id)
        shown = row.new.shown if row is not None and right else "other"

        def decided(decide: object) -> object:
            assert callable(decide)
            return outcome(lambda: decide(request_id, approve=approve, by="ann", answer="so", shown=shown))

        self.same(decided(self.tables[hub].decide), decided(self.model.decide))

    @rule(hub=hubs, number=which)
    def use(self, hub: str, number: int) -> None:
        request_id = self.id_of(number)
        assert self.tables[hub].use(request_id, 0) == self.model.use(request_id, hub)

    @rule(hub=hubs, number=which)
    def give_back(self, hub: str, number: int) -> None:
        request_id = self.id_of(number)
        assert self.tables[hub].give_back(request_id) == self.model.give_back(request_id, hub)

    @rule(hub=hubs, number=which)
    def use_and_give_back(self, hub: str, number: int) -> None:
        self.use(hub, number)
        self.give_back(hub, number)

    @rule(hub=hubs, number=which)
    def spend(self, hub: str, number: int) -> None:
        request_id = self.id_of(number)
        self.tables[hub].spend(request_id)
        self.model.spend(request_id, hub)

    @rule(hub=hubs, number=which, state=st.sampled_from([State.STALE, State.CANCELLED]))
    def end(self, hub: str, number: int, state: State) -> None:
        request_id = self.id_of(number)
        ended = self.tables[hub].end(request_id, state, "why")
        assert ended == self.model.end(request_id, state, "why", hub)

    @rule(hub=hubs, number=which)
    def revoke(self, hub: str, number: int) -> None:
        request_id = self.id_of(number)
        real = outcome(lambda: self.tables[hub].revoke(request_id, by="bob"))
        self.same(real, outcome(lambda: self.model.revoke(request_id, "bob")))

    @rule(hub=hubs, dead=hubs)
    def die(self, hub: str, dead: str) -> None:
        if isinstance(self.location, Path):
            self.tables[hub].spend_of([dead])
        else:
            run(self.location, f"update hubs set state = 'dead' where boot = '{dead}'")
            self.tables[hub].spend_of([])
            run(self.location, f"update hubs set state = 'serving' where boot = '{dead}'")
        self.model.spend_of_dead(dead)

    @rule(seconds=st.sampled_from(TIMES_S))
    def wait(self, seconds: float) -> None:
        wait(self.location, seconds)
        self.model.wait(seconds)

    @rule(hub=hubs)
    def sweep(self, hub: str) -> None:
        self.tables[hub].sweep()

    @rule(hub=hubs, number=st.integers(0, 2), agent=st.sampled_from(AGENTS))
    def find(self, hub: str, number: int, agent: str) -> None:
        new = new_request(self.snapshot, number, agent)
        self.same(self.tables[hub].find(new.agent_id, new.plan), self.model.find(new.agent_id, new.plan))

    @invariant()
    def agree(self) -> None:
        found = self.tables["boot-a"].find_all(states=[], agent_id=None, cluster_id=None, offset=0, limit=500)
        assert {row.id: facts(row) for row in found} == {
            row.id: facts(row) for row in self.model.rows.values()
        }


def facts(request: Request) -> object:
    """A request without its view, times and number of transitions: a sweep is later than the model's."""
    known = {name: getattr(request, name) is not None for name in TIMES if name != "changed_at"}
    others = attrs.asdict(request, filter=attrs.filters.exclude("changes", "new", *known), recurse=False)
    return attrs.evolve(request.new, view=View()), others, known


def test_every_history_is_as_the_model_says(database: Location) -> None:
    Histories.location = database
    Histories.snapshot = populate(database, len(AGENTS))
    if not isinstance(database, Path):
        for boot in BOOTS:
            add_hub(database, boot)
    with ExitStack() as stack:
        Histories.tables = {boot: stack.enter_context(opened(database, boot)) for boot in BOOTS}
        run_state_machine_as_test(Histories, settings=settings(stateful_step_count=30))
