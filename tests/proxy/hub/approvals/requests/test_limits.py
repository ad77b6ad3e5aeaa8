from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.hub.approvals.request import State
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
from tests.proxy.hub.approvals.requests.bench import new_request, opened, populate, wait


def deny(table: RequestsTable, request_id: str) -> None:
    table.decide(request_id, approve=False, by="ann", answer="no", shown="")


def test_an_agent_has_twenty_open_requests_at_all_hubs(database: Location) -> None:
    snapshot = populate(database, 2)
    with opened(database) as table, opened(database, "boot-b") as other:
        first = [table.open(new_request(snapshot, number), serves="") for number in range(OPEN_MAX)]
        with pytest.raises(TooManyRequestsError, match=r"has 20 open requests for approval, and may have 20"):
            other.open(new_request(snapshot, 99), serves="")
        # It joins one, and another agent opens its own.
        assert other.open(new_request(snapshot), serves="") == first[0]
        other.open(new_request(snapshot, 99, "robot1"), serves="")
        assert table.end(first[0].id, State.CANCELLED, "the policy allows it")
        other.open(new_request(snapshot, 99), serves="")


def test_an_agent_opens_sixty_requests_an_hour(database: Location) -> None:
    snapshot = populate(database)
    with opened(database) as table:
        for number in range(OPENED_MAX):
            request = table.open(new_request(snapshot, number), serves="")
            assert table.end(request.id, State.STALE, "")
            if number == 0:
                wait(database, 600)
        with pytest.raises(TooManyRequestsError, match=r"60 approvals within an hour.* in 50 minutes$"):
            table.open(new_request(snapshot, 99), serves="")
        wait(database, 3000)
        table.open(new_request(snapshot, 99), serves="")
        with pytest.raises(TooManyRequestsError, match=r"in 10 minutes$"):
            table.open(new_request(snapshot, 100), serves="")


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
        refused = r"^3 calls of this agent by shop/risky were denied within 10 minutes: for 10 minutes, "
        with pytest.raises(TooManyRequestsError, match=refused):
            table.open(new_request(snapshot, 9), serves="")
        table.open(new_request(snapshot, 9, rule="other"), serves="")
        # Of another policy, whose rule has the same id.
        table.open(new_request(snapshot, 11, policy="elsewhere"), serves="")
        table.open(new_request(snapshot, 9, "robot1"), serves="")
        wait(database, 590)
        with pytest.raises(TooManyRequestsError, match=r": for 1 minute, "):
            table.open(new_request(snapshot, 10), serves="")
        wait(database, 20)
        table.open(new_request(snapshot, 10), serves="")


@given(st.lists(st.floats(0, 5000), max_size=6))
def test_a_rule_denies_for_ten_minutes_after_the_last_of_three_near_denials(times: list[float]) -> None:
    newest_first = sorted(times, reverse=True)[:DENIALS_MAX]
    near = [at for at in times if newest_first and at >= newest_first[0] - DENIALS_S]
    expected = newest_first[0] + DENIALS_S if len(near) >= DENIALS_MAX else 0.0
    assert denied_until(newest_first) == expected
