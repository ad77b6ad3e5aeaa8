from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from audit.errors import AuditUnavailable, NoTrail
from audit.query import Query
from audit.reader import PAGE_ROWS_MAX, AuditReader, StoredEvent
from audit.record import Kind, utc
from audit.store import AuditStore
from tests.audit.events import NOW_S, call
from tests.audit.trails import Trail, read


def test_where_no_file_is_there_is_no_trail(tmp_path: Path) -> None:
    with pytest.raises(NoTrail, match=r"there is no audit trail at .*audit\.db"):
        AuditReader(tmp_path / "audit.db")


def numbers(rows: Iterable[StoredEvent]) -> list[int]:
    """The numbers of events, as the trail prints them."""
    return [int(row.number) for row in rows]


def test_what_is_asked_for_is_found(trail: Trail) -> None:
    with closing(trail.open()) as store:
        store.append(
            [call(agent="a", cluster="x", at_s=NOW_S), call(agent="b", cluster="y", at_s=NOW_S + 10)]
        )
    with closing(trail.reader()) as reader:
        assert numbers(reader.query(Query(agent="a"))) == [1]
        assert numbers(reader.query(Query(cluster="y"))) == [2]
        assert numbers(reader.query(Query(agent="a", cluster="y"))) == []
        assert numbers(reader.query(Query(since=utc(NOW_S + 10)))) == [2]
        assert numbers(reader.query(Query(until=utc(NOW_S + 10)))) == [1]
        first, second = reader.query()
        assert reader.query(after_seq=first.seq) == [second]
        assert reader.query(last_seq=first.seq) == [first]
        assert reader.query(limit=1) == [first]
        assert reader.began() == utc(NOW_S)
        assert reader.holds(Query(agent="a"))
        assert not reader.holds(Query(agent="c"))


def test_what_is_of_one_of_several_kinds_is_found(trail: Trail) -> None:
    with closing(trail.open()) as store:
        store.append([replace(call(), kind=kind) for kind in (Kind.CALL, Kind.ADMIN, Kind.HUB_STARTED)])
    with closing(trail.reader()) as reader:
        assert numbers(reader.query(Query(kinds=(Kind.ADMIN,)))) == [2]
        assert numbers(reader.query(Query(kinds=(Kind.HUB_STARTED, Kind.CALL)))) == [1, 3]


def test_a_span_is_what_is_wanted_and_of_that_the_newest(trail: Trail) -> None:
    def between(since_s: int, until_s: int) -> Query:
        return Query(since=utc(NOW_S + since_s), until=utc(NOW_S + until_s))

    with closing(trail.open()) as store:
        with closing(trail.reader()) as reader:
            assert (reader.last(), reader.span(), reader.span(newest=2)) == (0, (1, 0), (1, 0))
            assert (reader.began(), reader.holds(Query(agent="a"))) == (None, False)
        store.append([call(agent="ab"[second % 2], at_s=NOW_S + second) for second in range(10)])
    with closing(trail.reader()) as reader:
        # In a file, positions are numbers.
        at = [0, *(row.seq for row in reader.query())]
        assert reader.last() == at[10]
        assert numbers(reader.events(*reader.span())) == [*range(1, 11)]
        assert reader.span(between(2, 5)) == (at[3], at[5])
        assert reader.span(between(20, 30)) == (at[10] + 1, at[10])
        starts = [reader.span(newest=newest)[0] for newest in (0, 1, 9)]
        assert starts == [at[10] + 1, at[9] + 1, at[1] + 1]
        for newest in (10, 11):
            assert numbers(reader.events(*reader.span(newest=newest))) == [*range(1, 11)]
        assert numbers(reader.events(*reader.span(between(2, 5), 1))) == [5]
        first, last = reader.span(Query(agent="a"), 2)
        assert numbers(reader.events(first, last, Query(agent="a"))) == [7, 9]
        assert reader.beyond(Query(agent="a"), 2) == at[5]
        assert numbers(reader.events(*reader.span(Query(agent="nobody"), 2))) == [*range(1, 11)]


def test_a_file_that_nothing_was_written_to_has_no_last_event(tmp_path: Path) -> None:
    empty = tmp_path / "empty.db"
    empty.touch()
    with closing(AuditReader(empty)) as reader:
        assert (reader.last(), reader.span(Query(since=utc(NOW_S)), 1)) == (0, (1, 0))


