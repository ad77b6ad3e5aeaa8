from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from audit.blocks import BLOCK_EVENTS
from audit.members import Members
from audit.postgres.store import PostgresStore
from audit.query import Query
from audit.reader import StoredEvent
from audit.record import Actor, ActorType, Kind, Request, utc
from audit.search import search
from audit.search.cursors import BadCursor, Mark
from audit.search.file import FileSearch
from audit.search.search import DEADLINE, TEXT
from audit.store import AuditStore
from audit.textsearch import Text
from tests.audit.events import NOW_S, call
from tests.audit.trails import PostgresTrail, Trail


def numbers(rows: Iterable[StoredEvent]) -> list[int]:
    return [int(row.number.rpartition(".")[2]) for row in rows]


def fill(trail: Trail, count: int) -> None:
    """Write events of the agents a and b in turn, one a second."""
    with closing(trail.open()) as store:
        store.append([call(agent="ab"[n % 2], at_s=NOW_S + n) for n in range(count)])


def test_the_newest_come_first_page_by_page(trail: Trail) -> None:
    fill(trail, 10)
    with closing(trail.search()) as reader:
        page = reader.newest(Query(agent="b"), limit=3)
        assert (numbers(page.rows), page.stopped, page.began) == ([10, 8, 6], "", utc(NOW_S))
        assert page.older == page.rows[-1].seq
        rest = reader.newest(Query(agent="b"), before=page.older, limit=3)
        assert (numbers(rest.rows), rest.older) == ([4, 2], None)
        assert reader.newest(before=2**170, limit=1).rows == reader.newest(limit=1).rows
        assert numbers(reader.newest(Query(until=utc(NOW_S + 2)), limit=9).rows) == [2, 1]


def test_an_empty_trail_has_nothing(trail: Trail) -> None:
    with closing(trail.open()), closing(trail.search()) as reader:
        page = reader.newest(limit=5)
        assert (page.rows, page.older, page.began) == ([], None, None)
        assert reader.after(page.mark, limit=5).rows == []


