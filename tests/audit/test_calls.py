from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from audit.calls import CallReader, FoundCall
from audit.errors import NoSuchCall
from audit.ids import uuid7
from audit.record import Event, Kind, Phase, Response, utc
from audit.retention import PrunableStore
from audit.store import AuditStore
from tests.audit.events import NOW_S, call
from tests.audit.trails import FileTrail, PostgresTrail, Trail, append_whole


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audit.blocks.BLOCK_EVENTS", 4)
    monkeypatch.setattr("audit.lateends.NEAR_EVENTS", 8)
    monkeypatch.setattr("audit.postgres.batch.NEAR_EVENTS", 8)
    monkeypatch.setattr("audit.postgres.calls.NEAR_EVENTS", 8)


def made(second: float, phase: Phase = Phase.COMPLETE) -> Event:
    """An event whose id is made at the event's time."""
    now_s = NOW_S + second
    return replace(call(at_s=now_s, phase=phase), eid=uuid7(int(now_s * 1000), os.urandom(10)))


def ended(event: Event, second: float) -> Event:
    return event.completed(utc(NOW_S + second), resp=Response(200))


def find(trail: Trail, said: str | int) -> FoundCall:
    with closing(trail.calls()) as calls:
        return calls.by_number(str(said)) if isinstance(said, int) else calls.by_id(said)


def numbers(trail: Trail, said: str | int) -> list[int]:
    return [int(row.number) for row in find(trail, said).rows]


def entries(trail: Trail) -> list[tuple[str, int]]:
    if isinstance(trail, PostgresTrail):
        found = trail.rows("SELECT eid::text, n FROM trail_late_ends ORDER BY n")
        return [(str(eid), int(str(n))) for eid, n in found]
    assert isinstance(trail, FileTrail)
    with closing(sqlite3.connect(trail.path)) as file:
        return file.execute("SELECT eid, seq FROM late_ends ORDER BY seq").fetchall()


@pytest.mark.usefixtures("small_blocks")
def test_both_rows_of_a_call_are_found_by_its_id_or_the_number_of_either(trail: Trail) -> None:
    store = trail.open()
    write, watch = made(1, Phase.INTENT), made(2, Phase.START)
    store.append([write, watch])
    store.append([ended(write, 3)])
    store.append([made(4 + minute) for minute in range(40)])
    store.append([ended(watch, 100)])
    assert numbers(trail, write.eid) == [1, 3]
    assert numbers(trail, watch.eid) == numbers(trail, watch.eid.upper()) == [2, 44]
    assert numbers(trail, 1) == numbers(trail, 3) == [1, 3]
    assert numbers(trail, 44) == numbers(trail, 2) == [2, 44]
    assert numbers(trail, 20) == [20]
    # Only a distant end has an entry.
    assert entries(trail) == [(watch.eid, 44)]
    store.close()


@pytest.mark.usefixtures("small_blocks")
def test_a_call_that_goes_on_has_one_row_and_is_open(trail: Trail) -> None:
    store = trail.open()
    watch = made(1, Phase.START)
    store.append([watch, *(made(2 + minute) for minute in range(40))])
    found = find(trail, watch.eid)
    assert ([row.number for row in found.rows], found.open) == (["1"], True)
    store.close()


@pytest.mark.usefixtures("small_blocks")
def test_a_call_that_a_dead_hub_left_is_found_with_its_end(trail: Trail) -> None:
    store = trail.open()
    write, later = made(1, Phase.INTENT), made(50, Phase.INTENT)
    store.append([write], boot="dead")
    store.append([made(2 + minute) for minute in range(20)])
    store.append([later], boot="dead")
    assert store.close_unknown("new", utc(NOW_S + 60)) == 2
    for event in (write, later):
        rows = [json.loads(row.line) for row in find(trail, event.eid).rows]
        assert [(row["eid"], row["phase"]) for row in rows] == [
            (event.eid, "intent"),
            (event.eid, "unknown"),
        ]
    # In PostgreSQL the ends are in another epoch, which is always far away.
    far = {eid for eid, _ in entries(trail)}
    assert far == {write.eid} or (isinstance(trail, PostgresTrail) and far == {write.eid, later.eid})
    store.close()


@pytest.mark.usefixtures("small_blocks")
def test_an_end_is_noted_by_a_store_that_was_opened_after_the_beginning(trail: Trail) -> None:
    watch = made(1, Phase.START)
    with closing(trail.open()) as store:
        store.append([watch, *(made(2 + minute) for minute in range(20))], boot="one")
    with closing(trail.open()) as store:
        store.append([ended(watch, 60)], boot="one")
    assert entries(trail) == [(watch.eid, 22)]
    assert [json.loads(row.line)["seq"] for row in find(trail, watch.eid).rows] == [1, 22]