def test_a_clock_that_went_back_hides_no_event(trail: Trail) -> None:
    with closing(trail.open()) as store:
        store.append([call(at_s=NOW_S + second) for second in (5, 0, 6, 1, 7)])
    query = Query(since=utc(NOW_S + 5), until=utc(NOW_S + 7))
    with closing(trail.reader()) as reader:
        assert numbers(reader.events(*reader.span(query), query)) == [1, 3]


def test_a_span_of_several_pages_is_read_to_its_end(trail: Trail) -> None:
    with closing(trail.open()) as store:
        store.append([call() for _ in range(PAGE_ROWS_MAX + 10)])
    with closing(trail.reader()) as reader:
        found = [*reader.events(*reader.span(newest=PAGE_ROWS_MAX + 5))]
        assert numbers(found) == [*range(6, PAGE_ROWS_MAX + 11)]
        assert [*reader.events(found[3].seq, found[5].seq)] == found[3:6]


def test_a_span_is_found_by_numbers_and_without_sorting(store: AuditStore, path: Path) -> None:
    asked: list[tuple[str, object]] = []
    with closing(AuditReader(path)) as reader:
        store.append([call()])
        sa.event.listen(
            reader._engine, "before_cursor_execute", lambda *context: asked.append((context[2], context[3]))
        )
        reader.span(Query(since=utc(NOW_S), until=utc(NOW_S + 1), kinds=(Kind.CALL,)), 1)
    with closing(sqlite3.connect(path)) as file:
        plans = [
            [row[3] for row in file.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
            for statement, values in asked
            if statement.startswith("SELECT")
        ]
    steps = [step for plan in plans for step in plan]
    assert [step for step in steps if step.startswith("SEARCH events")]
    assert not [step for step in steps if step.startswith("SCAN events") or "TEMP" in step]


def test_a_page_is_bounded(trail: Trail) -> None:
    with closing(trail.open()) as store:
        store.append([call() for _ in range(PAGE_ROWS_MAX + 1)])
    with closing(trail.reader()) as reader:
        page = reader.query(limit=10**9)
        assert len(page) == PAGE_ROWS_MAX
        assert numbers(reader.query(after_seq=page[-1].seq)) == [PAGE_ROWS_MAX + 1]


# A value that is not UTF-8, and a name.
@pytest.mark.parametrize("body", [b"{", b'"note":"\xff"}', b'{"note":"\xff"}', b'{"\xff":1}'])
@pytest.mark.parametrize("common", ["common", "NULL"])
def test_an_event_that_is_no_json_is_told(store: AuditStore, path: Path, body: bytes, common: str) -> None:
    store.append([call()])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TRIGGER events_never_update")
        connection.execute(f"UPDATE events SET body = ?, common = {common}", [body])
        connection.commit()
    told = r"audit\.db is damaged: event 1 is not JSON .*; stop the hub, move the file and its -wal away"
    with pytest.raises(AuditUnavailable, match=told):
        read(path)
    with pytest.raises(AuditUnavailable, match=told):
        store.close_unknown("second", utc(NOW_S))


@pytest.mark.parametrize(
    "spoilt",
    [
        "events SET body = '{}'",
        "events SET body = '{}', common = NULL",
        "events SET body = 1",
        "events SET body = 1, common = NULL",
        "events SET ts_us = 'soon'",
        f"events SET ts_us = {2**62}",
        "common_parts SET body = 1.5",
        "events SET eid = CAST(x'ff' AS TEXT)",
    ],
)
def test_a_value_of_another_type_is_told(store: AuditStore, path: Path, spoilt: str) -> None:
    store.append([call()])
    with closing(sqlite3.connect(path)) as connection:
        for table in ("events", "common_parts"):
            connection.execute(f"DROP TRIGGER {table}_never_update")
        connection.execute(f"UPDATE {spoilt}")
        connection.commit()
    told = r"audit\.db is damaged: .*; stop the hub, move the file and its -wal away"
    with pytest.raises(AuditUnavailable, match=told):
        read(path)
    with pytest.raises(AuditUnavailable, match=told):
        store.close_unknown("second", utc(NOW_S))


def test_a_reader_cannot_write(store: AuditStore, path: Path) -> None:
    reader = AuditReader(path)
    with pytest.raises(Exception, match="readonly"), reader._engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM open_intents")
    reader.close()


def test_since_is_exact_to_the_microsecond(trail: Trail) -> None:
    event = call(at_s=NOW_S + 0.000123)
    with closing(trail.open()) as store:
        store.append([event])
    with closing(trail.reader()) as reader:
        assert len(reader.query(Query(since=event.ts))) == 1
        assert reader.query(Query(since=event.ts + timedelta(microseconds=1))) == []
