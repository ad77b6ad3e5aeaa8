"""How the table of requests is read: what a reading has, and by which index."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from proxy.hub.approvals.request import State
from proxy.hub.store.engines.engine import Location
from tests.proxy.hub.approvals.requests.bench import new_request, opened, plan, populate, wait

# A scan by one of these ends early, or has the open requests alone.
BOUNDED = "uq_requests_open", "ix_requests_created_at"


@contextmanager
def plans() -> Iterator[list[str]]:
    """Collect what the database does with each statement about requests."""
    made: list[str] = []

    def explain(connection: sa.Connection, _: object, statement: str, parameters: Any, *rest: object) -> None:
        if "requests" not in statement or not statement.startswith(("SELECT", "UPDATE", "DELETE")):
            return
        if connection.dialect.name == "sqlite":
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        else:
            # The table is small. Only where there is no index, it is scanned nevertheless.
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            rows = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
        made.extend(f"{row[-1]} for {statement}" for row in rows)

    sa.event.listen(sa.Engine, "before_cursor_execute", explain)
    try:
        yield made
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", explain)


def test_no_statement_scans_the_requests_of_three_months(database: Location) -> None:
    snapshot = populate(database)
    with opened(database, webhooks=("chat",)) as table, plans() as made:
        request = table.open(new_request(snapshot), serves="")
        table.decide(request.id, approve=True, by="ann", answer="", shown=request.new.shown)
        table.find(request.new.agent_id, plan(1))
        table.check_limits(request.new.agent_id, "shop", "risky")
        table.look(60)
        table.every_open()
        table.find_all(states=[State.PENDING], agent_id=None, cluster_id=None, offset=0, limit=10)
        table.find_all(states=[], agent_id=None, cluster_id=None, offset=0, limit=10)
        table.sweep()
        table.spend_of(["boot-b"])
        table.cancel_open()
        table.tidy()
        table.claim("chat", 30)
    scans = [each for each in made if re.search(r"\bSCAN requests|Seq Scan on requests", each)]
    assert not [each for each in scans if not any(name in each.split(" for ")[0] for name in BOUNDED)]


def test_a_reading_has_what_changed_while_the_machine_was_suspended(database: Location) -> None:
    snapshot = populate(database)
    with opened(database) as table:
        request = table.open(new_request(snapshot), serves="")
        _, read_at = table.look(60)
        table.revoke(request.id, by="ann")
        wait(database, 200)
        assert table.look(60)[0] == []
        assert [each.state for each in table.look(60, read_at - 200)[0]] == [State.REVOKED]


def test_a_reading_has_what_changed_since_the_clock_was_set_back(database: Location) -> None:
    snapshot = populate(database)
    with opened(database) as table:
        request = table.open(new_request(snapshot), serves="")
        _, read_at = table.look(60)
        table.revoke(request.id, by="ann")
        assert [each.state for each in table.look(60, read_at + 3600)[0]] == [State.REVOKED]
