from __future__ import annotations

import errno
import hashlib
import json
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from audit import retention
from audit.display import json_line
from audit.errors import AuditUnavailable
from audit.reader import StoredEvent
from audit.record import Event, Kind, Phase, utc
from audit.retention import PrunableStore, Removal
from audit.store import AuditStore
from tests.audit.events import call
from tests.audit.trails import FileTrail, Prunable, Trail

DAY_S = 86_400.0
# PostgreSQL keeps the events of the last day by its own clock.
NOW_S = round(time.time()) - 10 * DAY_S
# As often as a hub writes, so that neither side holds the lock all the time.
WRITE_EVERY_S = 0.002
# A writer that arrives during a slice writes after it; on a busy machine it may miss some slices.
WAIT_SLICES_MAX = 5


@pytest.fixture
def store(path: Path) -> Iterator[PrunableStore]:
    with closing(PrunableStore(path)) as store:
        yield store


@pytest.fixture
def prunable(trail: Trail) -> Iterator[Prunable]:
    with closing(trail.open_prunable(lambda: NOW_S)) as store:
        yield store


def ended(at_s: float) -> Event:
    event = call(at_s=at_s)
    return event.completed(event.ts)


def tell(removal: Removal) -> Event:
    return replace(ended(NOW_S), kind=Kind.AUDIT_PRUNED, note=str(removal))


def lines(trail: Trail) -> list[str]:
    with closing(trail.reader()) as reader:
        return [json_line(stored) for stored in reader.query()]


def seqs(trail: Trail) -> list[int]:
    return [json.loads(line)["seq"] for line in lines(trail)]


def test_the_oldest_go_and_what_is_left_says_which(prunable: Prunable, trail: Trail, tmp_path: Path) -> None:
    prunable.append([ended(NOW_S - days * DAY_S) for days in (100, 95, 91, 89, 1)])
    before, archive = lines(trail), tmp_path / "old.jsonl"
    removal = prunable.prune(utc(NOW_S - 90 * DAY_S), tell, archive)
    assert removal is not None
    assert (removal.ends, removal.count) == (("1", "3"), 3)
    assert archive.read_text() == "".join(f"{line}\n" for line in before[:3])
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == removal.sha256
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    assert lines(trail)[:-1] == before[3:]
    told = json.loads(lines(trail)[-1])
    assert (told["seq"], told["kind"], told["note"]) == (6, "audit.pruned", str(removal))
    assert prunable.prune(utc(NOW_S - 90 * DAY_S), tell) is None


def test_one_removal_follows_the_other_without_a_hole(prunable: Prunable, trail: Trail) -> None:
    prunable.append([ended(NOW_S - days * DAY_S) for days in (5, 4, 3)])
    removals = [prunable.prune(utc(NOW_S - days * DAY_S + 1), tell) for days in (5, 4, 3)]
    assert [each.ends for each in removals if each] == [("1", "1"), ("2", "2"), ("3", "3")]
    assert seqs(trail) == [4, 5, 6]
    # The events of removals age like all others, and the next removal covers them.
    last = prunable.prune(utc(NOW_S + 1), tell)
    assert last is not None
    assert (last.ends, seqs(trail)) == (("4", "6"), [7])


def test_nothing_newer_goes_whatever_the_clocks_said(prunable: Prunable, trail: Trail) -> None:
    prunable.append([ended(NOW_S - at * DAY_S) for at in (100, 2, 100, 100)])
    removal = prunable.prune(utc(NOW_S - 90 * DAY_S), tell)
    assert removal is not None
    assert seqs(trail) == [2, 3, 4, 5]


@pytest.mark.parametrize("begun", [Phase.INTENT, Phase.START])
def test_what_has_not_ended_stays_with_all_behind_it(prunable: Prunable, trail: Trail, begun: Phase) -> None:
    long = call(at_s=NOW_S - 100 * DAY_S, phase=begun)
    prunable.append([ended(NOW_S - 101 * DAY_S), long, ended(NOW_S - 99 * DAY_S)])
    assert prunable.prune(utc(NOW_S), tell) is not None
    assert seqs(trail) == [2, 3, 4]
    prunable.append([long.completed(long.ts + timedelta(days=99))])
    assert prunable.prune(utc(NOW_S - DAY_S / 2), tell) is not None
    assert seqs(trail) == [4, 5, 6]


def test_an_archive_that_cannot_be_written_keeps_everything(
    prunable: Prunable, trail: Trail, tmp_path: Path
) -> None:
    prunable.append([ended(NOW_S - DAY_S)])
    there = tmp_path / "there"
    there.write_text("precious")
    with pytest.raises(FileExistsError):
        prunable.prune(utc(NOW_S), tell, there)
    with pytest.raises(FileNotFoundError):
        prunable.prune(utc(NOW_S), tell, tmp_path / "nowhere" / "old")
    assert there.read_text() == "precious"
    assert seqs(trail) == [1]


