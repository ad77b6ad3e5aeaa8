from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from proxy.hub.approvals.request import LIFE_S, NewRequest, Request, State
from proxy.hub.approvals.requests.errors import TooManyRequestsError
from proxy.hub.approvals.requests.limits import (
    DENIALS_MAX,
    DENIALS_S,
    OPEN_MAX,
    OPENED_MAX,
    denied_until,
)
from proxy.hub.approvals.requests.table import RequestsTable
from proxy.hub.store.engines.engine import Location
from tests.fakes.databases import run
from tests.proxy.hub.approvals.requests.bench import new_request, opened, populate, wait


def refused(table: RequestsTable, new: NewRequest, why: str) -> None:
    """Neither a look before the preview lets the request pass, nor the transaction."""
    with pytest.raises(TooManyRequestsError, match=why) as before:
        table.check_limits(new.agent_id, new.policy, new.rule)
    with pytest.raises(TooManyRequestsError) as opening:
        table.open(new, serves="")
    assert str(before.value) == str(opening.value)


def opens(table: RequestsTable, new: NewRequest) -> Request:
    table.check_limits(new.agent_id, new.policy, new.rule)
    return table.open(new, serves="")


def deny(table: RequestsTable, request_id: str) -> None:
    table.decide(request_id, approve=False, by="ann", answer="no", shown="")


def test_an_agent_has_twenty_open_requests_at_all_hubs(database: Location) -> None:
    snapshot = populate(database, 2)
    with opened(database) as table, opened(database, "boot-b") as other:
        first = [table.open(new_request(snapshot, number), serves="") for number in range(OPEN_MAX)]
        refused(other, new_request(snapshot, 99), r"has 20 open requests for approval, and may have 20")
        # It joins one, and another agent opens its own.
        assert other.open(new_request(snapshot), serves="") == first[0]
        opens(other, new_request(snapshot, 99, "robot1"))
        assert table.end(first[0].id, State.CANCELLED, "the policy allows it")
        opens(other, new_request(snapshot, 99))


def test_hubs_that_open_at_once_keep_the_limit(database: Location) -> None:
    """All of them find room before their previews."""
    snapshot = populate(database)
    with ExitStack() as stack:
        hubs = [stack.enter_context(opened(database, f"boot-{number}")) for number in range(4)]
        for number in range(OPEN_MAX - 2):
            hubs[0].open(new_request(snapshot, number), serves="")
        for hub in hubs:
            hub.check_limits(new_request(snapshot).agent_id, "shop", "risky")

        def opens_another(number: int) -> bool:
            try:
                hubs[number].open(new_request(snapshot, OPEN_MAX + number), serves="")
            except TooManyRequestsError:
                return False
            return True

        with ThreadPoolExecutor(len(hubs)) as pool:
            assert sum(pool.map(opens_another, range(len(hubs)))) == 2


def test_requests_that_no_longer_count_are_not_open_also_before_a_sweep(database: Location) -> None:
    """As while the hub could not write, or in a database that was restored."""
    snapshot = populate(database, 2)
    with opened(database) as table:
        for number in range(OPEN_MAX):
            for robot in ("robot0", "robot1"):
                request = table.open(new_request(snapshot, number, robot), serves="")
                if number % 2:
                    table.decide(request.id, approve=True, by="ann", answer="", shown=request.new.shown)
        refused(table, new_request(snapshot, 99), "has 20 open requests")
        restored = f"where agent_id = '{snapshot.agents_by_name['robot1'].id}'"
        run(database, f"update requests set database = database + 1 {restored}")
        opens(table, new_request(snapshot, 99, "robot1"))
        wait(database, LIFE_S)
        opens(table, new_request(snapshot, 99))


def test_ended_requests_of_an_agent_are_not_read_to_open_one(tmp_path: Path) -> None:
    """An agent may have 130,000 of them within the 90 days that rows are kept."""
    database = tmp_path / "hub.db"
    snapshot = populate(database)
    plans: list[str] = []

    def explain(connection: sa.Connection, _: object, statement: str, parameters: Any, *rest: object) -> None:
        if statement.startswith("SELECT") and "FROM requests" in statement:
            found = connection.connection.cursor().execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.append(str(found.fetchall()))

    with opened(database) as table:
        new = new_request(snapshot)
        sa.event.listen(sa.Engine, "before_cursor_execute", explain)
        try:
            table.check_limits(new.agent_id, new.policy, new.rule)
            table.open(new, serves="")
        finally:
            sa.event.remove(sa.Engine, "before_cursor_execute", explain)
    assert len(plans) > 6
    assert [plan for plan in plans if "(agent_id=?)" in plan or "SCAN" in plan] == []


def test_an_agent_opens_sixty_requests_an_hour(database: Location) -> None:
    snapshot = populate(database)
    with opened(database) as table:
        for number in range(OPENED_MAX):
            request = table.open(new_request(snapshot, number), serves="")
            assert table.end(request.id, State.STALE, "")
            if number == 0:
                wait(database, 600)
        refused(table, new_request(snapshot, 99), r"60 approvals within an hour.* in 50 minutes$")
        wait(database, 3000)
        opens(table, new_request(snapshot, 99))
        refused(table, new_request(snapshot, 100), r"in 10 minutes$")


def test_three_denials_by_a_rule_deny_what_it_asks_for_ten_minutes(database: Location) -> None:
    snapshot = populate(database, 2)
    with opened(database) as table:
        asked = [table.open(new_request(snapshot, number), serves="") for number in range(DENIALS_MAX)]
        for request in asked[:-1]:
            deny(table, request.id)
        # Another rule's, and another agent's, do not count.
        for other in (new_request(snapshot, 7, rule="other"), new_request(snapshot, 7, "robot1")):
            deny(table, table.open(other, serves="").id)
        wait(database, 500)
        table.open(new_request(snapshot, 8), serves="")
        deny(table, asked[-1].id)
        why = r"^3 calls of this agent by shop/risky were denied within 10 minutes: for 10 minutes, "
        refused(table, new_request(snapshot, 9), why)
        opens(table, new_request(snapshot, 9, rule="other"))
        # Of another policy, whose rule has the same id.
        opens(table, new_request(snapshot, 11, policy="elsewhere"))
        opens(table, new_request(snapshot, 9, "robot1"))
        wait(database, 590)
        refused(table, new_request(snapshot, 10), r": for 1 minute, ")
        wait(database, 20)
        opens(table, new_request(snapshot, 10))


@given(st.lists(st.floats(0, 5000), max_size=6))
def test_a_rule_denies_for_ten_minutes_after_the_last_of_three_near_denials(times: list[float]) -> None:
    newest_first = sorted(times, reverse=True)[:DENIALS_MAX]
    near = [at for at in times if newest_first and at >= newest_first[0] - DENIALS_S]
    expected = newest_first[0] + DENIALS_S if len(near) >= DENIALS_MAX else 0.0
    assert denied_until(newest_first) == expected
