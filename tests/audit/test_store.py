from __future__ import annotations

import json
import shutil
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from audit.blocks import BLOCK_EVENTS
from audit.errors import AnotherTrail, AuditUnavailable
from audit.mask import Masks
from audit.query import Query
from audit.record import Phase, utc
from audit.retention import PrunableStore
from audit.store import AuditStore, TrailMark
from tests.audit.events import NOW_S, call
from tests.audit.trails import Trail, read


def test_events_keep_their_order_and_get_a_sequence(trail: Trail) -> None:
    batch = [call(), call(), call()]
    with closing(trail.open()) as store:
        store.append(batch[:2])
        store.append(batch[2:])
    assert [row["seq"] for row in trail.read()] == [1, 2, 3]
    assert [row["eid"] for row in trail.read()] == [event.eid for event in batch]


def test_the_file_is_its_owners_alone(store: AuditStore, path: Path) -> None:
    store.append([call()])
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_the_disk_settings_are_the_durable_ones(store: AuditStore) -> None:
    connection = store._connection
    assert connection is not None
    pragmas = {
        name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
        for name in ("journal_mode", "synchronous", "busy_timeout")
    }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "busy_timeout": 5000}


@pytest.mark.parametrize("begun", [Phase.INTENT, Phase.START])
def test_what_has_no_end_is_closed_once_by_the_next_boot(trail: Trail, begun: Phase) -> None:
    open_one, ended, batched = call(phase=begun), call(phase=begun), call(phase=begun)
    with closing(trail.open()) as store:
        store.append([open_one, ended], boot="first")
        store.append([ended.completed(ended.ts), batched, batched.completed(batched.ts)], boot="first")
        assert store.close_unknown("first", utc(NOW_S + 60)) == 0
        assert store.close_unknown("second", utc(NOW_S + 60)) == 1
        assert store.close_unknown("third", utc(NOW_S + 61)) == 0
        # A hub that runs for months keeps no ended calls in memory.
        assert not store._open_intents
    last = trail.read()[-1]
    assert (last["eid"], last["phase"]) == (open_one.eid, Phase.UNKNOWN)
    assert last["ts"] == "2026-09-21T14:14:20Z"
    with closing(trail.reader()) as reader:
        found = reader.query(Query(agent="robot", since=utc(NOW_S + 60)))
        assert [json.loads(row.line)["phase"] for row in found] == ["unknown"]


def test_of_several_boots_only_those_that_live_no_more_are_closed(trail: Trail) -> None:
    store = trail.open()
    dead, living, mine = call(), call(), call()
    for boot, event in (("dead", dead), ("living", living), ("mine", mine)):
        store.append([event], boot=boot)
    asked: list[str] = []

    def lives(boot: str) -> bool:
        asked.append(boot)
        return boot == "living"

    assert store.close_unknown("mine", utc(NOW_S + 60), is_running=lives) == 1
    assert sorted(asked) == ["dead", "living"]
    assert [(row["eid"], row["phase"]) for row in trail.read()][3:] == [(dead.eid, "unknown")]
    assert store.close_unknown("mine", utc(NOW_S + 60), is_running=lives) == 0
    assert store.close_unknown("mine", utc(NOW_S + 60)) == 1
    assert [(row["eid"], row["phase"]) for row in trail.read()][4:] == [(living.eid, "unknown")]
    store.close()


def test_a_full_file_is_unavailable_and_takes_events_again_when_there_is_room(path: Path) -> None:
    small = AuditStore(path, bytes_max=128 * 1024)

    def fill() -> None:
        for _ in range(1000):
            small.append([call()])

    with pytest.raises(AuditUnavailable, match="full"):
        fill()
    before = read(path)
    small.close()
    roomy = AuditStore(path)
    roomy.append([call()])
    roomy.close()
    assert len(read(path)) == len(before) + 1


