from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from audit import blocks
from audit.blocks import BLOCK_EVENTS, stretches
from audit.members import NO_MEMBERS, Members
from audit.postgres import reader as postgres_reader
from audit.postgres import schema, statements
from audit.postgres.store import PostgresStore
from audit.query import EVERYTHING, Query
from audit.reader import AuditReader, StoredEvent
from audit.record import Actor, ActorType, Event, Kind, Phase, Request, Response, utc
from audit.retention import PrunableStore
from audit.search.cursors import Mark
from audit.store import AuditStore
from tests.audit.events import NOW_S, call
from tests.audit.trails import FileTrail, PostgresTrail, Trail, append_whole
from tests.postgres import PostgresServer


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audit.blocks.BLOCK_EVENTS", 4)


def searched(path: Path, query: Query = EVERYTHING, *, newest_first: bool = False) -> list[tuple[int, int]]:
    """The ranges that a search of the whole trail reads."""
    with closing(AuditReader(path)) as reader:
        last = reader.last()
        with reader._view() as connection:
            return list(stretches(connection, query, 1, last, newest_first=newest_first))


@pytest.mark.usefixtures("small_blocks")
def test_blocks_without_what_is_wanted_are_passed_over(store: AuditStore, path: Path) -> None:
    for number in range(1, 18):
        event = call(agent="rare" if number == 6 else "robot", cluster="ab"[number > 8], at_s=NOW_S + number)
        store.append([replace(event, kind=Kind.ADMIN if number == 9 else Kind.CALL)])
    # The last block is the one that is filling up.
    assert searched(path) == [(1, 17)]
    assert searched(path, Query(agent="rare")) == [(4, 7), (16, 17)]
    assert searched(path, Query(agent="rare"), newest_first=True) == [(16, 17), (4, 7)]
    assert searched(path, Query(cluster="b", agent="rare")) == [(16, 17)]
    assert searched(path, Query(cluster="b")) == [(8, 17)]
    assert searched(path, Query(kinds=[Kind.ADMIN, Kind.AUDIT_READ])) == [(8, 11), (16, 17)]
    assert searched(path, Query(since=utc(NOW_S + 7), until=utc(NOW_S + 8))) == [(4, 7), (16, 17)]
    assert searched(path, Query(until=utc(NOW_S + 1))) == [(16, 17)]
    with closing(AuditReader(path)) as reader, reader._view() as connection:
        # Nothing outside the requested range is searched.
        assert list(stretches(connection, Query(cluster="b"), 2, 5)) == []


