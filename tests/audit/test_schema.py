from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from audit.errors import AnotherTrail, AuditUnavailable
from audit.reader import AuditReader
from audit.record import encode
from audit.store import AuditStore
from tests.audit.events import call
from tests.audit.trails import append_whole, bodies, old_file


@pytest.mark.parametrize("statement", ["UPDATE events SET body = 'x'", "DELETE FROM events"])
def test_rows_cannot_be_changed(path: Path, statement: str) -> None:
    with closing(AuditStore(path)) as store:
        store.append([call()])
    with closing(sqlite3.connect(path)) as connection:
        with pytest.raises(sqlite3.IntegrityError, match="never changed"):
            connection.execute(statement)


def test_a_common_part_is_never_changed_and_goes_only_when_no_event_needs_it(path: Path) -> None:
    with closing(AuditStore(path)) as store:
        store.append([call()])
    with closing(sqlite3.connect(path)) as connection:
        for statement in ("DELETE FROM common_parts", "UPDATE common_parts SET body = 'x'"):
            with pytest.raises(sqlite3.IntegrityError, match="never changed"):
                connection.execute(statement)


def test_a_trail_of_a_newer_version_is_left_alone(path: Path) -> None:
    AuditStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    told = r"audit\.db has schema version 99, this hawse knows 2: use the newer hawse"
    with pytest.raises(AuditUnavailable, match=told):
        AuditStore(path)
    with pytest.raises(AuditUnavailable, match=told):
        bodies(path)


def test_the_indices_of_earlier_versions_go(path: Path) -> None:
    AuditStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute("CREATE INDEX ix_events_eid ON events (eid)")
    connection.execute("CREATE INDEX ix_events_ts_us ON events (ts_us)")
    connection.close()
    AuditStore(path).close()
    connection = sqlite3.connect(path)
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
    connection.close()
    assert names == set()


def test_a_trail_of_before_is_read_and_gone_on_with(path: Path) -> None:
    batch = [call() for _ in range(4)]
    old_file(path, batch[:2])
    assert bodies(path) == [encode(event) for event in batch[:2]]
    with closing(AuditStore(path)) as store:
        store.append(batch[2:3])
        # The hub that is being replaced writes its last events.
        append_whole(path, batch[3])
    assert bodies(path) == [encode(event) for event in batch]
    AuditStore(path).close()
    assert bodies(path) == [encode(event) for event in batch]


def test_a_copy_of_before_that_is_put_in_the_files_place_is_gone_on_with_when_it_is_accepted(
    path: Path, tmp_path: Path
) -> None:
    """Made with SQLite's own backup, which an open connection sees."""
    old, refused, last = call(), call(), call()
    old_file(tmp_path / "old.db", [old])
    with closing(AuditStore(path)) as store:
        store.append([call()])
        with closing(sqlite3.connect(tmp_path / "old.db")) as copy, closing(sqlite3.connect(path)) as file:
            copy.backup(file)
        with pytest.raises(AuditUnavailable, match="no such table: common_parts"):
            store.append([refused])
        with pytest.raises(AnotherTrail, match="is another trail than the one that was written until now"):
            store.append([refused])
        with closing(AuditStore(path)) as accepting:
            store.expect(accepting.mark)
        store.append([last])
    assert bodies(path) == [encode(event) for event in (old, last)]


def test_a_reader_goes_on_while_the_file_is_brought_up_to_date(path: Path) -> None:
    batch = [call() for _ in range(2)]
    old_file(path, batch[:1])
    with closing(AuditReader(path)) as reader:
        assert [stored.body for stored in reader.query()] == [encode(batch[0])]
        with closing(AuditStore(path)) as store:
            store.append(batch[1:])
        assert [stored.body for stored in reader.query()] == [encode(event) for event in batch]


def test_a_page_is_of_one_version_of_the_file(path: Path) -> None:
    """The file is upgraded just after the reader has checked its version."""
    batch = [call() for _ in range(2)]
    unwritten = batch[1:]
    old_file(path, batch[:1])
    with closing(AuditReader(path)) as reader:

        @sa.event.listens_for(reader._engine, "after_cursor_execute")
        def overtaken(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            if "user_version" in statement and unwritten:
                with closing(AuditStore(path)) as store:
                    store.append([unwritten.pop()])

        assert [stored.body for stored in reader.query(limit=2)] == [encode(batch[0])]
    assert bodies(path) == [encode(event) for event in batch]