def test_a_batch_is_written_whole_or_not_at_all(path: Path) -> None:
    small = AuditStore(path, bytes_max=128 * 1024)
    with pytest.raises(AuditUnavailable) as kept:
        small.append([call() for _ in range(2000)])
    assert read(path) == []
    small.append([call()])
    assert "full" in str(kept.value)
    assert len(read(path)) == 1
    small.close()


def test_whether_a_boot_lives_is_asked_while_nobody_else_can_write(store: AuditStore, path: Path) -> None:
    store.append([call()], boot="other")
    refused: list[str] = []

    def lives(boot: str) -> bool:
        with (
            closing(sqlite3.connect(path, timeout=0)) as other,
            pytest.raises(sqlite3.OperationalError) as caught,
        ):
            other.execute("BEGIN IMMEDIATE")
        refused.append(str(caught.value))
        return False

    assert store.close_unknown("mine", utc(NOW_S + 60), is_running=lives) == 1
    assert refused == ["database is locked"]


def test_a_second_process_may_write_between(trail: Trail) -> None:
    with closing(trail.open()) as store, closing(trail.open()) as other:
        for _ in range(5):
            store.append([call()])
            other.append([call()])
    assert [row["seq"] for row in trail.read()] == list(range(1, 11))


def test_nothing_reaches_the_disk_unmasked(path: Path) -> None:
    store = AuditStore(path, Masks(["hunter2"]))
    store.append([call(target="/api/v1/pods?labelSelector=hunter2&access_token=opaque-secret")])
    store.close()
    raw = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"labelSelector" in raw
    assert b"hunter2" not in raw
    assert b"opaque-secret" not in raw