def test_a_search_goes_by_stretches(store: AuditStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audit.blocks.BLOCK_EVENTS", 4)
    monkeypatch.setattr("audit.blocks._STRETCH_BLOCKS_MAX", 2)
    store.append([call() for _ in range(17)])
    assert searched(path) == [(1, 7), (8, 15), (16, 17)]
    assert searched(path, newest_first=True) == [(12, 17), (4, 11), (1, 3)]


def test_a_file_without_blocks_is_searched_whole_until_the_writer_has_caught_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audit.blocks.BLOCK_EVENTS", 100)
    with closing(AuditStore(path)) as store:
        store.append([call(agent="old") for _ in range(30)])
    with closing(sqlite3.connect(path)) as file:
        file.execute("DROP TABLE blocks")
        file.execute("DROP TABLE block_names")
    monkeypatch.setattr("audit.blocks.BLOCK_EVENTS", 4)
    monkeypatch.setattr("audit.blocks._CAUGHT_UP_MAX", 5)
    nobody = Query(agent="nobody")
    assert searched(path, nobody) == [(1, 30)]
    with closing(AuditStore(path)) as store:
        assert searched(path, nobody) == [(1, 30)]
        store.append([call()])
        assert searched(path, nobody) == [(20, 31)]
        store.append([call() for _ in range(3)])
        assert searched(path, nobody) == [(20, 34)]
        store.append([call()])
        assert searched(path, nobody) == []
    assert searched(path, Query(agent="old")) == [(1, 31)]


@pytest.mark.usefixtures("small_blocks")
def test_numbers_that_are_missing_hold_up_no_block(store: AuditStore, path: Path) -> None:
    store.append([call() for _ in range(5)])
    with closing(sqlite3.connect(path)) as file:
        file.execute("UPDATE sqlite_sequence SET seq = 400 WHERE name = 'events'")
        file.commit()
    store.append([call(agent="later")])
    store.append([call(agent="later") for _ in range(8)])
    assert searched(path, Query(agent="robot")) == [(1, 7), (408, 409)]
    with closing(AuditReader(path)) as reader:
        assert [row.seq for row in reader.query(Query(agent="robot"))] == [1, 2, 3, 4, 5]


@pytest.mark.usefixtures("small_blocks")
def test_a_block_has_the_members_of_all_its_events_or_of_none(store: AuditStore, path: Path) -> None:
    def with_verb(verb: str, status: int = 200) -> Event:
        return replace(call(), req=Request("X", "/", verb), resp=Response(status))

    store.append([with_verb("get") for _ in range(5)])
    # Another process writes into the second block.
    append_whole(path, with_verb("other", 403))
    store.append([with_verb("get") for _ in range(12)])
    assert searched(path, Query(members=Members(verbs=["other"]))) == [(4, 7), (16, 18)]
    assert searched(path, Query(members=Members(statuses=["4xx"]))) == [(4, 7), (16, 18)]
    assert searched(path, Query(members=Members(verbs=["get"], statuses=["2xx"]))) == [(1, 18)]
    assert searched(path, Query(members=Members(actors=["operator:ada"]))) == [(4, 7), (16, 18)]
    with closing(FileTrail(path).search()) as reader:
        assert [row.seq for row in reader.newest(Query(members=Members(statuses=["403"])), limit=9).rows] == [
            6
        ]


@pytest.mark.usefixtures("small_blocks")
def test_what_is_removed_is_forgotten(path: Path) -> None:
    with closing(PrunableStore(path)) as store:
        ended = Phase.COMPLETE
        store.append([call(phase=ended, at_s=NOW_S + number) for number in range(1, 18)])
        store.prune(utc(NOW_S + 10), lambda removal: call(at_s=NOW_S + 20))
    with closing(sqlite3.connect(path)) as file:
        assert [number for (number,) in file.execute("SELECT number FROM blocks")] == [2, 3]
        assert {number for (number,) in file.execute("SELECT block FROM block_names")} == {2, 3}


AGENTS, CLUSTERS, KINDS = "abc", "xy", (Kind.CALL, Kind.ADMIN)
VERBS, RESOURCES, NAMESPACES = ("get", "list"), ("pods", "pods/log"), ("dev", "")
STATUSES, ACTORS = (None, 0, 200, 403), (None, ActorType.OPERATOR, ActorType.HUB)


def event_of(
    agent: str,
    cluster: str,
    kind: Kind,
    at_s: int,
    verb: str,
    resource: str,
    namespace: str,
    status: int | None,
    actor: ActorType | None,
) -> Event:
    resource, _, subresource = resource.partition("/")
    made = replace(
        call(agent=agent, cluster=cluster, at_s=NOW_S + at_s),
        kind=kind,
        req=Request("GET", "/", verb, "", "v1", resource, subresource, namespace),
        resp=None if status is None else Response(status),
    )
    return made if actor is None else replace(made, actor=Actor(actor, "" if actor == "hub" else agent))


events = st.builds(
    event_of,
    *(st.sampled_from(AGENTS), st.sampled_from(CLUSTERS), st.sampled_from(KINDS), st.integers(0, 9)),
    *map(st.sampled_from, (VERBS, RESOURCES, NAMESPACES, STATUSES, ACTORS)),
)


def some_of(*names: str) -> st.SearchStrategy[tuple[str, ...]]:
    return st.just(()) | st.sampled_from(names).map(lambda name: (name,))


members = st.builds(
    Members,
    verbs=some_of(*VERBS),
    namespaces=some_of("dev"),
    resources=some_of(*RESOURCES),
    statuses=some_of("none", "403", "2xx"),
    actors=some_of("a", "operator:b", "agent:c", "hub"),
)
moments = st.none() | st.integers(0, 9).map(lambda second: utc(NOW_S + second))
wanteds = st.builds(
    Query,
    agent=st.none() | st.sampled_from(AGENTS),
    cluster=st.none() | st.sampled_from(CLUSTERS),
    kinds=st.sets(st.sampled_from(KINDS)).map(tuple),
    since=moments,
    until=moments,
    members=st.just(NO_MEMBERS) | members,
)


def fits(event: Event, query: Query) -> bool:
    return (
        fits_members(event, query.members)
        and query.agent in {None, event.agent}
        and query.cluster in {None, event.cluster_name}
        and (not query.kinds or event.kind in query.kinds)
        and (query.since is None or event.ts >= query.since)
        and (query.until is None or event.ts < query.until)
    )


def fits_members(event: Event, members: Members) -> bool:
    req, resp, actor = event.req, event.resp, event.actor
    assert req is not None
    status = "" if resp is None else str(resp.status or "none")
    names = {actor.name, f"{actor.type}:{actor.name}", *(["hub"] if actor.type == "hub" else [])}
    resource = f"{req.resource}/{req.subresource}" if req.subresource else req.resource
    return (
        (not members.verbs or req.verb in members.verbs)
        and (not members.namespaces or req.namespace in members.namespaces)
        and (not members.resources or resource in members.resources)
        and (not members.statuses or {status, f"{status[:1]}xx"} & {*members.statuses} != set())
        and (not members.actors or names & {*members.actors} != set())
    )


@pytest.fixture(scope="module")
def tiny_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_EVENTS", 3)
        patch.setattr(blocks, "_STRETCH_BLOCKS_MAX", 2)
        patch.setattr(blocks, "_CAUGHT_UP_MAX", 2)
        yield


Batches = list[list[Event] | Event]
batches = st.lists(st.lists(events, min_size=1, max_size=8) | events, max_size=8)
asked = {"query": wanteds, "newest": st.none() | st.integers(0, 9), "limit": st.integers(1, 9)}


@pytest.mark.usefixtures("tiny_blocks")
@given(batches=batches, **asked)
def test_what_is_found_is_what_a_search_of_all_finds(
    batches: Batches, query: Query, newest: int | None, limit: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit.db"
        with closing(AuditStore(path)) as store:
            for batch in batches:
                if isinstance(batch, list):
                    store.append(batch)
                else:
                    append_whole(path, batch)
        check_search(FileTrail(path), batches, query, newest, limit)


@pytest.fixture(scope="module")
def tiny_blocks_in_postgres(postgres: PostgresServer) -> Iterator[PostgresTrail]:
    with pytest.MonkeyPatch.context() as patch, postgres.new_database() as name:
        for module in (statements, postgres_reader):
            patch.setattr(module, "BLOCK_EVENTS", 3)
        small = [
            each.replace(f"/ {BLOCK_EVENTS}", "/ 3").replace(f"* {BLOCK_EVENTS}", "* 3")
            for each in schema._TABLES
        ]
        patch.setattr(schema, "_TABLES", small)
        url = postgres.url(name)
        PostgresStore(lambda: url).close()
        with psycopg.connect(url, autocommit=True) as connection:
            yield PostgresTrail(url, connection)


@given(batches=batches, closed=st.booleans(), **asked)
@settings(max_examples=15)
def test_what_is_found_in_postgres_is_what_a_search_of_all_finds(
    tiny_blocks_in_postgres: PostgresTrail,
    batches: Batches,
    closed: bool,
    query: Query,
    newest: int | None,
    limit: int,
) -> None:
    """Lists are written by a hub, and single events by operators; a closed epoch is indexed to its end."""
    trail = tiny_blocks_in_postgres
    trail.clear()
    times = count(1)
    with closing(PostgresStore(trail.conninfo, wait_s=0, clock=lambda: next(times))) as store:
        for batch in batches:
            if isinstance(batch, list):
                store.append([replace(event, phase=Phase.COMPLETE) for event in batch], boot="hub")
            else:
                store.append([replace(batch, phase=Phase.COMPLETE)])
        if closed:
            assert store.close_unknown("", utc(NOW_S)) == 0
    check_search(trail, batches, query, newest, limit)


def check_search(trail: Trail, batches: Batches, query: Query, newest: int | None, limit: int) -> None:
    every = [event for batch in batches for event in (batch if isinstance(batch, list) else [batch])]
    found = [event.eid for event in every if fits(event, query)]
    timed = [event.eid for event in every if fits(event, Query(since=query.since, until=query.until))]

    def eids(rows: Iterable[StoredEvent]) -> list[str]:
        return [json.loads(row.line)["eid"] for row in rows]

    with closing(trail.search()) as reader:
        assert eids(reader.newest(query, limit=limit).rows) == found[::-1][:limit]
        step = reader.after(Mark({0: 0}), query, limit=limit)
        followed = eids(step.rows)
        while step.more:
            step = reader.after(step.mark, query, limit=limit)
            followed += eids(step.rows)
        assert followed == found
    with closing(trail.reader()) as reader:
        assert eids(reader.query(query, limit=limit)) == found[:limit]
        first, last = reader.span(query, newest)
        kept = found if newest is None else found[max(0, len(found) - newest) :]
        assert eids(reader.events(first, last, query)) == kept
        if newest is None and timed:
            ends = [*reader.query(after_seq=first - 1, limit=1), *reader.query(after_seq=last - 1, limit=1)]
            assert eids(ends) == [timed[0], timed[-1]]
