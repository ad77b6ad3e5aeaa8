"""What the upkeep deletes, and how much of the table a statement of it changes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from proxy.hub.approvals.request import LIFE_S
from proxy.hub.approvals.requests import moves
from proxy.hub.approvals.requests import table as requests_table
from proxy.hub.approvals.requests.table import ROW_KEPT_S, UNDECIDED_KEPT_S, RequestsTable
from proxy.hub.approvals.view import View
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.engines.postgres_address import PostgresAddress
from tests.fakes.databases import run
from tests.proxy.hub.approvals.requests.bench import new_request, opened, populate, wait

BATCH = 5


def test_a_flood_of_requests_keeps_the_views_of_a_day(database: Location) -> None:
    """An agent opens requests for eight days, and no person decides."""
    every_s, count, size = 12 * 3600.0, 16, 1000
    snapshot = populate(database)
    view = View(body="x" * size)
    kept = []
    with opened(database) as table:
        for number in range(count):
            table.open(new_request(snapshot, number, view=view), serves="")
            wait(database, LIFE_S)
            table.sweep()
            wait(database, every_s - LIFE_S)
            table.tidy()
            kept += run(database, "select sum(length(view)), count(*) from requests")
    assert kept[-1][1] == count
    # Those that have ended within a day. It would be those of a week, which are 14.
    most = UNDECIDED_KEPT_S // every_s
    assert most * size < max(int(str(length)) for length, _ in kept) < (most + 1) * size


def overdue(database: Location, monkeypatch: pytest.MonkeyPatch, table: RequestsTable) -> None:
    """Open two batches and one request, and let them expire."""
    for module, limit in (
        (moves, "BATCH_MAX"),
        (requests_table, "BATCH_MAX"),
        (requests_table, "VIEWS_MAX"),
    ):
        monkeypatch.setattr(module, limit, BATCH)
    snapshot = populate(database)
    for number in range(2 * BATCH + 1):
        table.open(new_request(snapshot, number), serves="")
    wait(database, LIFE_S)


def test_a_sweep_ends_a_batch_of_requests(database: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    with opened(database) as table:
        overdue(database, monkeypatch, table)
        with nested_loops():
            for _ in range(3):
                table.committed.clear()
                table.sweep()
                counts.append(len(table.committed))
    assert counts == [BATCH, BATCH, 1]


def test_a_statement_that_deletes_changes_a_batch_of_requests(
    database: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(database) as table:
        overdue(database, monkeypatch, table)
        run(database, "update requests set state = 'expired', ended_at = expires_at")
        wait(database, ROW_KEPT_S)
        with nested_loops() as changed:
            table.tidy()
    # The views, and the rows.
    assert changed == [BATCH, BATCH, 1] * 2
    assert run(database, "select count(*) from requests") == [(0,)]


def test_hubs_that_tidy_at_once_end_and_delete_each_request_once(
    database: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        hubs = [stack.enter_context(opened(database, f"boot-{number}")) for number in range(4)]
        overdue(database, monkeypatch, hubs[0])
        ids = {moved.request.id for moved in hubs[0].committed}
        hubs[0].committed.clear()
        with ThreadPoolExecutor(len(hubs)) as pool:
            for _ in range(3):
                list(pool.map(RequestsTable.sweep, hubs))
            ended = [moved.request.id for hub in hubs for moved in hub.committed]
            assert (len(ended), {*ended}) == (len(ids), ids)
            wait(database, ROW_KEPT_S + LIFE_S)
            list(pool.map(RequestsTable.tidy, hubs))
    assert run(database, "select count(*) from requests") == [(0,)]


def test_a_request_that_another_hub_changes_is_left_to_it(
    in_postgres: PostgresAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(in_postgres) as table:
        overdue(in_postgres, monkeypatch, table)
        table.committed.clear()
        engine = sa.create_engine(sa.make_url(in_postgres.url).set(drivername="postgresql+psycopg"))
        with engine.begin() as other:
            [held] = other.execute(sa.text("select id from requests limit 1 for update")).one()
            for _ in range(3):
                # It waits for none.
                table.sweep()
        engine.dispose()
        assert held not in {moved.request.id for moved in table.committed}
        assert len(table.committed) == 2 * BATCH
        table.sweep()
        assert table.committed[-1].request.id == held


@contextmanager
def nested_loops() -> Iterator[list[int]]:
    """Have PostgreSQL join by nested loops, and collect how many requests each statement changes.

    Its planner chooses them by the table's statistics. A subquery of IN then runs once for each row.
    """
    changed: list[int] = []

    def choose(connection: sa.Connection) -> None:
        if connection.dialect.name == "postgresql":
            for how in ("hashjoin", "mergejoin", "hashagg", "sort", "material", "memoize"):
                connection.exec_driver_sql(f"SET LOCAL enable_{how} = off")

    def note(_: sa.Connection, cursor: Any, statement: str, *rest: object) -> None:
        if statement.startswith(("UPDATE requests", "DELETE FROM requests")):
            changed.append(cursor.rowcount)

    sa.event.listen(sa.Engine, "begin", choose)
    sa.event.listen(sa.Engine, "after_cursor_execute", note)
    try:
        yield changed
    finally:
        sa.event.remove(sa.Engine, "begin", choose)
        sa.event.remove(sa.Engine, "after_cursor_execute", note)