def test_an_archive_that_was_not_finished_is_not_in_the_way_of_the_next(
    prunable: Prunable, trail: Trail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "archives"
    folder.mkdir()
    prunable.append([ended(NOW_S - DAY_S) for _ in range(3)])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            prunable.prune(utc(NOW_S), tell, folder / "old.jsonl")
    assert list(folder.iterdir()) == []
    assert seqs(trail) == [1, 2, 3]
    assert prunable.prune(utc(NOW_S), tell, folder / "old.jsonl") is not None
    assert [each.name for each in folder.iterdir()] == ["old.jsonl"]


def test_a_name_that_was_taken_meanwhile_is_not_overwritten(
    prunable: Prunable, trail: Trail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prunable.append([ended(NOW_S - DAY_S)])
    archive = tmp_path / "old.jsonl"
    line = retention.json_line

    def other(stored: StoredEvent) -> str:
        archive.write_text("another's")
        return line(stored)

    monkeypatch.setattr(retention, "json_line", other)
    with pytest.raises(FileExistsError):
        prunable.prune(utc(NOW_S), tell, archive)
    assert archive.read_text() == "another's"
    assert seqs(trail) == [1]


def test_of_two_at_once_none_tells_of_what_the_other_has_removed(
    store: PrunableStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process removes events that this one has selected and not read yet."""
    store.append([ended(NOW_S - days * DAY_S) for days in (3, 2, 1)])
    look = retention._Reader.oldest

    def overtaken(self: retention._Reader, before: datetime) -> tuple[int, int] | None:
        found = look(self, before)
        with monkeypatch.context() as patched, closing(PrunableStore(path)) as other:
            patched.setattr(retention._Reader, "oldest", look)
            assert other.prune(utc(NOW_S - 2.5 * DAY_S), tell) is not None
        return found

    with monkeypatch.context() as patched:
        patched.setattr(retention._Reader, "oldest", overtaken)
        with pytest.raises(AuditUnavailable, match="by another process: try again"):
            store.prune(utc(NOW_S), tell)
    assert seqs(FileTrail(path)) == [2, 3, 4]


def test_to_look_for_what_can_go_takes_no_lock(store: PrunableStore, path: Path) -> None:
    store.append([ended(NOW_S - DAY_S)])
    with closing(sqlite3.connect(path, isolation_level=None)) as hub:
        hub.execute("BEGIN IMMEDIATE")
        assert store.prune(utc(NOW_S - 2 * DAY_S), tell) is None


def test_who_is_killed_in_between_has_removed_nothing_that_no_event_tells_of(
    store: PrunableStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "SLICE_ROWS", 2)
    store.append([ended(NOW_S - DAY_S) for _ in range(7)])
    transactions = iter([True, True])
    begin = AuditStore._transaction

    def killed(self: AuditStore) -> object:
        # After two slices the process dies.
        if not next(transactions, False):
            raise KeyboardInterrupt
        return begin(self)

    with monkeypatch.context() as patched:
        patched.setattr(PrunableStore, "_transaction", killed)
        with pytest.raises(KeyboardInterrupt):
            store.prune(utc(NOW_S), tell)
    assert seqs(FileTrail(path)) == [5, 6, 7, 8]
    with closing(PrunableStore(path)) as again:
        removal = again.prune(utc(NOW_S), tell)
    assert removal is not None
    assert (removal.first, removal.last) == (5, 7)
    assert seqs(FileTrail(path)) == [8, 9]


def test_a_hub_goes_on_writing_meanwhile(
    store: PrunableStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "SLICE_ROWS", 200)
    store.append([ended(NOW_S - DAY_S) for _ in range(2000)])
    written = 0
    enough, stop = threading.Event(), threading.Event()

    def write() -> None:
        nonlocal written
        with closing(AuditStore(path)) as hub:
            while not stop.wait(WRITE_EVERY_S):
                hub.append([ended(NOW_S)])
                written += 1
                if written == 3:
                    enough.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert enough.wait(30)
        removal = store.prune(utc(NOW_S - 1), tell)
    finally:
        stop.set()
        writer.join()
    assert removal is not None
    assert removal.last == 2000
    with closing(sqlite3.connect(path)) as connection:
        left = connection.execute("SELECT min(seq), max(seq), count(*) FROM events").fetchone()
    # Without a gap, including its own event.
    assert left == (2001, 2001 + written, written + 1)


def test_a_hub_waits_for_a_few_slices_at_most(
    store: PrunableStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in slices, since their duration depends on the machine: how many pass while a writer waits."""
    monkeypatch.setattr(retention, "SLICE_ROWS", 50)
    store.append([ended(NOW_S - DAY_S) for _ in range(5000)])
    removed = 0
    passed_by: list[int] = []
    begun, stop = threading.Event(), threading.Event()
    remove = PrunableStore._remove

    def counted(self: PrunableStore, last: int) -> float:
        nonlocal removed
        locked_s = remove(self, last)
        removed += 1
        begun.set()
        return locked_s

    def write() -> None:
        with closing(AuditStore(path)) as hub:
            assert begun.wait(30)
            while not stop.wait(WRITE_EVERY_S):
                before = removed
                hub.append([ended(NOW_S)])
                passed_by.append(removed - before)

    monkeypatch.setattr(PrunableStore, "_remove", counted)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert store.prune(utc(NOW_S - 1), tell) is not None
    finally:
        begun.set()
        stop.set()
        writer.join()
    assert removed == 100
    assert max(passed_by) <= WAIT_SLICES_MAX


def test_events_can_be_neither_changed_nor_removed_by_another_way(store: PrunableStore, path: Path) -> None:
    store.append([ended(NOW_S - DAY_S), ended(NOW_S)])
    assert store.prune(utc(NOW_S), tell) is not None
    with closing(sqlite3.connect(path)) as connection:
        for statement in ("DELETE FROM events", "UPDATE events SET agent = 'x'"):
            with pytest.raises(sqlite3.IntegrityError, match="never changed"):
                connection.execute(statement)


def test_of_a_trail_without_events_nothing_goes(prunable: Prunable, trail: Trail) -> None:
    assert prunable.prune(utc(NOW_S), tell) is None
    assert lines(trail) == []


def test_a_trail_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "audit.db").write_bytes(b"no database" * 1000)
    with pytest.raises(AuditUnavailable):
        PrunableStore(tmp_path / "audit.db")
