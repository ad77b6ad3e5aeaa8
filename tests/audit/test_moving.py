"""A trail that is copied from its file into PostgreSQL."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from audit.display import json_line
from audit.errors import AuditUnavailable
from audit.file import untouched
from audit.postgres import moving
from audit.postgres.moving import CopiedTrail, MovableTrail, TrailSum, count_events, is_movable
from audit.postgres.store import PostgresStore
from audit.query import Query
from audit.record import Event, Response
from audit.store import AuditStore
from tests.audit.events import HOSTILE, NOW_S, call, failure
from tests.audit.trails import FileTrail, PostgresTrail, append_whole

NOW_US = int(NOW_S * 1_000_000)


@pytest.fixture
def connection(postgres_trail: PostgresTrail) -> Iterator[sa.Connection]:
    """A transaction in PostgreSQL."""
    url = sa.make_url(postgres_trail.url).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(url, poolclass=sa.NullPool, use_native_hstore=False)
    with engine.connect() as connection:
        yield connection


def ignore(done: int) -> None:
    """Show no progress."""


def copy(path: Path, connection: sa.Connection) -> TrailSum:
    """Copy a trail, and return the sum of the file."""
    with closing(MovableTrail(path)) as trail:
        trail.copy_to(connection, NOW_US, ignore)
        return trail.sum_up(ignore)


def lines(trail: FileTrail | PostgresTrail) -> list[str]:
    """The events as `hawse audit list --json` prints them."""
    with closing(trail.reader()) as reader:
        return [json_line(stored) for stored in reader.events(1, reader.last())]


def completed(intent: Event) -> Event:
    return intent.completed(intent.ts, resp=Response(200))


@contextmanager
def changed(path: Path) -> Iterator[sqlite3.Connection]:
    """Change a file behind its triggers."""
    with closing(sqlite3.connect(path)) as raw, raw:
        for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            raw.execute(f"DROP TRIGGER {name}")
        yield raw


def write_trail(path: Path) -> tuple[Event, Event]:
    """Write events of every form; returns a call that is open, and one that ended late."""
    left, late = call(agent="left"), call(agent="late")
    with closing(AuditStore(path)) as store:
        store.append([late, call(), failure(note=HOSTILE)], boot="b")
        store.append([failure(at_s=NOW_S - number) for number in range(6)])
        # With a clock that was wrong, and then right.
        store.append([failure(at_s=NOW_S + 3600), failure(at_s=NOW_S - 3600)])
        store.append([completed(late), left], boot="b")
    append_whole(path, failure())
    with changed(path) as raw:
        # As an earlier version wrote it.
        raw.execute("UPDATE events SET cluster = 'a' || char(0) || 'b' WHERE seq = 2")
        raw.execute("DELETE FROM events WHERE seq IN (5, 6)")
        raw.execute("INSERT INTO late_ends VALUES (?, 12)", (late.eid,))
    return left, late


def test_a_copy_is_read_like_the_file(
    path: Path, postgres_trail: PostgresTrail, connection: sa.Connection
) -> None:
    left, late = write_trail(path)
    found = copy(path, connection)
    assert CopiedTrail(connection).sum_up(ignore) == found
    assert (found.events, found.open_calls, found.late_ends) == (12, 2, 1)
    connection.commit()
    here, there = FileTrail(path), postgres_trail
    assert lines(there) == lines(here)
    assert [json.loads(line)["seq"] for line in lines(there)] == [1, 2, 3, 4, *range(7, 15)]
    with closing(there.calls()) as calls, closing(here.calls()) as in_file:
        for number in ("1", "4", "12", "13"):
            shown = [[row.line for row in each.by_number(number).rows] for each in (calls, in_file)]
            assert shown[0] == shown[1]
        assert calls.by_id(left.eid).open
        assert [row.number for row in calls.by_id(late.eid).rows] == ["1", "12"]
    with closing(there.reader()) as reader:
        assert [row.number for row in reader.query(Query(agent="left"))] == ["13"]
        # A zero byte cannot be searched for in PostgreSQL.
        assert [row.number for row in reader.query(Query(cluster="a\\x00b"))] == ["2"]


def test_what_a_hub_writes_next_comes_after_the_copy(
    path: Path, postgres_trail: PostgresTrail, connection: sa.Connection
) -> None:
    write_trail(path)
    copy(path, connection)
    mark = CopiedTrail(connection).mark()
    connection.commit()
    # An hour before the latest event in the file, by the clock that was wrong.
    with closing(PostgresStore(postgres_trail.conninfo, wait_s=0, clock=lambda: NOW_S + 1)) as store:
        assert store.mark == mark
        # The calls of a hub that was killed before the migration.
        assert store.close_unknown("boot", datetime.now(UTC), is_running=lambda boot: False) == 2
        store.append([failure()], boot="boot")
    events = [json.loads(line) for line in lines(postgres_trail)]
    assert [(event.get("epoch"), event["seq"], event["phase"]) for event in events[-3:]] == [
        (None, 15, "unknown"),
        (None, 16, "unknown"),
        (1, 1, "complete"),
    ]


def test_a_copy_is_indexed_part_by_part(
    path: Path, postgres_trail: PostgresTrail, connection: sa.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "COPY_EVENTS", 700)
    with closing(AuditStore(path)) as store:
        store.append([failure() for _ in range(3000)])
        store.append([call(agent="rare"), *(failure() for _ in range(200))])
    done: list[int] = []
    with closing(MovableTrail(path)) as trail:
        trail.copy_to(connection, NOW_US, done.append)
    connection.commit()
    # As a hub indexes what it writes: the blocks that are full.
    blocks = postgres_trail.rows("SELECT number, last_n, agent FROM trail_blocks ORDER BY number")
    assert blocks == [(0, 1023, [""]), (1, 2047, [""]), (2, 3071, ["", "rare"])]
    assert done == [500, 1000, 1500, 2000, 2500, 3000]
    with closing(postgres_trail.reader()) as reader:
        assert [row.number for row in reader.query(Query(agent="rare"))] == ["3001"]


def test_a_comparison_reads_each_event_once(path: Path, connection: sa.Connection) -> None:
    with closing(AuditStore(path)) as store:
        store.append([failure() for _ in range(3500)])
    copy(path, connection)
    read = "SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'trail_events'"
    before = connection.exec_driver_sql(read).scalar_one()
    assert CopiedTrail(connection).sum_up(ignore).events == 3500
    # A page begins with the last event of the one before.
    assert connection.exec_driver_sql(read).scalar_one() - before <= 3510


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ("UPDATE trail_events SET ts_us = ts_us + 1 WHERE n = 3", "sha256"),
        ("UPDATE trail_events SET n = 5 WHERE n = 4", "sha256"),
        ("DELETE FROM trail_events WHERE n = 14", "events"),
        ("UPDATE trail_parts SET body = replace(encode(body, 'escape'), 'late', 'soon')::bytea", "sha256"),
        ("DELETE FROM trail_open WHERE n = 2", "open_calls"),
        ("UPDATE trail_open SET n = 3 WHERE n = 2", "places_sha256"),
        ("DELETE FROM trail_late_ends", "late_ends"),
    ],
)
def test_each_difference_of_a_copy_is_found(
    path: Path, connection: sa.Connection, change: str, differs: str
) -> None:
    write_trail(path)
    found = copy(path, connection)
    connection.exec_driver_sql(change)
    assert getattr(CopiedTrail(connection).sum_up(ignore), differs) != getattr(found, differs)


@pytest.mark.parametrize(
    ("column", "value"), [("eid", "'no id'"), ("agent", "x'00'"), ("ts_us", "'soon'"), ("phase", "x'00'")]
)
def test_an_event_that_no_hub_has_written_is_named(
    path: Path, connection: sa.Connection, column: str, value: str
) -> None:
    write_trail(path)
    with changed(path) as raw:
        raw.execute(f"UPDATE events SET {column} = {value} WHERE seq = 3")
    with pytest.raises(AuditUnavailable, match=r"audit\.db is damaged: event 3 has values that no hub"):
        copy(path, connection)


def test_a_trail_of_an_earlier_version_is_not_movable(path: Path) -> None:
    write_trail(path)
    with untouched(path) as view:
        assert is_movable(view, path)
        assert count_events(view) == 12
    with changed(path) as raw:
        raw.execute("DROP TABLE late_ends")
    with untouched(path) as view:
        assert not is_movable(view, path)
    with changed(path) as raw:
        raw.execute("PRAGMA user_version = 1")
    with untouched(path) as view:
        assert not is_movable(view, path)