@pytest.mark.usefixtures("small_blocks")
def test_ends_that_an_earlier_version_wrote_are_found_by_a_search(store: AuditStore, path: Path) -> None:
    watch = made(1, Phase.START)
    append_whole(path, watch)
    for minute in range(20):
        append_whole(path, made(2 + minute))
    append_whole(path, ended(watch, 60))
    store.append([made(61)])
    assert entries(FileTrail(path)) == []
    assert numbers(FileTrail(path), watch.eid) == [1, 22]


def test_a_file_of_an_earlier_version_without_the_index_is_read(path: Path) -> None:
    write = made(1, Phase.INTENT)
    with closing(AuditStore(path)) as store:
        store.append([write, ended(write, 2)])
    with closing(sqlite3.connect(path)) as file:
        file.execute("DROP TABLE late_ends")
    assert numbers(FileTrail(path), write.eid) == [1, 2]


@pytest.mark.usefixtures("small_blocks")
def test_a_row_that_was_written_late_is_found(trail: Trail) -> None:
    """The event of a flood or of a gap has an earlier time than its id."""
    store = trail.open()
    store.append([made(minute) for minute in range(12)])
    gap = replace(made(3600), kind=Kind.AUDIT_GAP, ts=utc(NOW_S + 13))
    store.append([gap, *(made(3600 + minute) for minute in range(12))])
    assert numbers(trail, gap.eid) == [13]
    store.close()


@pytest.mark.usefixtures("small_blocks")
def test_only_blocks_of_the_ids_time_are_searched(
    store: AuditStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append([made(100 * number) for number in range(40)])
    with closing(CallReader(path)) as reader, reader._view() as connection:
        query = uuid7(int((NOW_S + 1000) * 1000), bytes(10))
        assert reader._written(connection, query) == [(8, 11), (40, 40)]


def test_a_beginning_that_is_unique_is_enough(trail: Trail) -> None:
    store = trail.open()
    first, second = made(1), made(200)
    twin = replace(made(200), eid=second.eid[:-4] + "0000")
    store.append([first, second, twin])
    assert numbers(trail, first.eid[:8]) == [1]
    assert numbers(trail, first.eid[:20]) == [1]
    assert numbers(trail, second.eid) == [2]
    with pytest.raises(NoSuchCall, match=f"is the beginning of more than one id: .*{twin.eid}"):
        find(trail, second.eid[:-4])
    for wrong in ("", "0199", first.eid + "0", first.eid.replace("-", ""), "0199a1bg", "0199a1b2\n"):
        with pytest.raises(ValueError, match="is neither an event id nor the beginning of one"):
            find(trail, wrong)
    store.close()


@pytest.mark.usefixtures("small_blocks")
def test_what_was_pruned_is_told_and_ends_that_are_left_are_found(path: Path) -> None:
    early, late, near = made(0), made(1, Phase.START), made(2, Phase.START)
    with closing(PrunableStore(path)) as store:
        store.append([early, late, near, *(made(3 + minute) for minute in range(5)), ended(near, 40)])
        store.append([made(41 + minute) for minute in range(20)])
        store.append([ended(late, 100), made(101)])
        store.prune(utc(NOW_S + 30), lambda removal: made(102))
        assert numbers(FileTrail(path), late.eid) == [30]
        assert numbers(FileTrail(path), near.eid) == [9]
        with pytest.raises(
            NoSuchCall,
            match=f"no event has the id {early.eid}: the trail has 9 to 32, from 2026-09-21 "
            "14:14:00 UTC on; older ones were pruned",
        ):
            find(FileTrail(path), early.eid)
        with pytest.raises(NoSuchCall, match="no event has the number 5: the trail has 9 to 32"):
            find(FileTrail(path), 5)
        assert entries(FileTrail(path)) == [(late.eid, 30)]
        store.prune(utc(NOW_S + 101), lambda removal: made(103))
        assert entries(FileTrail(path)) == []


def test_an_end_whose_row_is_gone_is_no_call(store: AuditStore, path: Path) -> None:
    """An earlier version that prunes the file leaves the entry."""
    gone = made(1, Phase.START)
    store.append([made(2)])
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("INSERT INTO late_ends (eid, seq) VALUES (?, 9)", (gone.eid,))
    with pytest.raises(NoSuchCall, match=f"no event has the id {gone.eid}: the trail has 1 to 1"):
        find(FileTrail(path), gone.eid)


def test_an_audit_id_of_a_call_that_came_another_way_is_told_as_that(trail: Trail) -> None:
    """The API server gives requests without an Audit-ID a UUIDv4."""
    store = trail.open()
    store.append([made(1)])
    with pytest.raises(NoSuchCall, match="not an id of Hawse, whose third group begins with 7"):
        find(trail, "ffffffff-ffff-4fff-8fff-ffffffffffff")
    with pytest.raises(NoSuchCall, match=r"no event has the id ffffffff: the trail has .*from 2026-09-21"):
        find(trail, "ffffffff")
    store.close()


def test_an_empty_trail_says_so(trail: Trail) -> None:
    trail.open().close()
    for said in (1, made(1).eid):
        with pytest.raises(NoSuchCall, match="the trail holds no event yet"):
            find(trail, said)