def test_a_search_that_takes_too_long_keeps_what_it_has_and_goes_on_from_there(
    trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audit.blocks._STRETCH_BLOCKS_MAX", 1)
    monkeypatch.setattr("audit.postgres.search._BLOCKS_AT_ONCE", 1)
    for _ in range(3):
        fill(trail, BLOCK_EVENTS)
    wanted = Query(members=Members(verbs=("none", "delete")), agent="a")
    with closing(trail.search()) as reader:
        late = time.monotonic()
        pages, before = [], None
        while True:
            page = reader.newest(wanted, before=before, limit=10_000, until_s=late)
            pages.append(page)
            if page.older is None:
                break
            assert page.stopped == DEADLINE
            assert page.searched_to is not None
            before = page.older
        assert len(pages) > 2
        found = [row for page in pages for row in page.rows]
        assert found == reader.newest(wanted, limit=10_000).rows


def test_a_text_is_searched_in_a_bounded_number_of_events(
    trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        search.SearchReader.find,
        "__kwdefaults__",
        {**(search.SearchReader.find.__kwdefaults__ or {}), "text_events": 4},
    )
    with closing(trail.open()) as store:
        targets = ["/a?x=WEB-1", "/b?x=web%2D2", "/c", "/web-3", "/d", "/e", "/f?q=a+b", "/Web-9"]
        store.append([call(target=target, at_s=NOW_S + n) for n, target in enumerate(targets)])
    with closing(trail.search()) as reader:
        page = reader.newest(text=Text("web-"), limit=5)
        assert (numbers(page.rows), page.stopped, page.searched_to) == ([8], TEXT, utc(NOW_S + 4))
        older = reader.newest(text=Text("web-"), before=page.older, limit=5)
        assert (numbers(older.rows), older.stopped) == ([4, 2, 1], "")
        assert numbers(reader.newest(text=Text("A B"), limit=5).rows) == [7]


def test_an_actor_is_found_by_name_or_by_type_and_name(trail: Trail) -> None:
    with closing(trail.open()) as store:
        operator = replace(call(), kind=Kind.ADMIN, actor=Actor(ActorType.OPERATOR, "a"))
        hub = replace(call(), kind=Kind.HUB_STARTED, actor=Actor(ActorType.HUB))
        forged = replace(call(agent="b"), req=Request("GET", '/"actor":{"type":"operator","name":"a"'))
        store.append([call(agent="a"), operator, hub, forged])
    for actor, found in (("a", [2, 1]), ("operator:a", [2]), ("agent:a", [1]), ("hub", [3]), ("c", [])):
        with closing(trail.search()) as reader:
            page = reader.newest(Query(members=Members(actors=[actor])), limit=5)
            assert numbers(page.rows) == found, actor


def test_a_follower_gets_each_event_once(trail: Trail) -> None:
    fill(trail, 4)
    with closing(trail.search()) as reader:
        page = reader.newest(limit=2)
        fill(trail, 5)
        mark, found = page.mark, []
        for _ in range(4):
            step = reader.after(Mark.parse(mark.text), limit=2)
            found += numbers(step.rows)
            mark = step.mark
        assert found == [5, 6, 7, 8, 9]
        assert not step.more
        # A filter that matches nothing moves the mark as well.
        fill(trail, 3)
        step = reader.after(mark, Query(agent="none"), limit=2)
        assert (step.rows, step.more) == ([], False)
        assert reader.after(step.mark, limit=2).rows == []


def test_a_mark_of_another_trail_is_refused(trail: Trail) -> None:
    fill(trail, 4)
    with closing(trail.search()) as reader, pytest.raises(BadCursor, match="of another trail"):
        reader.after(Mark({0: 9}, 0), limit=2)


@pytest.mark.parametrize(
    "text", ["m0~5", "m80000000.0-1", "m0.80000000-1", "m0.0-1~5.80000000-1", "m0.0-" + "f" * 16]
)
def test_a_forged_mark_is_refused(text: str) -> None:
    with pytest.raises(BadCursor, match="not a cursor"):
        Mark.parse(text)


@pytest.mark.parametrize("text", ["m2.2-3", "m2.0-3.2-3", "m0.0-3~5.0-4", "m0"])
def test_a_mark_of_a_database_is_refused_for_a_file(store: AuditStore, path: Path, text: str) -> None:
    store.append([call() for _ in range(5)])
    with closing(FileSearch(path)) as reader, pytest.raises(BadCursor, match="of another trail"):
        reader.after(Mark.parse(text), limit=2)


def test_a_follower_misses_no_event_that_another_hub_commits_late(postgres_trail: PostgresTrail) -> None:
    with closing(postgres_trail.open()) as one, closing(postgres_trail.open()) as other:
        one.append([call(agent="one")])
        other.append([call(agent="other")])
        with closing(postgres_trail.search()) as reader:
            mark = reader.now()
            found: list[str] = []
            for turn in range(6):
                writer: PostgresStore = (one, other)[turn % 2]
                writer.append([call(agent=f"{turn}-{n}") for n in range(3)])
                # As if this batch had been made before those of the other hub, and committed after them.
                epoch = turn % 2 + 1
                first, last = 2 + turn // 2 * 3, 4 + turn // 2 * 3
                if turn in {2, 3}:
                    postgres_trail.connection.execute(
                        b"UPDATE trail_events SET written = written - 10000000 "
                        b"WHERE epoch = %d AND n BETWEEN %d AND %d" % (epoch, first, last)
                    )
                step = reader.after(Mark.parse(mark.text), limit=2)
                found += [row.body.decode().partition('"name":"')[2].partition('"')[0] for row in step.rows]
                mark = step.mark
            one.close()
            while True:
                step = reader.after(Mark.parse(mark.text), limit=2)
                found += [row.body.decode().partition('"name":"')[2].partition('"')[0] for row in step.rows]
                mark = step.mark
                if not step.more:
                    step = reader.after(mark, limit=2)
                    mark, more = step.mark, step.rows
                    found += [row.body.decode().partition('"name":"')[2].partition('"')[0] for row in more]
                    if not more:
                        break
    assert sorted(found) == [f"{turn}-{n}" for turn in range(6) for n in range(3)]


def test_a_file_that_was_replaced_is_opened_again(store: AuditStore, path: Path, tmp_path: Path) -> None:
    store.append([call()])
    with closing(FileSearch(path)) as reader:
        assert len(reader.newest(limit=9).rows) == 1
        store.close()
        path.rename(tmp_path / "moved.db")
        store = AuditStore(path)
        store.append([call(), call()])
        assert len(reader.newest(limit=9).rows) == 2
        store.close()