def test_an_unusable_path_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(AuditUnavailable, match="unavailable"):
        AuditStore(tmp_path / "missing" / "audit.db")
    (tmp_path / "audit.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(AuditUnavailable, match="not a database"):
        AuditStore(tmp_path / "audit.db")


@pytest.mark.parametrize("closed", [False, True])
def test_a_file_that_is_missing_for_a_while_is_not_made_anew(
    store: AuditStore, path: Path, tmp_path: Path, closed: bool
) -> None:
    """As when its disk is mounted again: events written meanwhile would be lost to view."""
    store.append([call()])
    if closed:
        store.close()
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(AuditUnavailable, match="No such file"):
        store.append([call()])
    with pytest.raises(AuditUnavailable, match="No such file"):
        AuditStore(path, make=False)
    assert not path.exists()
    (tmp_path / "elsewhere").rename(path)
    store.append([call()])
    assert [row["seq"] for row in read(path)] == [1, 2]


def test_the_file_that_bears_the_name_now_is_the_one_that_is_looked_at(tmp_path: Path) -> None:
    """As when another disk is mounted over the current one, with another trail or a copy of this one."""
    disk, other, copy = (tmp_path / name for name in ("disk", "other", "copy"))
    for folder in (disk, other):
        folder.mkdir()
        AuditStore(folder / "audit.db").close()
    with closing(AuditStore(disk / "audit.db")) as store:
        before, after = call(), call()
        store.append([before])
        with closing(sqlite3.connect(disk / "audit.db")) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        copy.mkdir()
        shutil.copy(disk / "audit.db", copy)
        disk.rename(tmp_path / "hidden")
        other.rename(disk)
        for _ in range(2):
            with pytest.raises(AnotherTrail, match="another trail than the one that was written until now"):
                store.append([after])
        disk.rename(tmp_path / "refused")
        copy.rename(disk)
        store.append([after])
    assert [row["eid"] for row in read(disk / "audit.db")] == [before.eid, after.eid]
    assert [row["eid"] for row in read(tmp_path / "hidden" / "audit.db")] == [before.eid]
    assert read(tmp_path / "refused" / "audit.db") == []


@pytest.mark.parametrize("how", ["moved there", "over it", "by SQLite"])
def test_an_older_copy_under_an_open_trail_takes_no_event_until_it_is_accepted(
    path: Path, tmp_path: Path, how: str
) -> None:
    older = tmp_path / "older.db"
    with closing(AuditStore(path)) as store:
        store.append([call() for _ in range(40)])
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copy(path, older)
        store.append([call(target="/" + "x" * 8000) for _ in range(60)])
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        store.append([call()])
        match how:
            case "moved there":
                older.rename(path)
                with pytest.raises(AnotherTrail, match="with the -wal of that beside it: put that file back"):
                    store.append([call()])
                path.with_name("audit.db-wal").unlink()
                path.with_name("audit.db-shm").unlink()
                told = (
                    r"is an older copy of the trail, which ends at event 40 of 101: put the newest back, or"
                )
            case "over it":
                shutil.copyfile(older, path)
                told = "has become smaller while it was open: it was overwritten, or compacted"
            case _:
                with closing(sqlite3.connect(older)) as copy, closing(sqlite3.connect(path)) as file:
                    copy.backup(file)
                told = "has become smaller while it was open|is an older copy of the trail"
        for _ in range(3):
            with pytest.raises(AnotherTrail, match=told):
                store.append([call()])
        if how == "over it":
            return
        gap = call(phase=Phase.COMPLETE)
        with closing(AuditStore(path)) as accepting:
            assert accepting.mark.highest == 40
            mark = accepting.accept(lambda mark: gap)
        store.expect(mark)
        store.append([call()])
    rows = read(path)
    assert [row["seq"] for row in rows] == list(range(1, 43))
    assert rows[40]["eid"] == gap.eid


def test_a_trail_is_known_again_at_the_next_start(path: Path, tmp_path: Path) -> None:
    with closing(AuditStore(path)) as store:
        store.append([call(), call()])
        mark = store.mark
    assert mark.highest == 2
    # Writes of other processes only make it longer.
    with closing(AuditStore(path)) as store:
        store.append([call()])
    with closing(AuditStore(path, expected=mark)) as store:
        assert store.mark == TrailMark(mark.id, 3)
    with pytest.raises(
        AnotherTrail, match="ends at event 3 of 4: put the newest back, or run `hawse admin a"
    ):
        AuditStore(path, expected=TrailMark(mark.id, 4))
    with pytest.raises(AnotherTrail, match="is another trail than"):
        AuditStore(path, expected=TrailMark("another", 1))
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(
        AnotherTrail, match=r"audit\.db is missing: put it back, or run `hawse admin audit acc"
    ):
        AuditStore(path, expected=mark)
    assert not path.exists()


def test_a_shortened_trail_is_the_same(path: Path) -> None:
    with closing(PrunableStore(path)) as store, closing(AuditStore(path)) as hub:
        hub.append([call(phase=Phase.COMPLETE) for _ in range(2000)])
        store.prune(utc(NOW_S + 60), lambda removal: call(phase=Phase.COMPLETE))
        hub.append([call()])
        assert hub.mark.highest == 2002
        mark = hub.mark
    AuditStore(path, expected=mark).close()


def test_no_trail_is_begun_where_another_has_left_its_newest_events(
    store: AuditStore, path: Path, tmp_path: Path
) -> None:
    store.append([call()])
    path.rename(tmp_path / "elsewhere")
    store.close()
    with pytest.raises(AuditUnavailable, match=r"audit\.db is missing, and audit\.db-wal holds events"):
        AuditStore(path)
    (tmp_path / "elsewhere").rename(path)
    assert [row["seq"] for row in read(path)] == [1]


def test_a_path_of_any_name_is_a_path(tmp_path: Path) -> None:
    # Two slashes begin a path, or a host name in a URL.
    path = Path(f"/{tmp_path}") / "100%41 ?mode=memory&#.db"
    store = AuditStore(path)
    store.append([call()])
    store.close()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert len(read(path)) == 1


def test_to_open_a_trail_that_lacks_nothing_writes_nothing(store: AuditStore, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        before = connection.execute("PRAGMA data_version").fetchone()
        AuditStore(path).close()
        assert connection.execute("PRAGMA data_version").fetchone() == before


@pytest.mark.parametrize("lost", ["", " WHERE name = 'events'", " WHERE name = 'common_parts'"])
def test_what_sqlite_has_forgotten_of_the_numbers_is_looked_up(path: Path, lost: str) -> None:
    ended, begun, last = call(agent="a"), call(agent="b"), call(agent="c")
    batch = [ended, ended.completed(ended.ts), begun]
    with closing(AuditStore(path)) as store:
        store.append(batch, boot="first")
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"DELETE FROM sqlite_sequence{lost}")
            connection.commit()
        store.append([last], boot="first")
        assert [(row["seq"], row["eid"]) for row in read(path)] == [
            (number, event.eid) for number, event in enumerate([*batch, last], 1)
        ]
        # Only those that have not ended.
        assert store.close_unknown("second", utc(NOW_S)) == 2


@pytest.mark.parametrize("boot", ["", "first"])
def test_a_batch_of_any_size_keeps_its_order(trail: Trail, boot: str) -> None:
    # In SQLite inserted by statements of 256, 64, 2 and 1 rows.
    batch = [call() for _ in range(323)]
    with closing(trail.open()) as store:
        store.append(batch, boot=boot)
    assert [row["eid"] for row in trail.read()] == [event.eid for event in batch]


def test_an_intent_is_still_known_after_its_end_could_not_be_written(path: Path) -> None:
    small = AuditStore(path, bytes_max=128 * 1024)
    begun = call()
    small.append([begun], boot="first")
    with pytest.raises(AuditUnavailable):
        small.append([begun.completed(begun.ts), *(call() for _ in range(2000))], boot="first")
    small.append([begun.completed(begun.ts)], boot="first")
    assert small.close_unknown("second", utc(NOW_S)) == 0
    small.close()


def test_an_end_is_that_of_an_intent_which_the_trail_had_before(trail: Trail) -> None:
    begun = call()
    with closing(trail.open()) as first:
        first.append([begun], boot="first")
    with closing(trail.open()) as second:
        second.append([begun.completed(begun.ts)], boot="second")
        assert second.close_unknown("second", utc(NOW_S)) == 0


def test_a_second_store_of_the_process_does_not_cost_the_first_one_its_locks(
    store: AuditStore, path: Path
) -> None:
    store.append([call()])
    AuditStore(path).close()
    # If it sees no lock, another process that reads and leaves believes that it is the last one, and cleans
    # up.
    assert _counted_elsewhere(path) == 1
    store.append([call()])
    assert _counted_elsewhere(path) == 2


def _counted_elsewhere(path: Path) -> int:
    code = (
        "import sqlite3, sys\n"
        "print(*sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM events').fetchone())"
    )
    argv = [sys.executable, "-c", code, str(path)]
    return int(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


def test_an_event_that_may_be_there_already_is_written_once(trail: Trail) -> None:
    first, second = call(phase=Phase.COMPLETE), call(phase=Phase.COMPLETE)
    with closing(trail.open()) as store:
        store.append_once([first])
        store.append([call() for _ in range(BLOCK_EVENTS + 10)])
        store.append_once([first, second])
        store.append_once([first, second])
        # An intent's end is another row.
        store.append_once([replace(second, phase=Phase.UNKNOWN)])
    with closing(trail.reader()) as reader:
        found = [json.loads(stored.line) for stored in reader.events(*reader.span())]
    rows = [(row["eid"], row["phase"]) for row in found if row["eid"] in {first.eid, second.eid}]
    assert sorted(rows) == sorted(
        [(first.eid, "complete"), (second.eid, "complete"), (second.eid, "unknown")]
    )
